"""Processes of a run, from /proc: descendants of a supervisor, or left behind by one. Standard library only.

torchrun starts every worker in its own session, so a run is not one process group. Since the supervisor is a subreaper,
they are all its descendants; after its death they are found by the variable QWEN3VL_RUN_DIR in their environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from console.runs.state import is_here
from qwen3vl_core.run_record import RUN_VARIABLE, StateRecord

PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 10.0
"""How long killed processes may take to end; one that waits for a device or a dead network disk may never end."""


class Process(NamedTuple):
    pid: int
    parent: int
    group: int
    zombie: bool


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children instead of init's. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"PR_SET_CHILD_SUBREAPER: {os.strerror(code)}")


def _numbered() -> Iterable[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _look(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the command's name, in parentheses, may hold anything
    state, parent, group = text.rsplit(")", 1)[1].split()[:3]
    return Process(pid, int(parent), int(group), state in ("Z", "X"))


def descendants(of: int, without: Collection[int] = ()) -> list[Process]:
    """Live descendants of a process, in any session; parents before children. without: processes to leave out, with those below them."""
    children: dict[int, list[Process]] = {}
    for pid in _numbered():
        process = _look(pid)
        if process is not None and pid not in without:
            children.setdefault(process.parent, []).append(process)
    below, queue = [], [of]
    while queue:
        for child in children.get(queue.pop(0), []):
            queue.append(child.pid)
            below.append(child)
    return [p for p in below if not p.zombie]


def strays(run_dir: Path) -> list[Process]:
    """Processes with this run in their environment, without the ancestors of the calling process."""
    wanted, prefix = os.path.realpath(run_dir), f"{RUN_VARIABLE}=".encode()
    own, pid = set(), os.getpid()
    while pid and pid not in own:
        own.add(pid)
        looked = _look(pid)
        pid = looked.parent if looked else 0
    processes = []
    for pid in _numbered():
        try:
            entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in entries:
            if entry.startswith(prefix) and os.path.realpath(os.fsdecode(entry[len(prefix) :])) == wanted:
                looked = _look(pid)
                if looked is not None and not looked.zombie and pid not in own:
                    processes.append(looked)
                break
    return processes


def start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone. Numbers of processes are given again, this pair is not."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has installed a handler for a signal; False if that is unknown."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        caught = next(line for line in text.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    except (OSError, StopIteration, ValueError, IndexError):
        return False


def signal_supervisor(run_dir: Path, state: StateRecord, number: signal.Signals) -> None:
    """Send a signal to the run's supervisor on this machine. A number in a file may be that of any process: its command and its start are
    compared."""
    pid, start = state.get("supervisor_pid"), state.get("supervisor_start")
    if not isinstance(pid, int) or pid <= 1 or not is_here(state):
        return
    with contextlib.suppress(OSError, OverflowError):
        # the process that is looked at is the one that gets the signal
        handle = os.pidfd_open(pid)
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            of_run = any(os.path.realpath(os.fsdecode(word)) == os.path.realpath(run_dir) for word in words if word)
            if b"console.runs.supervisor" in words and of_run and start in (None, start_of(pid)):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def terminate(processes: Iterable[Process]) -> None:
    """Send SIGTERM once to each of their process groups; suspended ones are continued so that they handle it."""
    for group in {p.group for p in processes} - {os.getpgrp(), 0}:
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)


def kill(processes: Iterable[Process]) -> None:
    """Send SIGKILL to each process."""
    send(processes, signal.SIGKILL)


def send(processes: Iterable[Process], *numbers: signal.Signals) -> None:
    """Send these signals to each process; one that has ended is not an error."""
    for process in processes:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def end(look: Callable[[], list[Process]], grace: float) -> list[Process]:
    """End the processes that `look` returns: SIGTERM and, after up to `grace` seconds, SIGKILL. Returns those that survive."""
    left = look()
    send(left, signal.SIGTERM, signal.SIGCONT)
    started = time.monotonic()
    while left and (passed := time.monotonic() - started) < grace + KILL_SECONDS:
        if passed >= grace:
            kill(left)
        time.sleep(0.05)
        left = look()
    return left
