"""The demo's loop, run with the console's keys in a real terminal (tmux); both captions are read from the screen."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3vl_core.demo import workspace as demo

TMUX = shutil.which("tmux")
ROOT = Path(__file__).parents[2]
WIDE, HIGH = 130, 40
PATIENCE = 400.0
TRAINING = {"train_iters": 4, "global_batch_size": 4, "micro_batch_size": 2, "lr_warmup_iters": 1}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(TMUX is None, reason="tmux is not installed: apt-get install tmux")]


class Terminal:
    """A separate tmux server with one window, in which the console runs."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.tmux = [TMUX, "-u", "-S", str(folder / "socket"), "-f", "/dev/null"]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8", "COLORTERM": "truecolor", "HOME": str(folder),
        }  # fmt: skip
        environment.pop("TMUX", None)
        command = [*self.tmux, "new-session", "-d", "-x", str(WIDE), "-y", str(HIGH), "--", *words]
        subprocess.run(command, env=environment, check=True, timeout=150)
        # what the program printed stays to be read when it ends too early
        self.run("set-option", "-g", "remain-on-exit", "on")

    def run(self, *words: str) -> str:
        return subprocess.run([*self.tmux, *words], capture_output=True, text=True, check=False, timeout=150).stdout

    def screen(self) -> str:
        """The text on the screen."""
        return self.run("capture-pane", "-p")

    def type(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def left(self) -> str:
        """Wait until the program has ended and released the terminal. Returns the text that it left.

        tmux is asked for the pane's state: the line "Pane is dead" stays out for ever when tmux misses the signal of its child's end.
        """
        end = time.monotonic() + PATIENCE
        while self.run("list-panes", "-F", "#{pane_dead}").strip() != "1":
            assert time.monotonic() < end, f"did not end\n{self.screen()}"
            time.sleep(0.2)
        return self.screen()

    def until(self, *wanted: str, but: str = r"✗ failed|Traceback|Pane is dead") -> str:
        """Wait until the screen matches all of these patterns. Returns its text."""
        end = time.monotonic() + PATIENCE
        while True:
            text = self.screen()
            if all(re.search(pattern, text) for pattern in wanted):
                return text
            assert not re.search(but, text), text
            assert time.monotonic() < end, f"did not come: {wanted}\n{text}"
            time.sleep(0.2)


@pytest.fixture
def terminal(tmp_path, monkeypatch) -> Iterator[Terminal]:
    monkeypatch.setattr(demo, "TRAIN_SCENES", 16)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 2)
    monkeypatch.setattr(demo, "FINETUNE", demo.FINETUNE | TRAINING)
    place = demo.Workspace(tmp_path / "demo")
    place.make()
    words = [sys.executable, "-m", "qwen3vl_core.cli", "console", "--runs", str(place.runs), "--workspace", str(place.root)]
    made = Terminal(tmp_path, words)
    yield made
    made.run("kill-server")


def captions(screen: str) -> tuple[str, str]:
    """Both captions, as shown between the borders of their boxes."""
    lines = screen.splitlines()
    top = next(number for number, line in enumerate(lines) if "base ·" in line and "tuned ·" in line)
    edges = [place for place, character in enumerate(lines[top]) if character in "╭╮"][-4:]
    parts: tuple[list[str], list[str]] = ([], [])
    for line in lines[top + 1 :]:
        if "╰" in line:
            break
        for part, (left, right) in zip(parts, (edges[:2], edges[2:]), strict=True):
            part.append(re.sub("[▁-▐]", " ", line[left + 1 : right]))  # the scroll bar is drawn in blocks
    base, tuned = (" ".join(" ".join(part).split()) for part in parts)
    return base, tuned


def test_the_demo_is_run_by_keys_and_two_captions_are_on_screen(terminal, tmp_path):
    runs = tmp_path / "demo" / "runs"
    terminal.until("The loop, step by step", "▸ +Prepare", "· +Compare")
    stages = [("0001-prepare", "source"), ("0002-convert", "target"), ("0003-demo", "train-data"), ("0004-convert", "target")]
    for place, (run, field) in enumerate(stages):
        terminal.type("Enter")
        terminal.until(rf"\b{field}\b", r"ctrl\+g start")
        terminal.type("C-g")
        terminal.until("Start this ")
        terminal.type("y")
        # the console goes to the run's own page
        terminal.until(run, r"✓ done")
        terminal.type("0")
        terminal.until("The loop, step by step", *[r"✓ +(Prepare|Convert|Finetune)"] * bool(place), but="✗ failed|Traceback")
    terminal.until("✓ +Convert back", "▸ +Compare")
    terminal.type("Enter")
    terminal.until("temperature", "Describe this image", r"ctrl\+g start")
    terminal.type("C-g")
    terminal.until("Start this compare")
    terminal.type("y")
    screen = terminal.until("Picture 1/2", "2 with both captions", r"base · \d+ words", r"tuned · \d+ words", "✓ done")
    base, tuned = captions(screen)
    rows = [json.loads(line) for line in (runs / "0005-compare" / "samples.jsonl").read_text().splitlines()]
    for model, seen in (("base", base), ("tuned", tuned)):
        written = next(row["text"] for row in rows if row["model"] == model and row["done"])
        assert " ".join(written.split())[:60] in seen, (model, screen)
    # a vote, the next picture, and out: the runs are there afterwards
    terminal.type("]")
    terminal.until("★ tuned")
    terminal.type("Right")
    terminal.until("Picture 2/2")
    terminal.type("q")
    assert "Traceback" not in terminal.left()
    votes = json.loads((runs / "0005-compare" / "votes.json").read_text())["votes"]
    assert list(votes.values()) == ["tuned"]
    assert [json.loads((run / "state.json").read_text())["status"] for run in sorted(runs.iterdir())] == ["done"] * 5
