"""How one attempt at a run ended, judged by its record: the exit code alone does not tell a stop from the end. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from console.runs.state import read_json
from console.runs.tail import end_of, last_rows
from qwen3vl_core.errors import EXIT_REQUEST
from qwen3vl_core.run_record import (
    CHECKPOINTS,
    DONE,
    EVENT,
    ITERATION,
    LOG,
    METRICS_FILE,
    NODES,
    RESTART,
    SILENT_SECONDS,
    STOPPED,
    TRAIN,
    VERSION,
    node_text,
)

LOOKED_AT = 256 << 10
"""Bytes at the end of the metrics and of the log that are read."""
# how torchrun names the first process that failed
_FIRST_FAILURE = re.compile(rb"Root Cause \(first observed failure\).*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+) \(pid: (\d+)\)", re.DOTALL)
_FAILURE = re.compile(rb"^\s*rank\s*:\s*(\d+) [^\n]*\n\s*exitcode\s*:\s*(-?\d+) \(pid: (\d+)\)", re.MULTILINE)
_SAVING = re.compile(rf"{ITERATION}\d+\..*\.tmp")


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt."""

    status: str
    """done, stopped or failed."""
    error: str | None = None
    refused: bool = False
    """Whether the training refused its options: another attempt would do so, too."""
    by_signal: bool = False
    """Whether a signal ended the process that failed first, and the exit code alone does not tell."""


class Attempt:
    """One attempt at a run, from now on."""

    def __init__(self, run_dir: Path, total: int | None) -> None:
        """total: steps of a finetune; None for other kinds, which are judged by their exit code."""
        self.run_dir, self.total = run_dir, total
        self._metrics, self._log = _size(run_dir / METRICS_FILE), _size(run_dir / LOG)
        self._kills, self.began = oom_kills(), time.time()

    def outcome(self, exit_code: int | None, stopping: bool, error: str | None = None) -> Outcome:
        """The end of the attempt. stopping: the supervisor was asked to stop. error: of the supervisor itself."""
        event, step = self._last()
        if error is None and self.total is not None and (event == DONE or (not exit_code and step is not None and step >= self.total)):
            # all is saved by then; what happens to a process while it leaves its groups is no failure of the run
            return Outcome("done")
        if stopping or (error is None and event == STOPPED):
            return Outcome("stopped", error)
        if error is None and exit_code == 0 and step is None:
            return Outcome("done")  # another kind, or a node of a cluster job whose record is on the first node
        if error is None and exit_code == 0:
            return Outcome("failed", f"ended without an error after step {step} of {self.total}, before its last step")
        rank, code, pid = self._first_failure()
        if code is None:
            code = exit_code
            who = ""
        else:
            who = f"rank {rank} (process {pid}) "
        if error is None and (silent := silent_nodes(self.run_dir, self.began)):
            return Outcome("failed", silent, by_signal=True)
        signalled = _signal_text(who, code, oom_kills() - self._kills) if error is None and code is not None else None
        return Outcome("failed", error or signalled, refused=code == EXIT_REQUEST, by_signal=signalled is not None and code != exit_code)

    def _last(self) -> tuple[str | None, int | None]:
        """(the last event, the last step) in the rows of this attempt."""
        size = min(_size(self.run_dir / METRICS_FILE) - self._metrics, LOOKED_AT)
        event = step = None
        for row in last_rows(self.run_dir / METRICS_FILE, size + 1) if size > 0 else ():
            if row.get("kind") == EVENT and isinstance(row.get("event"), str):
                event = row["event"]
            if row.get("kind") in (EVENT, TRAIN) and isinstance(row.get("step"), int):
                step = row["step"]
        return event, step

    def _first_failure(self) -> tuple[int | None, int | None, int | None]:
        """(rank, exit code, process) of the process that failed first, as torchrun says; signals are negative."""
        size = _size(self.run_dir / LOG)
        # a log that was rotated since is shorter than it was
        data, _ = end_of(self.run_dir / LOG, min(size - self._log if size >= self._log else size, LOOKED_AT))
        failures = list(_FIRST_FAILURE.finditer(data))
        if not failures:
            return None, None, None
        rank, code, pid = map(int, failures[-1].groups())
        # a rank that lost its connection to a killed one may be seen to fail before it; SIGTERM is torchrun's own, to the others
        for match in _FAILURE.finditer(data):
            if int(match[2]) < 0 and int(match[2]) != -signal.SIGTERM:
                rank, code, pid = map(int, match.groups())
        return rank, code, pid


def silent_nodes(run_dir: Path, since: float) -> str:
    """One line about the machines that have stopped answering, as the attempt that began at `since` has written; else empty."""
    record = read_json(run_dir / NODES)
    when, nodes = record.get("time"), record.get("nodes")
    if not isinstance(when, int | float) or when < since or not isinstance(nodes, list):
        return ""
    quiet = [entry for entry in nodes if isinstance(entry, dict) and isinstance(entry.get("quiet"), int | float)]
    return "; ".join(node_text(entry) for entry in quiet if entry["quiet"] >= SILENT_SECONDS or entry.get("silent") is True)


def _signal_text(who: str, code: int, kills: int) -> str | None:
    """What ended a process by a signal, and the likely cause."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return None
    if number == signal.SIGKILL and kills > 0:
        return f"{who}ended by {name}, most likely by the kernel for lack of memory (its OOM killer ran)"
    return f"{who}ended by {name}"


def oom_kills() -> int:
    """Processes that the kernel's OOM killer has ended: in this control group where that is known, else on the machine."""
    for path, key in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                name, value = line.split()[:2]
                if name == key:
                    return int(value)
    return 0


def record_restart(run_dir: Path, text: str) -> None:
    """Append the event to the metrics. Only while no process of the run is left, as the training is the writer otherwise."""
    file = run_dir / METRICS_FILE
    rows = last_rows(file)
    step = next((row["step"] for row in reversed(rows) if isinstance(row.get("step"), int)), 0)
    row = {"v": VERSION, "step": step, "time": round(time.time(), 3), "kind": EVENT, "event": RESTART, "text": text}
    with contextlib.suppress(OSError), open(file, "ab") as stream:
        ends_a_line = end_of(file, 1)[0] in (b"", b"\n")
        stream.write((b"" if ends_a_line else b"\n") + json.dumps(row, ensure_ascii=False).encode() + b"\n")


class Saves:
    """Whether a checkpoint of the run is being written."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / CHECKPOINTS
        self._old = set(self._building())
        self._seen: object = None
        self._changed = 0.0

    def _building(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.folder) if _SAVING.fullmatch(name)]
        except OSError:
            return []

    def quiet_seconds(self) -> float | None:
        """Seconds since the last change in the folder of a checkpoint that is being written, or removed; None when there is none.

        Folders that a killed attempt has left do not count.
        """
        names = [name for name in self._building() if name not in self._old]
        if not names:
            self._seen = None
            return None
        seen = [(name, _content(self.folder / name)) for name in sorted(names)]
        if seen != self._seen:
            self._seen, self._changed = seen, time.monotonic()
        return time.monotonic() - self._changed


def _content(folder: Path) -> list[tuple[str, int, int]]:
    files = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                stat = entry.stat(follow_symlinks=False)
                files.append((entry.name, stat.st_size, stat.st_mtime_ns))
    return sorted(files)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
