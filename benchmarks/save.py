"""What the digests of a checkpoint cost: saves of the state of a full finetune, in turns with digests, without, and with digests that
are made from the files afterwards.

    python benchmarks/save.py                              # 1.6 GiB of weights, masters and optimizer, in the system's temporary folder
    python benchmarks/save.py --dir /data --width 98304    # 4.6 GiB, on the disk that matters

Each save is the one of a run, until the tracker names it. `cost` is the median of the differences to the save without digests of the
same turn, of its time; the CPU seconds are those of the processes that write, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.patches.write_results import patch_next_save

import random_run
from megatron.core.dist_checkpointing.strategies import filesystem_async
from steps import micro_batches, release

from qwen3vl_core.checkpoint import saving
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.file_digests import CHUNK, Digest
from qwen3vl_core.formats import GIB
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.training import setup, step

LAYERS = 6
WITH, WITHOUT, AFTERWARDS = "digests", "none", "afterwards"


class Without:
    """Digests of nothing."""

    def read(self, folder: Path) -> tuple[dict[str, Digest], float]:
        files = {file.name: file.stat().st_size for file in folder.glob("__*")}
        return {name: (size, (0,) * -(-size // CHUNK)) for name, size in files.items()}, 0.0


class Afterwards:
    """No digests yet."""

    def read(self, folder: Path) -> tuple[dict[str, Digest], float]:
        return {}, 0.0


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def save(how: str, folder: Path, parts: dict[str, Any]) -> dict[str, float]:
    """Seconds of a save, its CPU seconds, and what it has recorded of its digests."""
    shutil.rmtree(folder, ignore_errors=True)

    def prepare() -> Any:
        digests = patch_next_save()
        if how == WITH:
            return digests
        filesystem_async.open = open
        return Without() if how == WITHOUT else Afterwards()

    began, cpu = time.perf_counter(), cpu_seconds()
    with mock.patch.object(saving, "patch_next_save", prepare):
        started = saving.start_saving(folder, 1, **parts)
        started.finished(wait=True)
    return {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu, "waited": started.digest_seconds}


def main(words: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Print the table and return the figures of each kind, one a turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="where it saves; the system's temporary folder by default")
    parser.add_argument("--width", type=int, default=32768, help="of the model's MLPs")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args(words)
    options = FinetuneOptions(packing=True, micro_batch_size=1, global_batch_size=1, seq_length=256, lr=1e-5, min_lr=1e-6, train_iters=1000)
    found: dict[str, list[dict[str, float]]] = {WITH: [], WITHOUT: [], AFTERWARDS: []}
    with tempfile.TemporaryDirectory(dir=args.dir) as temporary:
        folder = Path(temporary)
        base = random_run.model(folder / "base", "tiny", LAYERS, args.width)
        shards = random_run.data(folder / "data", base, 8, tokens=(60, 80), side=64)
        process_groups.initialize()
        training = setup.build(options, open_source(base))
        step.train_step(training, [batch.structured(training.rules) for batch in micro_batches(shards, 256)[:1]])
        parts = dict(
            models=training.models, optimizer=training.optimizer, scheduler=training.scheduler, extra={}, common={}, side=base
        )  # fmt: skip
        size = 0
        for turn in range(args.turns + 1):
            for how, rows in found.items():
                row = save(how, folder / "saved", parts)
                size = sum(file.stat().st_size for file in (folder / "saved").rglob("*.distcp"))
                if turn:  # the first one warms up
                    rows.append(row)
        release()
    print(f"{size / GIB:.2f} GiB, {args.turns} turns, {len(os.sched_getaffinity(0))} cores\n")
    print("| digests | seconds | MB/s | waited for them | CPU seconds | cost |\n| --- | --- | --- | --- | --- | --- |")
    for how, rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        cost = statistics.median(
            (row["seconds"] - other["seconds"]) / other["seconds"] for row, other in zip(rows, found[WITHOUT], strict=True)
        )
        print(
            f"| {how} | {middle['seconds']:.2f} | {size / 1e6 / middle['seconds']:,.0f} | {middle['waited']:.3f} "
            f"({100 * middle['waited'] / middle['seconds']:.1f} %) | {middle['cpu']:.2f} | {100 * cost:+.1f} % |"
        )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
