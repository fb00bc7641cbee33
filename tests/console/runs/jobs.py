"""Small real processes that stand in for trainings, and helpers to wait for them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from console.runs import launch, processes
from console.runs.store import Run, RunStore
from qwen3vl_core.run_record import ALIVE, QUEUED

T = TypeVar("T")
ROOT = Path(__file__).parents[3]

# the start of every job: its folder, and notes for the test that are written atomically
_BEGIN = """
import os, pathlib, signal, subprocess, sys, time
here = pathlib.Path(os.environ['QWEN3VL_RUN_DIR'])
def note(name, text=''):
    (here / (name + '.part')).write_text(str(text)); os.replace(here / (name + '.part'), here / name)
def until(name):
    while not (here / name).exists(): time.sleep(0.01)
"""

UNTIL_GO = "note('up'); until('go'); print('gone on')"
EXITS_3 = "print('no luck'); sys.exit(3)"
SLEEPS = "note('up'); time.sleep(600)"
IGNORES_TERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('up', os.getpid()); time.sleep(600)"


def job(program: str) -> list[str]:
    """Command of a job: one of the programs above or any other."""
    return [sys.executable, "-S", "-c", _BEGIN + program]


def spawning(program: str, then: str) -> str:
    """A job that starts a second one in a new session, as torchrun does with its workers."""
    return f"subprocess.Popen([sys.executable, '-S', '-c', {_BEGIN + program!r}], start_new_session=True)\n{then}"


def until(condition: Callable[[], T], seconds: float = 120.0) -> T:
    """Wait until the condition holds and return its value; fails after a timeout long enough for a busy machine."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)
    return value


def pid_noted(run: Run, name: str) -> int:
    """The process id that a job wrote under this name; waits for it."""
    until((run.path / name).exists)
    return int((run.path / name).read_text())


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def run_store(root: Path) -> Iterator[RunStore]:
    """A store whose runs and all their processes are ended when the block ends."""
    store = RunStore(root)
    try:
        yield store
    finally:
        for run in store.list():
            state = run.state
            if state["status"] == QUEUED:
                launch.stop(run)
                until(lambda run=run: not run.alive)
            elif state["status"] in ALIVE and state.get("supervisor_pid"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state["supervisor_pid"], signal.SIGTERM)
                until(lambda run=run: not run.alive)
            processes.end(lambda run=run: processes.strays(run.path), 0)
