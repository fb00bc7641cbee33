"""Atomic writes, to a temporary name beside the target and then one rename, and the lock of a folder. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.formats import quantity

UNFINISHED = ".tmp"


def is_url(name: str) -> bool:
    """Whether a name is a URL, such as `msc://profile/data`, and not a path on this machine."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(name)) is not None


def absolute_path(name: str) -> str:
    """An absolute path; a URL unchanged."""
    return str(name) if is_url(name) else str(Path(name).expanduser().absolute())


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically: a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def check_target(target: Path, *, overwrite: bool, what: str) -> None:
    """Raises RequestError when `target` exists already, or cannot be written to."""
    if target.is_symlink() and not target.exists():
        raise RequestError(f"{target}: a broken symbolic link; remove it or choose another folder")
    if target.exists() and not target.is_dir():
        raise RequestError(f"{target}: is a file; choose another folder for the {what}")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise RequestError(f"{target}: not empty; add --overwrite to replace it, or choose another folder")
    parent = next(p for p in target.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RequestError(f"{target}: {parent} cannot be written to; choose another folder for the {what}")


def need_space(target: Path, size: int, what: str) -> None:
    """Raises RequestError when the disk that `target` is on has less than `size` bytes free."""
    parent = next(p for p in target.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise RequestError(
            f"{target}: the {what} needs {quantity(size, 'B')}, but {parent} has {quantity(free, 'B')} free; "
            "free some space or choose another disk"
        )


@contextlib.contextmanager
def atomic_folder(target: Path, *, what: str) -> Iterator[Path]:
    """A temporary folder beside `target` to write into; it replaces `target` when the block succeeds.

    When the block raises, the temporary folder is removed and `target` is unchanged. Leftovers of an earlier, killed process are
    removed first. Raises WorkError when the disk is full.
    """
    target = target.absolute()
    building, old = (target.with_name(target.name + ending) for ending in (UNFINISHED, ".old" + UNFINISHED))
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if target.exists():
            os.rename(target, old)
        os.rename(building, target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        full = disk_full(error)
        if full is not None:
            raise WorkError(f"{target}: the disk is full; nothing was written; free some space and run the {what} again") from error
        raise


@contextlib.contextmanager
def folder_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Keeps other processes out of a folder for the length of the block. Raises RequestError with `refusal` while one is in it."""
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(refusal) from None
        except OSError:
            # a file system without locks: another process cannot be detected
            pass
        yield
    finally:
        os.close(lock)


def disk_full(error: BaseException | None) -> OSError | None:
    """The "no space left" (or "quota exceeded") error among an error and its causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None
