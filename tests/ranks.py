"""Run a function on several gloo ranks: processes forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["qwen3vl_core.training.step", "qwen3vl_core.checkpoint.training", "transformers"])
DEADLINE_SECONDS = 120


def _rank(function: Callable, rank: int, world: int, store: str, results, arguments: tuple) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
        results.put((rank, function(*arguments), None))
        if dist.is_initialized():
            dist.barrier()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def run_ranks(world: int, function: Callable, *arguments: Any) -> list[Any]:
    """`function(*arguments)` in `world` processes of one group -> what each returned, by rank.

    function: at the top of a module. Raises AssertionError with the traceback of a rank that failed.
    """
    results = _context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = [
            _context.Process(target=_rank, args=(function, rank, world, store, results, arguments)) for rank in range(world)
        ]
        for process in ranks:
            process.start()
        values: list[Any] = [None] * world
        try:
            for _ in ranks:
                rank, value, failure = results.get(timeout=DEADLINE_SECONDS)
                assert failure is None, f"rank {rank} of {world}:\n{failure}"
                values[rank] = value
            for process in ranks:
                process.join(DEADLINE_SECONDS)
        finally:
            for process in ranks:
                process.kill()
    return values
