"""`python -m console.runs.mirror RUN_DIR`: copies a run's newest checkpoint to its mirror; and takes one back from there.

A copy is whole or has no name: it is written beside its name, compared with the digests of the checkpoint byte by byte, synced, and
renamed. The mirror of a run looks like a run: `plan.json`, `checkpoints/iter_…` and the tracker. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from console.runs.state import read_json, write_json
from qwen3vl_core import file_digests, limits, log_lines
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, WorkError
from qwen3vl_core.files import UNFINISHED, disk_full, open_regular, to_disk, write_text
from qwen3vl_core.formats import quantity
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import CHECKPOINTS, ITERATION, MIRROR, PLAN, TRACKER, VERSION, PlanRecord, checkpoint_step

CHUNK = 4 << 20
_METADATA = ".metadata"


def folder_of(step: int) -> str:
    """Megatron's name of a checkpoint's folder."""
    return f"{ITERATION}{step:07d}"


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(step for name in names if (step := checkpoint_step(name)) is not None)


def options_of(plan: PlanRecord) -> dict[str, Any]:
    """The options of a plan; of a damaged one none."""
    options = plan.get("options")
    return options if isinstance(options, dict) else {}


def place_of(run_dir: Path, plan: PlanRecord) -> Path | None:
    """The folder of this run in its mirror, there or not; None without a mirror. Another run of the same number keeps its own."""
    mirror = options_of(plan).get("mirror")
    if not isinstance(mirror, str) or not mirror:
        return None
    for number in range(1, 1000):
        place = Path(mirror) / (run_dir.name if number == 1 else f"{run_dir.name}-{number}")
        other = read_json(place / PLAN)
        if not place.exists() or (not other and not (place / CHECKPOINTS).exists()):
            return place
        if (other.get("created"), other.get("host")) == (plan.get("created"), plan.get("host")):
            return place
    return None


@contextlib.contextmanager
def _held(source: Path) -> Iterator[None]:
    """Keep the training from pruning a checkpoint while it is copied. Raises OSError when it is gone."""
    with open(source / _METADATA, "rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def copy_checkpoint(source: Path, target: Path, told: Callable[[int], None] | None = None) -> int:
    """Copy a checkpoint folder: verified, on the disk, and with its name only when it is whole. Returns its bytes.

    A target that is the same, every byte, is left as it is. told: called with the bytes copied since. Raises WorkError when the source
    is damaged or has no digests, and OSError.
    """
    with _held(source):
        digests = _digests(source)
        size = sum(length for length, _ in digests.values())
        with contextlib.suppress(ValueError, OSError):
            if file_digests.read(target) == digests and file_digests.problem(target, digests) is None:
                return size
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{target.name}.*{UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)
        building = target.with_name(f"{target.name}.{os.getpid()}-{time.time_ns()}{UNFINISHED}")
        building.mkdir()
        try:
            for name in (*digests, file_digests.NAME):
                _copy(source / name, building / name, told)
            if problem := file_digests.problem(building, digests):
                # of the source, or on the way
                own = file_digests.problem(source, digests)
                raise WorkError(f"{source.name}: {own}, so it is not copied" if own else f"{target}: {problem}; the copy was removed")
            to_disk(building)
            if target.exists():
                old = target.with_name(f"{target.name}.old-{os.getpid()}{UNFINISHED}")
                os.rename(target, old)
                shutil.rmtree(old, ignore_errors=True)
            os.rename(building, target)
            to_disk(target.parent)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return size


def _digests(source: Path) -> dict[str, file_digests.Digest]:
    try:
        digests = file_digests.read(source)
    except ValueError as error:
        raise WorkError(filled("{}: {}, so it is not copied", source.name, error)) from None
    if digests is None:
        raise WorkError(filled("{}: has no digests to compare a copy with; only checkpoints of this version are copied", source.name))
    if problem := file_digests.sizes_problem(source, digests):
        raise WorkError(filled("{}: {}, so it is not copied", source.name, problem))
    return digests


def _copy(source: Path, target: Path, told: Callable[[int], None] | None) -> None:
    with open_regular(source) as read, open(target, "xb") as written:
        while piece := read.read(CHUNK):
            written.write(piece)
            if told is not None:
                told(len(piece))
        written.flush()
        os.fsync(written.fileno())
        # what is compared with the digests next should come from the disk, not from memory
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(read.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_side_files(source: Path, target: Path) -> None:
    """Configuration and tokenizer beside the checkpoints, those that differ. Raises OSError."""
    for entry in os.scandir(source):
        if not entry.is_file(follow_symlinks=False) or entry.name == TRACKER or entry.name.endswith(UNFINISHED):
            continue
        copy = target / entry.name
        size = entry.stat().st_size
        if size > limits.SIDE_FILE or (copy.is_file() and copy.stat().st_size == size and copy.read_bytes() == Path(entry).read_bytes()):
            continue
        beside = target / f"{entry.name}{UNFINISHED}"
        beside.unlink(missing_ok=True)
        _copy(Path(entry), beside, None)
        os.replace(beside, copy)


def mirror(run_dir: Path) -> tuple[Path, int, int, list[int]]:
    """Copy the newest checkpoint. Returns (the run's folder in the mirror, its step, bytes, steps that are there now). Raises WorkError
    and OSError."""
    plan = cast(PlanRecord, read_json(run_dir / PLAN))
    place, steps = place_of(run_dir, plan), steps_in(run_dir / CHECKPOINTS)
    if place is None:
        raise WorkError("--mirror: has no folder for this run; name another one")
    if not steps:
        raise WorkError("there is no checkpoint to copy")
    step, mirrored = steps[-1], place / CHECKPOINTS
    mirrored.mkdir(parents=True, exist_ok=True)
    write_json(place / PLAN, plan)
    copy_side_files(run_dir / CHECKPOINTS, mirrored)
    size = copy_checkpoint(run_dir / CHECKPOINTS / folder_of(step), mirrored / folder_of(step))
    write_text(mirrored / TRACKER, f"{step}\n")
    keep = options_of(plan).get("mirror_keep")
    for old in [s for s in steps_in(mirrored) if s <= step][: -keep if isinstance(keep, int) and keep > 0 else 0]:
        _remove(mirrored / folder_of(old))
    return place, step, size, steps_in(mirrored)


def _remove(folder: Path) -> None:
    """Rename it first, so that what is left by a kill has no name of a checkpoint."""
    going = folder.with_name(f"{folder.name}.{os.getpid()}{UNFINISHED}")
    with contextlib.suppress(OSError):
        os.rename(folder, going)
        shutil.rmtree(going, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Copy, write `mirror.json` and a line in the log, which is this process's standard error."""
    run_dir = Path((sys.argv[1:] if arguments is None else arguments)[0])
    with _one_at_a_time(run_dir / CHECKPOINTS):
        began = time.monotonic()
        known = read_json(run_dir / MIRROR)
        try:
            place, step, size, steps = mirror(run_dir)
        except (OSError, WorkError) as error:
            full = isinstance(error, OSError) and disk_full(error)
            reason = (
                "the mirror's disk is full" if full else f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            )
            _record(run_dir, {**known, "v": VERSION, "error": reason, "time": time.time()})
            _say(f"not mirrored: {reason}; the run goes on")
            return EXIT_FAILED
        _record(run_dir, {"v": VERSION, "to": str(place), "steps": steps, "error": None, "time": time.time()})
        _say(f"{folder_of(step)} copied to {place}, {quantity(size, 'B')} in {time.monotonic() - began:.1f} s, compared byte by byte")
    return EXIT_DONE


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """A copy waits for the one before."""
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _record(run_dir: Path, value: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        write_json(run_dir / MIRROR, value)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{log_lines.written(text, log_lines.MIRRORED)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
