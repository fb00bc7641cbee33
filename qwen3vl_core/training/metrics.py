"""The record of a run: `metrics.jsonl` first, TensorBoard as its mirror, and the line that people read."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3vl_core.formats import duration, number
from qwen3vl_core.progress import Progress
from qwen3vl_core.run_record import EVENT, GRAD_NORM, METRICS, VERSION, scalars
from qwen3vl_core.training.sinks import Sinks


def plain(value: Any) -> Any:
    """A number as JSON can hold it: NaN and infinities are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Metrics:
    """Rows of `metrics.jsonl`, each written by one `write()` so that a reader never sees half of one that is complete.

    Made on one rank only. tensorboard=None: no mirror. sinks: what else gets the scalars.
    """

    def __init__(self, file: Path, tensorboard: Path | None, sinks: Sinks | None = None) -> None:
        self._sinks = sinks
        self._descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # a full disk cut off the last row: the next one must not be joined to it
            os.write(self._descriptor, b"\n")
        self._tensorboard = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(tensorboard), flush_secs=20)

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one row; numbers go to TensorBoard and to the sinks under their tags in the table of metrics."""
        row = {"v": VERSION, "step": step, "time": round(time.time(), 3), "kind": kind} | {k: plain(v) for k, v in values.items()}
        os.write(self._descriptor, (json.dumps(row) + "\n").encode())
        tagged = scalars(kind, row)
        if self._tensorboard is not None:
            for tag, value in tagged.items():
                self._tensorboard.add_scalar(tag, value, step)
        if self._sinks is not None and tagged:
            self._sinks.log(tagged, step)

    def event(self, step: int, event: str, text: str, **values: Any) -> None:
        """Something that happened: one of EVENTS."""
        self.row(EVENT, step, {"event": event, "text": text, **values})

    def close(self, failed: bool = False) -> None:
        if self._sinks is not None:
            self._sinks.close(failed)
        os.close(self._descriptor)
        if self._tensorboard is not None:
            self._tensorboard.close()


def step_text(values: Mapping[str, Any], updated: bool = True) -> str:
    """The metrics of a step that have a place in the log line: `loss 1.2345  lr 1e-5  grad norm 0.83  …`."""
    parts = []
    for key, metric in METRICS.items():
        value = values.get(key)
        if not metric.line or (value is None and key != GRAD_NORM):
            continue
        if key == GRAD_NORM and (value is None or not updated):
            text = "skipped"
        else:
            text = f"{value:{metric.format}}" if metric.format else number(value, metric.line)
        parts.append(f"{metric.title} {text}" + (f" {metric.unit}" if metric.unit not in ("", metric.title) else ""))
    return "  ".join(parts)


class StepLine:
    """What a terminal or a log shows of the steps: a bar that redraws, or a line a step."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self._bar = Progress("finetune", total, "steps")
        self._bar.done = done
        self._first, self._started = done, time.monotonic()

    def show(self, step: int, values: Mapping[str, Any], updated: bool = True) -> None:
        """One step is done. values: by key, as in the row. updated: False for a step that left the weights as they were."""
        if self._bar.mode == "lines":
            each = (time.monotonic() - self._started) / max(step - self._first, 1)
            print(
                f"{time.strftime('%H:%M:%S')} step {step:>{len(str(self.total))}}/{self.total}  {step_text(values, updated)}  "
                f"ETA {duration(each * (self.total - step))}",
                flush=True,
            )
        elif self._bar.mode == "bar":
            self._bar.update(step - self._bar.done, step_text(values, updated))

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar.mode == "bar":
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        print(text, flush=True)

    def end(self) -> None:
        if self._bar.mode == "bar":
            self._bar.__exit__(None, None, None)
