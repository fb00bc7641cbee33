"""Which checkpoints of a run are whole, and which stay: the tracker's, the newest, every so many. Nothing here reads numbers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import UNFINISHED
from qwen3vl_core.run_record import ITERATION, checkpoint_step

METADATA, COMMON, BACKEND, EXTRA = ".metadata", "common.pt", "metadata.json", "extra.json"


def iterations(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending. One that is being built has another name."""
    steps = (checkpoint_step(entry.name) for entry in directory.glob(f"{ITERATION}*") if entry.is_dir())
    return sorted(step for step in steps if step is not None)


def damage(data: Path) -> str | None:
    """Why a run cannot go on from this checkpoint folder, or None. Looks at what is there and how long, not at the numbers."""
    for name in (METADATA, COMMON, BACKEND, EXTRA):
        if not (data / name).is_file():
            return f"{name} is missing"
    try:
        json.loads((data / EXTRA).read_text())
        problems = torch_dist.RegionReader(data).damage()
    except (OSError, ValueError, RequestError) as error:
        return str(error)
    return problems[0] if problems else None


def newest(directory: Path) -> tuple[torch_dist.Checkpoint | None, list[str]]:
    """(the newest checkpoint that is whole, a line for each newer one that is not).

    One that is newer than the tracker says is left alone: somebody who writes an older step into the tracker means it. Without
    a tracker each one counts, as a folder gets its name only when it is whole. (None, …) where there is none.
    Raises RequestError when there are some and none is whole.
    """
    there = iterations(directory)
    try:
        word = (directory / torch_dist.TRACKER).read_text().strip()
    except FileNotFoundError:
        word = ""
    if word.isdigit():
        there = [step for step in there if step <= int(word)]
        if int(word) not in there:
            there.append(int(word))
    problems: list[str] = []
    for step in reversed(there):
        data = directory / torch_dist.iteration_folder(step)
        problem = damage(data)
        if problem is None:
            return torch_dist.Checkpoint(directory, data, step), problems
        problems.append(f"{data.name} is damaged ({problem})")
    if problems:
        raise RequestError(f"{directory}: no checkpoint is whole ({problems[0]}); start a new run, or copy the checkpoint again")
    return None, []


def _in_use(data: Path) -> bool:
    """Whether somebody reads a checkpoint folder: has it `torch_dist.held`."""
    try:
        with open(data / METADATA, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def remove(data: Path) -> None:
    """Take a checkpoint folder away: at once, then bit by bit, so that a kill on the way leaves no torn one behind."""
    away = data.with_name(f"{data.name}.{os.getpid()}{UNFINISHED}")
    with contextlib.suppress(OSError):
        os.rename(data, away)
        shutil.rmtree(away, ignore_errors=True)


def clear_unfinished(directory: Path) -> None:
    """Remove what saves and removals that were killed have left."""
    for entry in directory.glob(f"{ITERATION}*{UNFINISHED}"):
        shutil.rmtree(entry, ignore_errors=True)


def prune(directory: Path, current: int, *, last: int, every: int) -> list[int]:
    """Remove old checkpoints now that `current` is whole; returns the steps removed.

    The `last` newest stay (0: all), and those whose step is a multiple of `every` (0: none beside), and any that is being read.
    """
    if not last:
        return []
    older = [step for step in iterations(directory) if step < current]
    kept = set(older[len(older) - (last - 1) :])
    removed = []
    for step in older:
        data = directory / torch_dist.iteration_folder(step)
        if step in kept or (every and step % every == 0) or _in_use(data):
            continue
        remove(data)
        removed.append(step)
    return removed
