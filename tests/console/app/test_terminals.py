"""The console as a process on a real terminal: colours of old terminals, and a killed console."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from console.runs import launch
from tests.console.app.driving import PATIENCE, SLEEPER
from tests.console.runs.jobs import ROOT, until


class Terminal:
    """A console on its own pseudo terminal."""

    def __init__(self, store, size=(100, 30), **environment):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        env = {k: v for k, v in os.environ.items() if k not in ("COLORTERM", "NO_COLOR")} | {"PYTHONPATH": str(ROOT)} | environment
        words = [sys.executable, "-m", "qwen3vl_core.cli", "console", "--runs", str(store.root)]
        self.process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def until(self, text: bytes):
        end = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < end and self.process.poll() is None, self.seen[-2000:]
            self.read()

    def read(self):
        """What the console has drawn since the last call; answers terminal queries."""
        if select.select([self.master], [], [], 0.2)[0]:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:  # the other end was closed
                return
            self.seen += data
            if b"\x1b[c" in data:
                os.write(self.master, b"\x1b[?62c")

    def left(self) -> int:
        """Wait for the end while reading, because a console whose output is not read blocks. Returns the exit code."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, self.seen[-2000:]
            self.read()
        return self.process.returncode


@pytest.mark.parametrize("term, colour, never", [
    ("xterm-256color", rb"[34]8;5;\d+", rb"[34]8;2;\d+"),
    ("xterm-16color", rb"\x1b\[(?:\d+;)*(?:3|4|9|10)\d(?:;\d+)*m", rb"[34]8;[25];\d+"),
])  # fmt: skip
def test_an_old_terminal_gets_the_colours_that_it_supports(store, term, colour, never):
    store.ended(store.finetune("one", 20))
    store.ended(store.finetune("broken", 3), "failed", 1)
    with Terminal(store, TERM=term) as terminal:
        terminal.until(b"0001-one")
        terminal.until(b"keys")
        assert re.search(colour, terminal.seen) and not re.search(never, terminal.seen)
        if term == "xterm-16color":
            text = terminal.seen.decode(errors="replace")
            assert re.search(r"\x1b\[[\d;]*9?[39]1[\d;]*m✗", text) and re.search(r"\x1b\[[\d;]*[39]2[\d;]*m✓", text), "red and green"
        os.write(terminal.master, b"\x11")
        assert terminal.left() == 0


def test_a_run_survives_a_killed_console_and_the_next_one_finds_it(store):
    run = store.finetune("goes on", 20, 100, SLEEPER)
    with Terminal(store, TERM="xterm-256color") as terminal:
        terminal.until(b"0001-goes-on")
        os.killpg(terminal.process.pid, signal.SIGKILL)
    assert run.status == "running"
    row = store.app().watcher.look().get(run.id)
    assert row.alive and row.step == 20
    pids = [run.state["pid"], run.state["supervisor_pid"]]
    launch.stop(run)
    assert launch.wait(run, 150) == "stopped"
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


@pytest.mark.parametrize("rings", [True, False])
def test_the_terminal_rings_when_a_run_that_was_opened_ends_unless_that_is_off(store, rings):
    run = store.finetune("opened", 20, 100, SLEEPER)
    with Terminal(store, TERM="xterm-256color", QWEN3VL_BELL="1" if rings else "0") as terminal:
        terminal.until(b"0001-opened")
        os.write(terminal.master, b"\r")  # the monitor follows it
        terminal.until(b"Monitor")
        before = len(terminal.seen)
        launch.stop(run)
        assert launch.wait(run, 150) == "stopped"
        if rings:
            terminal.until(b"\x1b]9;run 0001-opened: stopped\x1b\\\x07")
        else:
            terminal.until(b"stopped")
        os.write(terminal.master, b"\x11")
        assert terminal.left() == 0
        assert rings or b"\x1b]9;" not in terminal.seen[before:]
