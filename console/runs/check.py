"""Checks that a run's checkpoints are as written, by the digests of their files. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from console.runs.store import Run
from qwen3vl_core import file_digests
from qwen3vl_core.run_record import CHECKPOINTS, checkpoint_step

SMALL = 1 << 20
"""Files up to this size are always read."""


class Checked(NamedTuple):
    """One checkpoint."""

    step: int
    path: Path
    bytes: int
    """Size of its files according to the digests; 0 if it has none."""
    problem: str | None
    """The first difference found; None if there is none."""
    unknown: bool = False
    """It has no digests, because an older version or another program wrote it."""


def checkpoints(run: Run) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints, in ascending order."""
    try:
        folders = [path for path in (run.path / CHECKPOINTS).iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted((step, path) for path in folders if (step := checkpoint_step(path.name)) is not None)


def check(step: int, path: Path, read_data: bool, told: Callable[[int], None] | None = None) -> Checked:
    """Compare one checkpoint with its digests. read_data: every byte; else the lengths, and the small files whole. told: called with
    the bytes that were read since."""
    try:
        digests = file_digests.read(path)
        if digests is None:
            return Checked(step, path, 0, None, unknown=True)
        size = sum(length for length, _ in digests.values())
        wanted = digests if read_data else {name: digest for name, digest in digests.items() if digest[0] <= SMALL}
        problem = file_digests.sizes_problem(path, digests) or file_digests.problem(path, wanted, told=told)
        return Checked(step, path, size, problem)
    except (ValueError, OSError) as error:
        return Checked(step, path, 0, str(error))


def bytes_to_read(saved: list[tuple[int, Path]]) -> int:
    """Of all files of these checkpoints."""
    return sum(file.stat().st_size for _, path in saved for file in path.iterdir() if file.is_file())
