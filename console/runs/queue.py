"""The queue of a store: the runs that wait for GPUs, their order, and which runs hold GPUs. Standard library only.

A queued run is a run whose state says so, with a supervisor that waits. The store's `queue.json` holds only what people change, the order
and who is held back, so that without it, or after a crash, no entry is missing. A run takes its GPUs, and the order changes, under
`queue.lock` alone; the kernel releases it however its holder ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.runs import processes
from console.runs.state import STALE_SECONDS, host, is_here, judge, lock_held, locked_file, read_json, read_state, sign_of_life, write_json
from console.runs.store import Run, RunStore
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import filled
from qwen3vl_core.layout.gpus import FREE, VISIBLE, GpuUse
from qwen3vl_core.progress import ENVIRONMENT as PROGRESS_VARIABLE
from qwen3vl_core.run_record import ENDED, HOLDING, QUEUE, QUEUE_LOCK, QUEUED, RUN_VARIABLE, STATE, VERSION, StateRecord, finite

FIRST, LAST, UP, DOWN, HOLD, RELEASE = "first", "last", "up", "down", "hold", "release"
CHANGES = (FIRST, LAST, UP, DOWN, HOLD, RELEASE)
"""What can be done with an entry."""
WAITS = "--queued"
"""Of the supervisor: the run is queued, and waits on."""
SUPERVISOR = f"{__package__}.supervisor"
"""The module of a process of its own, which this one does not import: supervisors start each other."""
LOST, STARTING = "lost", "starting"
DIGITS = 5
LIST_SECONDS = 30.0
"""How long a rough look uses the list of runs while the modification time of the store's folder does not change."""
LOCK_SECONDS = 30.0
"""For the lock, which its holders keep for milliseconds."""


@dataclass(frozen=True)
class QueueEntry:
    """A run that waits for GPUs."""

    run: Run
    gpus: tuple[str, ...]
    """Those that it waits for; empty if it takes any."""
    count: int
    """How many it takes."""
    since: float
    held: bool
    """It does not start until it is released."""
    attended: bool
    """Whether a supervisor waits for its GPUs."""
    here: bool
    """Whether it waits for GPUs of this machine."""


@dataclass(frozen=True)
class Queue:
    """A look at a store: who waits, in order, and which run of this machine holds which GPU."""

    entries: tuple[QueueEntry, ...] = ()
    holders: tuple[tuple[str, Run], ...] = ()
    """(GPU, run) of every GPU that a live run of this store holds."""

    @property
    def held_gpus(self) -> dict[str, Run]:
        return dict(self.holders)

    def get(self, run_id: str) -> QueueEntry | None:
        return next((entry for entry in self.entries if entry.run.id == run_id), None)

    def place(self, run_id: str) -> int | None:
        """1 for the next one; None for a run that is not queued."""
        return next((place for place, entry in enumerate(self.entries, 1) if entry.run.id == run_id), None)

    def granted(self, run_id: str, free: Collection[str]) -> tuple[str, ...] | None:
        """The GPUs that a run may take now; None: it has to wait.

        free: GPUs of this machine that nobody uses. Entries before it come first: GPUs that one of them waits for are kept for it, also
        while others of its GPUs are in use by runs, so that a run of many GPUs is not passed over for ever. One that waits for GPUs that
        processes outside of the store use keeps nothing: nobody knows how long that takes.
        """
        taken = self.held_gpus
        left = [gpu for gpu in free if gpu not in taken]
        for entry in self.entries:
            if not entry.here or (entry.run.id != run_id and (entry.held or not entry.attended)):
                continue
            if entry.run.id != run_id and any(gpu not in free and gpu not in taken for gpu in entry.gpus):
                continue
            if entry.gpus:
                got = entry.gpus if set(entry.gpus) <= set(left) else ()
                kept: Collection[str] = entry.gpus
            else:
                got = tuple(left[: entry.count]) if len(left) >= entry.count else ()
                kept = got or left
            if entry.run.id == run_id:
                return got if got and not entry.held else None
            left = [gpu for gpu in left if gpu not in kept]
        return None


