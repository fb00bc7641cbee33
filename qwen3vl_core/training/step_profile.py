"""Which kernels a few steps of a run launch, and how long each takes: for benchmarks and for work on the kernels.

`QWEN3VL_PROFILE_STEPS=31:2 qwen3vl finetune ...` profiles two steps from step 31 on and writes them into the run's folder.
The profiled steps are slower than the others: Python is, the kernels are not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from qwen3vl_core.errors import RequestError
from qwen3vl_core.run_record import PROFILE

VARIABLE = "QWEN3VL_PROFILE_STEPS"
# in the file, those that took longest
MOST_KERNELS = 80


def busy(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals (from, to): kernels of several streams that overlap count once."""
    total, end = 0, 0
    for start, stop in sorted(intervals):
        total += max(stop - max(start, end), 0)
        end = max(end, stop)
    return total


class StepProfile:
    """Profiles `count` steps from step `first` on with PyTorch's profiler, and writes what it saw to a file."""

    def __init__(self, first: int, count: int, file: Path) -> None:
        self.first, self.last, self.file = first, first + count - 1, file
        self._profiler: Any = None
        self._began = 0.0

    @classmethod
    def of_environment(cls, run_dir: Path) -> StepProfile | None:
        """As QWEN3VL_PROFILE_STEPS says, `first:count`; None where it is not set. Raises RequestError for other text."""
        text = os.environ.get(VARIABLE, "")
        if not text:
            return None
        first, _, count = text.partition(":")
        if not (first.isdecimal() and count.isdecimal() and int(first) and int(count)):
            raise RequestError(f"{VARIABLE}={text}: must be the first step and the number of steps, as 31:2")
        return cls(int(first), int(count), run_dir / PROFILE)

    def before(self, step: int) -> None:
        """Before step `step` begins."""
        if step != self.first:
            return
        activity = torch.profiler.ProfilerActivity
        self._profiler = torch.profiler.profile(activities=[activity.CUDA if torch.cuda.is_available() else activity.CPU])
        self._profiler.start()
        _wait()
        self._began = time.perf_counter()

    def after(self, step: int) -> None:
        """After step `step`: waits for the GPU once the last one is done."""
        if self._profiler is None or step != self.last:
            return
        _wait()
        seconds = time.perf_counter() - self._began
        self._profiler.stop()
        kernels, self._profiler = _kernels(self._profiler), None
        count = self.last - self.first + 1
        record = {"first_step": self.first, "steps": count, "wall_ms": round(1000 * seconds, 3)} | summary(kernels, count)
        self.file.write_text(json.dumps(record, indent=1) + "\n")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kernels(profiler: Any) -> list[tuple[str, int, int]]:
    """(name, from, to) in ns of each kernel that a profile saw; copies and fills of memory are none."""
    events = (e for e in profiler.profiler.kineto_results.events() if e.device_type() == torch.autograd.DeviceType.CUDA)
    return [(e.name(), e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if not e.name().startswith(("Memcpy", "Memset"))]


def summary(kernels: list[tuple[str, int, int]], steps: int) -> dict[str, Any]:
    """Of (name, from, to) in ns: milliseconds and launches of a step, in all and by kernel. In `kernels_ms` overlapping kernels
    count once."""
    by_name: dict[str, list[int]] = {}
    for name, start, stop in kernels:
        entry = by_name.setdefault(name, [0, 0])
        entry[0] += stop - start
        entry[1] += 1
    longest = sorted(by_name.items(), key=lambda item: -item[1][0])[:MOST_KERNELS]
    return {
        "kernels_ms": round(busy((start, stop) for _, start, stop in kernels) / 1e6 / steps, 3), "launches": len(kernels) // steps,
        "kernels": [{"name": name, "ms": round(ns / 1e6 / steps, 3), "launches": count / steps} for name, (ns, count) in longest],
    }  # fmt: skip
