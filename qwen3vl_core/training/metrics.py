"""The record of a run: `metrics.jsonl` first, TensorBoard as its mirror, and the line that people read."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from qwen3vl_core.formats import GIB, duration, number
from qwen3vl_core.progress import Progress
from qwen3vl_core.training.sinks import Sinks

VERSION = 1
# Megatron-LM's tag names, so that curves of both stand side by side; what it has no curve of has its own name
TAGS = {
    "loss": "lm loss", "lr": "learning-rate", "grad_norm": "grad-norm", "loss_scale": "loss-scale", "samples": "batch-size",
    "step_seconds": "iteration-time", "tflops": "throughput", "memory_gib": "mem-max-allocated-bytes",
    "memory_reserved_gib": "mem-reserved-bytes", "tokens_per_second": "tokens/s", "mfu": "mfu", "packing_efficiency": "packing-efficiency",
    "data_seconds": "data-time", "forward_backward_seconds": "forward-backward-time", "optimizer_seconds": "optimizer-time",
    "checkpoint_seconds": "checkpoint-time", "skipped": "skipped-samples", "gpu_utilisation": "gpu-utilisation", "gpu_watts": "gpu-watts",
}  # fmt: skip


def scalars(kind: str, row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row by tag; a validation's as Megatron-LM has them, `lm loss validation`."""
    if kind not in ("train", "eval"):
        return {}
    found = {}
    for name, tag in TAGS.items():
        value = row.get(name)
        if value is not None:
            found[tag if kind == "train" else f"{tag} validation"] = value * GIB if tag.endswith("-bytes") else value
    return found


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

    def row(self, kind: str, step: int, **values: Any) -> None:
        """Append one row; numbers go to TensorBoard and to the sinks under Megatron's tags."""
        row = {"v": VERSION, "step": step, "time": round(time.time(), 3), "kind": kind} | {k: plain(v) for k, v in values.items()}
        os.write(self._descriptor, (json.dumps(row) + "\n").encode())
        values = scalars(kind, row)
        if self._tensorboard is not None:
            for tag, value in values.items():
                self._tensorboard.add_scalar(tag, value, step)
        if self._sinks is not None and values:
            self._sinks.log(values, step)

    def event(self, step: int, event: str, text: str, **values: Any) -> None:
        """Something that happened: `start`, `resume`, `damaged`, `note`, `save`, `nan`, `spike`, `stop`, `done`."""
        self.row("event", step, event=event, text=text, **values)

    def close(self, failed: bool = False) -> None:
        if self._sinks is not None:
            self._sinks.close(failed)
        os.close(self._descriptor)
        if self._tensorboard is not None:
            self._tensorboard.close()


class StepLine:
    """What a terminal or a log shows of the steps: a bar that redraws, or a line a step."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self._bar = Progress("finetune", total, "steps")
        self._bar.done = done
        self._first, self._started = done, time.monotonic()

    def show(
        self, step: int, loss: float, lr: float, grad_norm: float | None, seconds: float, tokens_per_second: float, mfu: float | None = None
    ) -> None:  # fmt: skip
        """One step is done."""
        norm = "skipped" if grad_norm is None else number(grad_norm, 3)
        share = "" if mfu is None else f"  MFU {mfu:.1%}"
        rates = f"lr {number(lr, 3)}  grad {norm}"
        speed = f"{number(tokens_per_second)} tok/s{share}"
        if self._bar.mode == "lines":
            each = (time.monotonic() - self._started) / max(step - self._first, 1)
            print(
                f"{time.strftime('%H:%M:%S')} step {step:>{len(str(self.total))}}/{self.total}  loss {number(loss, 5)}  {rates}  "
                f"{number(seconds, 3)} s  {speed}  ETA {duration(each * (self.total - step))}",
                flush=True,
            )
        elif self._bar.mode == "bar":
            self._bar.update(step - self._bar.done, f"loss {number(loss)}  {rates}  {speed}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar.mode == "bar":
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        print(text, flush=True)

    def end(self) -> None:
        if self._bar.mode == "bar":
            self._bar.__exit__(None, None, None)
