"""Which checkpoints of a run are complete, and which to keep: the tracker's, the newest, every n-th. Reads no tensors."""

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
from qwen3vl_core.run_record import ITERATION, TRACKER, checkpoint_step

METADATA, COMMON, BACKEND, EXTRA = ".metadata", "common.pt", "metadata.json", "extra.json"


def iterations(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending. A checkpoint that is still being written has another name."""
    steps = (checkpoint_step(entry.name) for entry in directory.glob(f"{ITERATION}*") if entry.is_dir())
    return sorted(step for step in steps if step is not None)


def damage(data: Path) -> str | None:
    """Why a run cannot resume from this checkpoint folder, or None. Checks which files exist and how long they are, not the tensors."""
    for name in (METADATA, BACKEND, EXTRA):
        if not (data / name).is_file():
            return f"{name} is missing"
    try:
        json.loads((data / EXTRA).read_text())
        reader = torch_dist.RegionReader(data)
        if reader.common_key is None and not (data / COMMON).is_file():
            return f"{COMMON} is missing"
        problems = reader.damage()
    except (OSError, ValueError, RequestError) as error:
        return str(error)
    return problems[0] if problems else None


def newest(directory: Path) -> tuple[torch_dist.Checkpoint | None, list[str]]:
    """(the newest complete checkpoint, a line for each newer incomplete one).

    Checkpoints newer than the tracker's step are ignored: a user may write an older step into the tracker. Without a tracker all of
    them count, as a folder gets its name only when it is complete. (None, []) where there are no checkpoints.
    Raises RequestError when there are checkpoints and none is complete.
    """
    steps = iterations(directory)
    try:
        tracked = (directory / TRACKER).read_text().strip()
    except FileNotFoundError:
        tracked = ""
    if tracked.isdigit():
        steps = [step for step in steps if step <= int(tracked)]
        if int(tracked) not in steps:
            steps.append(int(tracked))
    problems: list[str] = []
    for step in reversed(steps):
        data = directory / torch_dist.iteration_folder(step)
        problem = damage(data)
        if problem is None:
            return torch_dist.Checkpoint(directory, data, step), problems
        problems.append(f"{data.name} is damaged ({problem})")
    if problems:
        raise RequestError(f"{directory}: no checkpoint is complete ({problems[0]}); start a new run, or copy the checkpoint again")
    return None, []


def _in_use(data: Path) -> bool:
    """Whether a process is reading a checkpoint folder, and so holds the lock of `torch_dist.shared_lock`."""
    try:
        with open(data / METADATA, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def remove(data: Path) -> None:
    """Remove a checkpoint folder: rename it first, so that a kill during the removal leaves no incomplete checkpoint."""
    removing = data.with_name(f"{data.name}.{os.getpid()}{UNFINISHED}")
    with contextlib.suppress(OSError):
        os.rename(data, removing)
        shutil.rmtree(removing, ignore_errors=True)


def clear_unfinished(directory: Path) -> None:
    """Remove the leftovers of killed saves and removals."""
    for entry in directory.glob(f"{ITERATION}*{UNFINISHED}"):
        shutil.rmtree(entry, ignore_errors=True)


def prune(directory: Path, current: int, *, last: int, every: int) -> list[int]:
    """Remove old checkpoints now that `current` is complete; returns the steps removed.

    Keeps the `last` newest (0: all), those whose step is a multiple of `every` (0: none), and any that is being read.
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
