"""`All of it at once` on the first page: the demo's command, in a separate process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from console.actions import actions_of
from qwen3vl_core.demo.workspace import BASE, Workspace
from tests.console.app.driving import SLEEPER, Store, driven, press, said, text_of, until


@pytest.fixture
def small_demo(tmp_path):
    """A demo workspace with few pictures, which the demo's command uses unchanged."""
    workspace = Workspace(tmp_path / "demo")
    shutil.copytree(BASE, workspace.base)
    (workspace.train_json.parent / "pictures").mkdir(parents=True)
    records = []
    for number in range(16):
        Image.new("RGB", (32, 32), (number, 40, 90)).save(workspace.train_json.parent / f"pictures/{number}.png")
        talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A field."}]
        records.append({"id": str(number), "image": f"pictures/{number}.png", "conversations": talk})
    workspace.train_json.write_text(json.dumps(records))
    workspace.held_out.mkdir()
    workspace.truth_file.write_text("{}")
    workspace.make()
    return workspace


def demos(workspace: Workspace) -> list[int]:
    """Processes of the demo's command on this workspace."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_bytes().split(b"\0")
            if b"demo" in words and b"--headless" in words and str(workspace.root).encode() in words:
                found.append(int(file.parent.name))
    return found


@pytest.mark.parametrize("way", ["key", "mouse"])
def test_all_steps_at_once_run_in_a_separate_process(store, small_demo, way):
    """The real command, until it has prepared the data; tests/demo runs it to the end."""
    assert "welcome.all" in {action.id for action in actions_of("welcome")}

    async def scene(pilot):
        app = pilot.app
        app.action_start_page()
        await until(pilot, lambda: "All of it at once" in text_of(app))
        if way == "key":
            await press(pilot, "a", "y")
        else:
            lines = text_of(app).splitlines()
            row = next(y for y, line in enumerate(lines) if "All of it at once" in line)
            await pilot.click(offset=(lines[row].index("All of it"), row))
            await press(pilot, "y")
        await until(pilot, lambda: app.current_mode == "runs" and app.screen.id != "welcome" and app.screen.rows)
        assert app.subcommand == f"qwen3vl demo --headless --dir {small_demo.root}"
        assert demos(small_demo), "it is a process of its own"
        await until(pilot, lambda: any(row.kind == "prepare" and row.status == "done" for row in app.screen.rows))
        assert (small_demo.data / "report.json").exists() and "[1/5] prepare" in (small_demo.root / "demo.log").read_text()

    made = Store(small_demo.runs)
    try:
        driven(scene, made.app(small_demo.root), (160, 40))
    finally:
        for pid in demos(small_demo):
            os.kill(pid, signal.SIGKILL)
        made.tidy()


def test_the_demo_is_not_started_while_a_run_is_live(small_demo):
    made = Store(small_demo.runs)
    made.finetune("live", 3, 100, SLEEPER)

    async def scene(pilot):
        pilot.app.action_start_page()
        await until(pilot, lambda: "All of it at once" in text_of(pilot.app) and pilot.app.snapshot.alive)
        await press(pilot, "a", "y")
        assert "a run is under way" in said(pilot.app) and not demos(small_demo)

    try:
        driven(scene, made.app(small_demo.root))
    finally:
        made.tidy()