def wanted(options: Mapping[str, Any], uses: Sequence[GpuUse]) -> tuple[tuple[str, ...], int] | None:
    """(GPUs, their number) that a finetune with these options takes on a machine with these GPUs; without names it takes any. None if it
    takes none of this machine's, or a cluster chooses them."""
    if not uses or options.get("env") == "dlc" or (os.environ.get(VISIBLE) or "").startswith("MIG-"):
        return None
    most, ids = _count(options.get("nproc"), 0), options.get("gpu_ids")
    if isinstance(ids, str) and ids.strip() == FREE:
        return (), most or _count(options.get("tp")) * _count(options.get("pp")) * _count(options.get("cp"))
    names = [word.strip() for word in ids.split(",")] if isinstance(ids, str) and ids else [gpu.index for gpu in uses]
    gpus = tuple(names[: most or None])
    return gpus, len(gpus)


def _count(value: object, default: int = 1) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def texts(value: object) -> tuple[str, ...]:
    """The strings of a list of a record."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def gpus_of(state: StateRecord) -> tuple[str, ...]:
    """The GPUs that a run holds or waits for; numbers only, as the file may be that of another user."""
    return tuple(gpu for gpu in texts(state.get("gpus")) if gpu.isdecimal() and len(gpu) < DIGITS)


def not_begun(state: StateRecord) -> bool:
    """Whether a run had just got its GPUs when its supervisor ended, before there was a process of it: it is still an entry."""
    took_gpus = state.get("status") == STARTING and finite(state.get("queued")) is not None
    return took_gpus and state.get("pid") is None and not state.get("restarts")


class QueueReader:
    """Looks at a store again and again; states of ended runs are read once."""

    def __init__(self, root: Path) -> None:
        self.store = RunStore(root)
        self._ended: dict[str, tuple[int, int]] = {}
        self._runs: list[tuple[Run, str]] = []
        self._listed = (0, 0.0)

    def _list(self, roughly: bool) -> list[tuple[Run, str]]:
        """(run, path of its state) of all runs."""
        try:
            changed = os.stat(self.store.root).st_mtime_ns
        except OSError:
            changed = 0
        if not roughly or changed != self._listed[0] or time.monotonic() - self._listed[1] > LIST_SECONDS:
            self._runs = [(run, str(run.path / STATE)) for run in self.store.list()]
            self._listed = (changed, time.monotonic())
        return self._runs

    def look(self, roughly: bool = False) -> Queue:
        """Who waits and who holds GPUs now. roughly: a run that was created within a moment of the last look may be missing, so nothing is
        decided by it; it takes a fraction of the time in a store of thousands of runs."""
        entries, holders = [], []
        record = read_json(self.store.root / QUEUE)
        order, held = {run_id: place for place, run_id in enumerate(texts(record.get("order")))}, set(texts(record.get("held")))
        for run, file in self._list(roughly):
            try:
                stat = os.stat(file)
            except OSError:
                continue
            stamp = (stat.st_ino, stat.st_mtime_ns)
            if self._ended.get(run.id) == stamp:
                continue
            status, state = judge(run.path)
            if status in ENDED:
                self._ended[run.id] = stamp
            elif status == QUEUED or (status == LOST and not_begun(state)):
                entries.append(_entry(run, state, run.id in held))
            elif is_here(state) and (gpus := gpus_of(state)) and (status in HOLDING or processes.strays(run.path)):
                # of a lost run: its processes are still there
                holders += [(gpu, run) for gpu in gpus]
        entries.sort(key=lambda entry: (order.get(entry.run.id, len(order)), entry.since, entry.run.number))
        return Queue(tuple(entries), tuple(holders))


def _entry(run: Run, state: StateRecord, held: bool) -> QueueEntry:
    gpus, count = gpus_of(state), state.get("any_gpus")
    here = state.get("host") == host()
    locked = lock_held(run.path) if here else None
    if locked is None:
        age = sign_of_life(run.path)
        locked = age is not None and age <= STALE_SECONDS
    any_count = count if isinstance(count, int) and count > 0 else 1
    return QueueEntry(run, gpus, len(gpus) or any_count, finite(state.get("queued")) or 0.0, held, locked, here)


def look(root: Path) -> Queue:
    """Who waits and who holds GPUs in a store. Raises RequestError when the store cannot be read."""
    return QueueReader(root).look()


@contextlib.contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold the store's queue lock inside the block. Raises RequestError where there are no locks, WorkError if it does not come free."""
    busy = WorkError(filled("{}: another process has held it for {:.0f} s; try again", root / QUEUE_LOCK, LOCK_SECONDS))
    no_locks = RequestError(filled("{}: this file system has no file locks; choose another folder with --runs", root))
    with locked_file(root / QUEUE_LOCK, LOCK_SECONDS, busy, no_locks, 0o666):
        yield


