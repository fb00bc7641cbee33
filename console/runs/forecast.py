"""When GPUs are free, as far as the records of the runs tell: the words for a queued run, and what a GPU does over time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from console.runs.pace import seconds_left
from console.runs.queue import Queue, QueueEntry, look, wanted
from console.runs.store import Run, RunStore
from qwen3vl_core.formats import duration
from qwen3vl_core.language import filled
from qwen3vl_core.layout.gpus import GpuUse, named, uses
from qwen3vl_core.options import to_mapping
from qwen3vl_core.run_record import HOLDING, QUEUED, finite

NAMED = 4
"""Runs and GPUs that a line names."""


@dataclass(frozen=True)
class PlannedStart:
    """When a queued run starts and ends, in seconds from now; infinity: unknown."""

    entry: QueueEntry
    gpus: tuple[str, ...]
    """Those that it will have; empty if that is unknown."""
    start: float
    end: float


def lengths(queue: Queue, runs: list[Run]) -> dict[str, float]:
    """Seconds that each run of the queue, holders included, still needs, by id; without those that are unknown. runs: all, newest first."""
    found = {}
    for run in {run.id: run for run in (*(run for _, run in queue.holders), *(entry.run for entry in queue.entries))}.values():
        seconds = seconds_left(run, runs)
        if seconds is not None and math.isfinite(seconds):
            found[run.id] = seconds
    return found


def schedule(queue: Queue, left: dict[str, float], machine: Sequence[GpuUse] = ()) -> list[PlannedStart]:
    """When each entry starts if nothing changes, in the order of the queue.

    left: of `lengths`; machine: the GPUs of this machine, if they are known: others may use one.
    """
    others = {gpu.index for gpu in machine if not gpu.free} - {gpu for gpu, _ in queue.holders}
    free_at = {gpu.index: 0.0 if gpu.free else math.inf for gpu in machine}
    for gpu, run in queue.holders:
        free_at[gpu] = left.get(run.id, math.inf)
    planned = []
    for entry in queue.entries:
        if not entry.here or entry.held or others & set(entry.gpus):
            planned.append(PlannedStart(entry, entry.gpus, math.inf, math.inf))
            continue
        chosen = entry.gpus or tuple(sorted(free_at, key=lambda gpu: (free_at[gpu], gpu))[: entry.count])
        start = max((free_at.get(gpu, 0.0) for gpu in chosen), default=math.inf)
        end = start + left.get(entry.run.id, math.inf)
        planned.append(PlannedStart(entry, chosen, start, end))
        free_at |= dict.fromkeys(chosen, end)
    return planned


def waits_for(queue: Queue, entry: QueueEntry, runs: list[Run], machine: Sequence[GpuUse] = (), *, estimate: bool = True) -> str:
    """What a queued run waits for: `GPUs 4 to 7 are free in about 2:10, when 0007 ends`.

    runs: all of the store, for estimates; machine: the GPUs of this machine, if they are known; estimate: say how long.
    """
    if entry.held:
        return filled("held back; qwen3vl runs queue {} --release lets it start", entry.run.number)
    if not entry.here:
        return "queued on another machine"
    if not entry.attended:
        return "nobody waits for its GPUs; qwen3vl runs queue --resume goes on"
    holders, ahead = queue.held_gpus, queue.entries[: (queue.place(entry.run.id) or 1) - 1]
    others = {gpu.index: gpu for gpu in machine if not gpu.free and gpu.index not in holders}
    absent = [gpu for gpu in entry.gpus if machine and gpu not in {item.index for item in machine}]
    if absent:
        return filled("this machine has no {}", named(absent))
    gpus = entry.gpus or tuple(dict.fromkeys((*holders, *others)))
    what = named(entry.gpus) if entry.gpus else _any(entry.count)
    verb = "is" if entry.count == 1 else "are"
    if strangers := [others[gpu] for gpu in gpus if gpu in others]:
        users = ", ".join(f"GPU {gpu.index} by {gpu.words}" for gpu in strangers[:NAMED])
        return filled(f"{{}} {verb} in use, {{}}", what, users)
    blocking = [
        other for other in ahead
        if other.here and not other.held and other.attended and _meet(other, entry) and not others.keys() & set(other.gpus)
    ]  # fmt: skip
    last = [other.run for other in blocking[-1:]] or list(dict.fromkeys(holders[gpu] for gpu in gpus if gpu in holders))
    if not last:
        return filled(f"{{}} {verb} free soon", what)
    plan = schedule(queue, lengths(queue, runs), machine) if estimate else []
    start = next((item.start for item in plan if item.entry.run.id == entry.run.id), math.inf)
    numbers = [run.id.partition("-")[0] for run in last[:NAMED]]
    end = "ends" if len(numbers) == 1 else "end"
    if 0 < start < math.inf:
        return filled(f"{{}} {verb} free in about {{}}, when {{}} {end}", what, duration(start), " and ".join(numbers))
    return filled(f"{{}} {verb} free when {{}} {end}", what, " and ".join(numbers))


def _any(count: int) -> str:
    return "one GPU" if count == 1 else f"{count} GPUs"


def _meet(one: QueueEntry, other: QueueEntry) -> bool:
    """Whether two entries may want the same GPU."""
    return not one.gpus or not other.gpus or bool(set(one.gpus) & set(other.gpus))


def past(run: Run, now: float) -> tuple[float, float] | None:
    """From when to when a run had its GPUs, in Unix seconds; None if it never started."""
    state = run.state
    begin, end = finite(state.get("started")), finite(state.get("ended"))
    if begin is None:
        return None
    if state["status"] in HOLDING:
        return begin, now
    return (begin, end) if end is not None else None


def words_of(run: Run) -> str:
    """`waits_for` of a run, by a look at its store and the GPUs; empty if it is not queued. Raises RequestError."""
    if run.status != QUEUED:
        return ""
    queue = look(run.path.parent)
    entry = queue.get(run.id)
    return waits_for(queue, entry, RunStore(run.path.parent).list(), uses()) if entry is not None else ""


def before_start(root: Path, options: Any) -> str:
    """What a finetune with these options would wait for; empty if it would start at once. Raises RequestError."""
    here = uses()
    own = wanted(to_mapping(options), here)
    if own is None or options.queue == "never":
        return ""
    queue = look(root)
    entry = QueueEntry(Run(root / "new"), *own, time.time(), False, True, True)
    waiting = replace(queue, entries=(*queue.entries, entry))
    if waiting.granted("new", [gpu.index for gpu in here if gpu.free]) is not None:
        return ""
    return waits_for(waiting, entry, RunStore(root).list(), here)
