"""A run's metrics: `metrics.jsonl`, its copy in TensorBoard, and the log line of each step."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen3vl_core.formats import duration, number
from qwen3vl_core.progress import Progress
from qwen3vl_core.run_metrics import GRAD_NORM, METRICS, SKIPPED_COUNT, scalars
from qwen3vl_core.run_record import EVENT, VERSION
from qwen3vl_core.training.sinks import Sinks


def plain(value: Any) -> Any:
    """The value for JSON: NaN and infinities become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Metrics:
    """Rows of `metrics.jsonl`, each written by one `write()`, so that readers never see half a row.

    Created on one rank only. tensorboard: folder of its event files; None: no TensorBoard. sinks: get the same scalars.
    """

    def __init__(self, file: Path, tensorboard: Path | None, sinks: Sinks | None = None) -> None:
        self._sinks = sinks
        self._descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # the last row was truncated, as by a full disk: start the next one on a new line
            os.write(self._descriptor, b"\n")
        self._tensorboard = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._tensorboard = SummaryWriter(str(tensorboard), flush_secs=20)
            except OSError as error:
                self._mirror_failed(error)

    def row(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one row; numbers go to TensorBoard and to the sinks under their tags in the table of metrics."""
        row = {"v": VERSION, "step": step, "time": round(time.time(), 3), "kind": kind} | {k: plain(v) for k, v in values.items()}
        os.write(self._descriptor, (json.dumps(row) + "\n").encode())
        tagged = scalars(kind, row)
        if self._tensorboard is not None:
            self._mirror(lambda writer: [writer.add_scalar(tag, value, step) for tag, value in tagged.items()])
        if self._sinks is not None and tagged:
            self._sinks.log(tagged, step)

    def event(self, step: int, event: str, text: str, **values: Any) -> None:
        """Append an event; `event` is one of EVENTS."""
        self.row(EVENT, step, {"event": event, "text": text, **values})

    def close(self, failed: bool = False) -> None:
        if self._sinks is not None:
            self._sinks.close(failed)
        os.close(self._descriptor)
        if self._tensorboard is not None:
            self._mirror(lambda writer: writer.close())

    def _mirror(self, action: Callable[[Any], object]) -> None:
        """Write to TensorBoard; when that fails (a full disk), say so once and go on without it: the record is metrics.jsonl."""
        try:
            action(self._tensorboard)
        except Exception as error:
            self._mirror_failed(error)

    def _mirror_failed(self, error: Exception) -> None:
        self._tensorboard = None
        line = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"TensorBoard failed ({line}); the run goes on without it", flush=True)


def step_text(values: Mapping[str, Any], updated: bool = True) -> str:
    """The metrics of a step that the log line shows: `loss 1.2345  lr 1e-5  grad norm 0.83  …`."""
    columns = []
    for key, metric in METRICS.items():
        value = values.get(key)
        if not metric.line or (value is None and key != GRAD_NORM):
            continue
        if key == GRAD_NORM and (value is None or not updated):
            text = "skipped"
        else:
            text = f"{value:{metric.format}}" if metric.format else number(value, metric.line)
        columns.append(f"{metric.title} {text}" + (f" {metric.unit}" if metric.unit not in ("", metric.title) else ""))
    if values.get(SKIPPED_COUNT):
        columns.append(f"left out {values[SKIPPED_COUNT]:,}")
    return "  ".join(columns)


class StepLine:
    """Progress of the steps: a progress bar in a terminal, a line per step in a log."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self._bar = Progress("finetune", total, "steps")
        self._bar.done = done
        self._first, self._started = done, time.monotonic()

    def show(self, step: int, values: Mapping[str, Any], updated: bool = True) -> None:
        """Show a finished step. values: by key, as in the row. updated: False for a skipped step."""
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
        """Print a separate line."""
        if self._bar.mode == "bar":
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        print(text, flush=True)

    def end(self) -> None:
        if self._bar.mode == "bar":
            self._bar.__exit__(None, None, None)