def change(run: Run, what: str) -> Queue:
    """Move an entry (first, last, up, down), hold it back or release it. Returns the queue; raises RequestError for a run that is not
    queued."""
    root = run.path.parent
    with lock(root):
        queue = look(root)
        ids = [entry.run.id for entry in queue.entries]
        held = {entry.run.id for entry in queue.entries if entry.held}
        if run.id not in ids:
            raise RequestError(filled("run {}: {}; only queued runs have a place in the queue", run.id, run.status))
        at = ids.index(run.id)
        if what in (HOLD, RELEASE):
            (held.add if what == HOLD else held.discard)(run.id)
        else:
            ids.remove(run.id)
            ids.insert({FIRST: 0, LAST: len(ids), UP: max(at - 1, 0), DOWN: at + 1}[what], run.id)
        write_json(root / QUEUE, {"v": VERSION, "order": ids, "held": [run_id for run_id in ids if run_id in held]})
        queue = look(root)
    wake(queue)
    return queue


def forget(root: Path, run_id: str) -> None:
    """Take a run out of the order; only for the holder of the lock."""
    record = read_json(root / QUEUE)
    if any(run_id in texts(record.get(name)) for name in ("order", "held")):
        kept = {name: [other for other in texts(record.get(name)) if other != run_id] for name in ("order", "held")}
        write_json(root / QUEUE, {"v": VERSION, **kept})


def wake(queue: Queue) -> None:
    """Have the waiting supervisors of this machine look at once; they look every few seconds anyway."""
    for entry in queue.entries:
        if entry.here and entry.attended:
            processes.signal_supervisor(entry.run.path, read_state(entry.run.path), signal.SIGCHLD)


def unattended(queue: Queue, everywhere: bool = False) -> list[Run]:
    """Queued runs of this user for which no supervisor waits. everywhere: also those that were queued on another machine."""
    return [entry.run for entry in queue.entries if not entry.attended and (entry.here or everywhere) and _own(entry.run)]


def _own(run: Run) -> bool:
    with contextlib.suppress(OSError):
        return run.path.lstat().st_uid == os.geteuid()
    return False


def attend(run: Run) -> subprocess.Popen[bytes]:
    """Start a supervisor that waits for the GPUs of a queued run; if there is one already, the new one ends. Returns its starter."""
    from console.runs.plan_record import python_path  # imports the options' declarations, which a list of runs does not need

    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    environment["PYTHONPATH"] = python_path(environment.get("PYTHONPATH", ""))
    environment[PROGRESS_VARIABLE] = "lines"
    return subprocess.Popen(
        [sys.executable, "-P", "-m", SUPERVISOR, str(run.path), WAITS],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip


def go_on(root: Path, everywhere: bool = False) -> list[Run]:
    """Let queued runs go on for which no supervisor waits, as after a reboot. Returns them. Raises RequestError."""
    runs = unattended(look(root), everywhere) if root.is_dir() else []
    for starter in [attend(run) for run in runs]:
        starter.wait()
    return runs
