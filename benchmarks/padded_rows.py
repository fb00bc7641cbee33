"""The batches of the peers (padded rows, decoded before the clock starts), and the timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import random_run
import torch

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.gpus import peak_flops
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training.throughput import training_flops

MICRO_BATCHES = 4
"""Of a step of one GPU."""
WARM = 3
"""Steps of a peer before the clock starts."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batches(shards: Path, rows: int, steps: int, seq_length: int) -> list[list[Batch]]:
    """Micro batches of padded rows, as a Trainer's collator makes them, for so many steps; pinned where there is a GPU."""
    processor = random_run.processor_of(random_run.TINY.parent)
    loader = build_loader(
        shards, "train", processor, micro_batch_size=rows, global_batch_size=rows * MICRO_BATCHES, seq_length=seq_length
    )  # fmt: skip
    loaded = [next(loader) for _ in range(steps)]
    loader.close()
    return loaded if DEVICE == "cpu" else [[batch.pin_memory() for batch in step] for step in loaded]


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def figures(tokens: float, flops: float, seconds: float, loss: float, gib: float) -> dict[str, Any]:
    """Of a step with so many tokens and model FLOPs: what every configuration reports. MFU is that of the run's record:
    model FLOPs of the samples' own tokens over seconds and the GPU's dense bf16 peak."""
    limit = peak_flops(torch.cuda.get_device_name()) if DEVICE == "cuda" else None
    return {
        "useful_tokens_per_s": round(tokens / seconds), "step_ms": round(1000 * seconds, 1),
        "mfu": round(flops / seconds / limit, 3) if limit else None, "peak_gib": round(gib, 1), "loss": round(loss, 3),
    }  # fmt: skip


def timed(
    train: Callable[[list[Batch]], float],
    steps: list[list[Batch]],
    a: Architecture,
    frozen: Collection[str] = (),
    *,
    low_rank: bool = False,
) -> dict[str, Any]:
    """Figures of `train`, which runs a step of its micro batches and returns its loss: the median of the steps after WARM."""
    seconds, losses = [], []
    for number, micro_batches in enumerate(steps):
        synchronize()
        if number == WARM and DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        losses.append(train(micro_batches))
        synchronize()
        seconds.append(time.perf_counter() - began)
    measured = steps[WARM:]
    tokens = statistics.mean(sum(int(batch.lengths.sum()) for batch in step) for step in measured)
    flops = statistics.mean(sum(training_flops(a, batch, frozen, low_rank=low_rank) for batch in step) for step in measured)
    gib = torch.cuda.max_memory_allocated() / GIB if DEVICE == "cuda" else 0.0
    return figures(tokens, flops, statistics.median(seconds[WARM:]), losses[-1], gib)
