"""Takes a run's checkpoint back from its mirror, where its own are damaged or gone. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from console.runs import check, mirror
from console.runs.state import runs_already
from console.runs.store import Run
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import write_text
from qwen3vl_core.language import filled
from qwen3vl_core.progress import Progress
from qwen3vl_core.run_record import CHECKPOINTS, TRACKER


def place(run: Run) -> Path | None:
    """The run's folder in its mirror; None without one."""
    return mirror.place_of(run.path, run.plan)


def newest_whole(checkpoints: Path, read_data: bool = False) -> int | None:
    """The newest step in a folder that is as its digests say; by lengths and small files, or by every byte. None where there is none."""
    for step in reversed(mirror.steps_in(checkpoints)):
        verdict = check.check(step, checkpoints / mirror.folder_of(step), read_data)
        if verdict.problem is None and not verdict.unknown:
            return step
    return None


def offered(run: Run) -> tuple[int, int | None] | None:
    """(the mirror's newest step, the run's own) where the mirror has a newer whole checkpoint than the run; reads the small files only."""
    mirror_folder = place(run)
    if mirror_folder is None or run.alive:
        return None
    mirrored = newest_whole(mirror_folder / CHECKPOINTS)
    own = newest_whole(run.path / CHECKPOINTS)
    return (mirrored, own) if mirrored is not None and (own is None or mirrored > own) else None


def asked(run: Run) -> bool:
    """Whether a checkpoint is to be taken from the mirror: asks where there is a terminal. Raises RequestError where there is none."""
    offer = offered(run)
    if offer is None:
        return False
    step, own = offer
    state = "has no whole checkpoint of its own" if own is None else f"has whole checkpoints of its own up to step {own} only"
    line = f"run {run.id}: {state}, and its mirror {place(run)} has step {step}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        without = "" if own is None else f", or --no-from-mirror to resume from step {own}"
        raise RequestError(filled("{}; add --from-mirror to take that{}", line, without))
    print(line, file=sys.stderr)
    return input("take it from the mirror? [Y/n] ").strip().lower() in ("", "y", "yes")


def restore(run: Run, told: Callable[[int], None] | None = None) -> int:
    """Copy the mirror's newest whole checkpoint into the run, compared byte by byte, and let the tracker name it. Returns its step.

    Raises RequestError where there is no mirror, or no whole checkpoint in it, or where the run's own is as new and whole, and
    WorkError when the copy fails.
    """
    if run.alive:
        raise runs_already(run.path)
    mirror_folder = place(run)
    if mirror_folder is None:
        raise RequestError(filled("run {}: has no mirror; a finetune with --mirror has one", run.id))
    step = newest_whole(mirror_folder / CHECKPOINTS)
    if step is None:
        raise RequestError(filled("{}: holds no whole checkpoint of run {}; leave --from-mirror out", mirror_folder / CHECKPOINTS, run.id))
    target = run.path / CHECKPOINTS
    own = newest_whole(target, read_data=True)
    if own is not None and own >= step:
        raise RequestError(filled("run {}: its own checkpoint of step {} is whole, every byte; leave --from-mirror out", run.id, own))
    source = mirror_folder / CHECKPOINTS / mirror.folder_of(step)
    try:
        target.mkdir(parents=True, exist_ok=True)
        mirror.copy_side_files(mirror_folder / CHECKPOINTS, target)
        with Progress("mirror", check.bytes_to_read([(step, source)]), "B") as progress:
            mirror.copy_checkpoint(source, target / mirror.folder_of(step), told or progress.update)
        write_text(target / TRACKER, f"{step}\n")
    except OSError as error:
        raise WorkError(
            filled("{}: {}; nothing of the run was changed; free some space and try again", error.filename or target, error.strerror)
        ) from error
    return step
