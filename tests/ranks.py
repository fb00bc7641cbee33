"""Run functions on several gloo ranks: processes forked from a server that has imported everything once."""

from __future__ import annotations

import gc
import multiprocessing
import queue
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
# also what a run imports lazily
_context.set_forkserver_preload(["qwen3vl_core.training.loop", "transformers", "torch._dynamo"])
DEADLINE_SECONDS = 240


class Failure(str):
    """The traceback of a job that failed on one of its ranks."""


def _rank(function: Callable, rank: int, world: int, folder: str, results, jobs: dict[Any, tuple]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    # what was imported before the fork: Megatron collects garbage at every checkpoint, and would look through it and copy its pages
    gc.freeze()
    for number, (name, arguments) in enumerate(jobs.items()):
        try:
            # each job has its own store: names of an earlier group must not be found in it
            store = dist.FileStore(str(Path(folder) / str(number)), world)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
            results.put((name, rank, function(*arguments), None))
            if dist.is_initialized():
                dist.barrier()
                dist.destroy_process_group()
        except BaseException:
            results.put((name, rank, None, traceback.format_exc()))
            return


def _until_one_fails(world: int, function: Callable, jobs: dict[Any, tuple], into: dict[Any, Any]) -> None:
    """Run the jobs in one set of processes until all are done or one has failed on a rank; `into` receives the results."""
    results = _context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_context.Process(target=_rank, args=(function, rank, world, folder, results, jobs)) for rank in range(world)]
        for process in ranks:
            process.start()
        try:
            # a rank may be in its next job while another one is still in this
            values: dict[Any, dict[int, Any]] = {name: {} for name in jobs}
            failures: dict[Any, Failure] = {}
            for name in jobs:
                while len(values[name]) < world and name not in failures:
                    try:
                        done, rank, value, failure = results.get(timeout=DEADLINE_SECONDS)
                    except queue.Empty:
                        ready = sorted(values[name]) or "none"
                        failures[name] = Failure(f"{world} ranks are not done after {DEADLINE_SECONDS} s, ready: {ready}")
                        continue
                    if failure is None:
                        values[done][rank] = value
                    else:
                        failures.setdefault(done, Failure(f"rank {rank} of {world}:\n{failure}"))
                if name in failures:
                    into[name] = failures[name]
                    return
                into[name] = [values[name][rank] for rank in range(world)]
            for process in ranks:
                process.join(DEADLINE_SECONDS)
        finally:
            for process in ranks:
                process.kill()
                process.join()


def run_each(world: int, function: Callable, jobs: Mapping[Any, tuple]) -> dict[Any, list[Any] | Failure]:
    """`function(*arguments)` of each job on `world` ranks, one job after the other in the same processes, each in a group of
    its own -> by job what each rank returned, or why it failed. After a failure the jobs that are left get new processes.

    function: at the top of a module; it may destroy its group.
    """
    found: dict[Any, list[Any] | Failure] = {}
    while len(found) < len(jobs):
        _until_one_fails(world, function, {name: arguments for name, arguments in jobs.items() if name not in found}, found)
    return found


def run_ranks(world: int, function: Callable, *arguments: Any) -> list[Any]:
    """`function(*arguments)` in `world` processes of one group -> what each returned, by rank.

    function: at the top of a module. Raises AssertionError with the traceback of a rank that failed.
    """
    found = run_each(world, function, {0: arguments})[0]
    assert not isinstance(found, Failure), found
    return found
