"""Reads what GPUs did, do and will do, and who waits for them. Blocking: threads call it; imports no Textual."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from console.runs import forecast, queue
from console.runs.store import Run, RunStore
from qwen3vl_core.layout.gpus import GpuUse, uses
from qwen3vl_core.run_record import ENDED

ENDED_RUNS = 60
"""Newest runs of which ended ones are drawn."""
PAST, LIVE, WAITING, OTHER = "past", "live", "waiting", "other"
"""What a bar is: of a run that has ended, works, or waits; of another process."""


@dataclass(frozen=True)
class TimeBar:
    """What a GPU does from when to when, in seconds from now."""

    kind: str
    begin: float
    end: float
    """Infinity: unknown."""
    run_id: str = ""


@dataclass(frozen=True)
class WaitingRun:
    """A line of the queue."""

    run: Run
    gpus: tuple[str, ...]
    count: int
    held: bool
    words: str
    start: float
    """Seconds until it starts; infinity: unknown."""


@dataclass(frozen=True)
class GpuTimes:
    """A look at the queue and the GPUs of this machine."""

    rows: tuple[tuple[str, tuple[TimeBar, ...]], ...] = ()
    """(index, bars) of each GPU."""
    waiting: tuple[WaitingRun, ...] = ()
    """In the order of the queue."""


def read(root: Path) -> GpuTimes:
    """Look at a store and the GPUs. Raises RequestError when the store cannot be read."""
    return seen_now(queue.look(root), RunStore(root).list(), uses(), time.time())


def seen_now(seen: queue.Queue, runs: list[Run], machine: list[GpuUse], now: float) -> GpuTimes:
    """What is known at a moment, in Unix seconds. runs: of the store, newest first."""
    left = forecast.lengths(seen, runs)
    plan = forecast.schedule(seen, left, machine)
    names = [gpu.index for gpu in machine] or sorted({gpu for gpu, _ in seen.holders} | {gpu for e in seen.entries for gpu in e.gpus})
    bars: dict[str, list[TimeBar]] = {name: [] for name in names}

    def add(gpus: Iterable[str], bar: TimeBar) -> None:
        for gpu in gpus:
            if gpu in bars:
                bars[gpu].append(bar)

    for run in runs[:ENDED_RUNS]:
        state = run.state
        span = forecast.past(run, now)
        if span is not None and state["status"] in ENDED:
            add(queue.gpus_of(state), TimeBar(PAST, span[0] - now, min(span[1] - now, 0.0), run.id))
    for gpu, run in seen.holders:
        span = forecast.past(run, now)
        add((gpu,), TimeBar(LIVE, span[0] - now if span is not None else 0.0, left.get(run.id, math.inf), run.id))
    for item in plan:
        if math.isfinite(item.start):
            add(item.gpus, TimeBar(WAITING, item.start, item.end, item.entry.run.id))
    held = seen.held_gpus
    for device in machine:
        if not device.free and device.index not in held:
            bars[device.index].append(TimeBar(OTHER, 0.0, math.inf))
    waiting = tuple(
        WaitingRun(item.entry.run, item.entry.gpus, item.entry.count, item.entry.held,
                   forecast.waits_for(seen, item.entry, runs, machine), item.start)
        for item in plan
    )  # fmt: skip
    return GpuTimes(tuple((name, tuple(bars[name])) for name in names), waiting)
