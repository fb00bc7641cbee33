"""The terminal rings when a followed run ends: in a real pseudo terminal, and nowhere else."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from console.bell import sequence
from console.runs import launch
from tests.console.runs import jobs
from tests.console.runs.jobs import ROOT, job


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "settings.yaml"))
    with jobs.run_store(tmp_path / "runs") as made:
        yield made


def seen(words: list[str], terminal: bool, go: Path | None = None, **environment: str) -> bytes:
    """What `qwen3vl runs …` writes to its standard error, a terminal or a pipe. go: a file that is made when it has printed a line."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", "import sys; from console.commands import main; sys.exit(main())", "runs", *words]
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(writer)
    if go is not None:
        child.stdout.readline()
        go.touch()
    data = b""
    while True:
        try:
            piece = os.read(reader, 4096)
        except OSError:  # a terminal whose last process has ended
            break
        if not piece:
            break
        data += piece
    os.close(reader)
    child.communicate()
    assert child.returncode == 0
    return data


def followed(store, terminal=True, **environment) -> bytes:
    run = store.create("finetune", {"name": "x"}, job("print('one', flush=True); " + jobs.UNTIL_GO))
    launch.start(run)
    return seen(["logs", str(run.number), "--follow", "--runs", str(store.root)], terminal, run.path / "go", **environment)


def test_following_a_run_to_its_end_rings_on_a_terminal(store):
    assert sequence("run 0001-x: done").encode() in followed(store)
    assert sequence("run 0001-x: done") == "\x1b]9;run 0001-x: done\x1b\\\a"


def test_nothing_rings_without_a_terminal_or_when_it_is_off(store, tmp_path):
    assert b"\a" not in followed(store, terminal=False)
    assert b"\a" not in followed(store, TERM="dumb")
    assert b"\a" not in followed(store, QWEN3VL_BELL="0")
    (tmp_path / "settings.yaml").write_text("bell: off\n")
    assert b"\a" not in followed(store)


def test_a_run_that_has_ended_before_does_not_ring(store):
    run = store.create("finetune", {"name": "x"}, job("pass"))
    launch.start(run)
    launch.wait(run)
    assert b"\a" not in seen(["logs", "1", "--follow", "--runs", str(store.root)], True)


def test_a_name_cannot_write_escape_codes(store):
    assert sequence("run \x1b]52;c;aGk=\x07 x").count("\x1b") == 2


def test_a_command_in_the_foreground_rings_when_its_run_ends(store):
    run = store.create("finetune", {"name": "x"}, job("sys.exit(9)"))
    launch.start(run)
    launch.wait(run)
    plan = json.loads((run.path / "plan.json").read_text())
    (run.path / "plan.json").write_text(json.dumps({**plan, "command": job("print('one')")}))
    said = seen(["resume", "1", "--foreground", "--runs", str(store.root)], True)
    assert sequence("run 0001-x: done").encode() in said and said.count(b"\a") == 1
