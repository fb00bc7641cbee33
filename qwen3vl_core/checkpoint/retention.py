"""Which checkpoints of a run are complete, and which to keep: the tracker's, the newest, every n-th. Reads no tensors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen3vl_core import file_digests, limits
from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import UNFINISHED, open_regular
from qwen3vl_core.run_record import ITERATION, TRACKER, checkpoint_step

DIGESTS = "digests"
"""Key in `extra.json`: the checkpoint was given digests."""
COMMON_KEYS = ("optimizer", "opt_param_scheduler")
"""What a resume needs of `common.pt`."""
METADATA, COMMON, BACKEND, EXTRA = ".metadata", "common.pt", "metadata.json", "extra.json"


def iterations(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending. A checkpoint that is still being written has another name."""
    steps = (checkpoint_step(entry.name) for entry in directory.glob(f"{ITERATION}*") if entry.is_dir())
    return sorted(step for step in steps if step is not None)


def damage(data: Path, requires: Sequence[str] = ()) -> str | None:
    """Why training cannot resume from this checkpoint folder, or None. Reads the small files whole, of the large ones only the lengths.

    requires: tables that the run keeps in `extra.json`.
    """
    for name in (METADATA, BACKEND, EXTRA):
        if not (data / name).is_file():
            return f"{name} is missing"
    try:
        if (data / EXTRA).stat().st_size > limits.EXTRA_JSON:
            return f"{EXTRA} is too large"
        extra = json.loads(_content(data / EXTRA))
        if not isinstance(extra, dict):
            return f"{EXTRA} holds no table"
        if lacking := [key for key in requires if not isinstance(extra.get(key), dict)]:
            return f"{EXTRA} has no {lacking[0]}"
        if extra.get(DIGESTS) and torch_dist.read_digests(data) is None:
            return f"{file_digests.NAME} is missing"
        reader = torch_dist.RegionReader(data)
        if reader.common_key is None and not (data / COMMON).is_file():
            return f"{COMMON} is missing"
        common = torch_dist.read_common(data)
        if lacking := [key for key in COMMON_KEYS if key not in common]:
            return f"{COMMON} has no {lacking[0]}"
        problems = reader.damage()
    except (Exception, MemoryError) as error:
        # whatever damage makes a reader raise
        return torch_dist.first_line(error)
    return problems[0] if problems else None


def _content(file: Path) -> bytes:
    with open_regular(file, links=True) as stream:
        return stream.read()


def is_good(data: Path) -> bool:
    """Whether the losses were good when this checkpoint was saved; one that does not say is."""
    try:
        guard = json.loads(_content(data / EXTRA))["guard"]
        return guard.get("content", True) is not False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True


def newest(
    directory: Path, requires: Sequence[str] = (), known: Mapping[int, str] | None = None
) -> tuple[torch_dist.Checkpoint | None, list[str]]:
    """(the newest complete checkpoint, a line for each newer incomplete one).

    Checkpoints newer than the tracker's step are ignored: a user may write an older step into the tracker. Without a tracker all of
    them count, as a folder gets its name only when it is complete. (None, []) where there are no checkpoints. requires: as `damage` has
    it. known: damage of some steps that only their bytes tell.
    Raises RequestError when there are checkpoints and none is complete.
    """
    steps = iterations(directory)
    try:
        with open_regular(directory / TRACKER, links=True) as file:
            tracked = file.read(64).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        tracked = ""
    if tracked.isascii() and tracked.isdigit():
        steps = [step for step in steps if step <= int(tracked)]
        if int(tracked) not in steps:
            steps.append(int(tracked))
    problems: list[str] = []
    for step in reversed(steps):
        data = directory / torch_dist.iteration_folder(step)
        problem = (known or {}).get(step) or damage(data, requires)
        if problem is None:
            return torch_dist.Checkpoint(directory, data, step), problems
        problems.append(f"{data.name} is damaged ({problem})")
    if problems:
        raise RequestError(
            f"{directory}: no checkpoint is complete ({problems[0]}); start a new run, copy the checkpoint again, or take it "
            "from the mirror of the run: qwen3vl runs resume --from-mirror"
        )
    return None, []


def _in_use(data: Path) -> bool:
    """Whether a process is reading a checkpoint folder, and so holds the lock of `torch_dist.shared_lock`."""
    try:
        with open_regular(data / METADATA, links=True) as file:
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

    Keeps the `last` newest (0: all), those whose step is a multiple of `every` (0: none), any that is being read, and the newest whose
    losses were good.
    """
    if not last:
        return []
    older = [step for step in iterations(directory) if step < current]
    kept = set(older[len(older) - (last - 1) :])
    for step in reversed([*older, current]):
        if is_good(directory / torch_dist.iteration_folder(step)):
            kept.add(step)
            break
    removed = []
    for step in older:
        data = directory / torch_dist.iteration_folder(step)
        if step in kept or (every and step % every == 0) or _in_use(data):
            continue
        remove(data)
        removed.append(step)
    return removed
