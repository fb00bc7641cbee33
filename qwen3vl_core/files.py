"""Atomic writes, to a temporary name beside the target and then one rename, and the lock of a folder. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.formats import printable, quantity
from qwen3vl_core.language import filled

UNFINISHED = ".tmp"
AT_FDCWD, RENAME_EXCHANGE = -100, 2
TURN_SECONDS = 10.0
"""For the one before to write a file, which takes milliseconds on a disk that works."""


def is_url(name: str) -> bool:
    """Whether a name is a URL, such as `msc://profile/data`, and not a path on this machine."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(name)) is not None


def absolute_path(name: str) -> str:
    """An absolute path; a URL unchanged."""
    return str(name) if is_url(name) else str(Path(name).expanduser().absolute())


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically: a reader sees the old text or the new one, never a part. Raises OSError."""
    with replaced_file(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


@contextlib.contextmanager
def replaced_file(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """An empty file beside `path` to write into; it replaces `path` when the block succeeds, all of it on the disk before.

    mode: its permissions. When the block raises, the file is removed and `path` is unchanged. Writers take turns: one waits for the one
    before it, TURN_SECONDS at most. Raises OSError, BlockingIOError after that time.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    lock = _turn(path, temporary)
    try:
        yield temporary
        if mode is not None:
            os.fchmod(lock, mode)
        to_disk(temporary)
        os.replace(temporary, path)
        to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _turn(path: Path, temporary: Path) -> int:
    """Open and empty the file that a writer of `path` writes into, once no other process has it: it is locked until it is closed."""
    deadline = time.monotonic() + TURN_SECONDS
    while True:
        descriptor = _new_file(str(temporary), os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        except OSError:  # a file system without locks
            mine = True
        try:
            # the one before may have given it the name `path` in the meantime, or removed it
            if mine and os.path.samestat(os.fstat(descriptor), os.stat(temporary)):
                os.ftruncate(descriptor, 0)
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise BlockingIOError(errno.EAGAIN, "another process is writing it", str(path))
        time.sleep(0.01)


def _new_file(path: str, flags: int) -> int:
    """Opener of a file to write: a link, or what is no regular file, is removed and not written through."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
    os.unlink(path)
    return os.open(path, flags | os.O_CLOEXEC | os.O_EXCL, 0o666)


def to_disk(path: Path) -> None:
    """fsync of a file or folder, so that it survives a power loss. Does nothing on file systems that cannot. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def tree_to_disk(folder: Path) -> None:
    """`to_disk` of every file and folder below, and of the folder itself. Raises OSError."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                to_disk(Path(parent, name))
        to_disk(Path(parent))


def open_regular(path: str | Path, *, links: bool = False) -> BinaryIO:
    """Open a file for reading that must be a regular one, and unless `links` no link: a FIFO in a shared folder would be waited for for
    ever. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_small(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes (a value of `limits`). Raises RequestError for a larger one, OSError."""
    with open_regular(path, links=True) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else None
    if data is None or len(data) > most:
        size = max(size, most + 1)
        raise RequestError(filled("{}: {}; such a file has at most {}; copy it again", path, quantity(size, "B"), quantity(most, "B")))
    return data


def read_object(path: Path, most: int, *, copy: str, missing: str = "") -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes. copy: the way out of a damaged file; missing: of one that is not there, by
    default the same. Raises RequestError."""
    try:
        value = json.loads(read_small(path, most))
    except FileNotFoundError:
        raise RequestError(filled("{}: no such file; {}", path, missing or copy)) from None
    except OSError as error:
        raise RequestError(filled("{}: cannot be read ({}); {} again", path, error.strerror, copy)) from None
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RequestError(filled("{}: not JSON ({}); {} again", path, reason, copy)) from None
    if not isinstance(value, dict):
        raise RequestError(filled("{}: not a JSON object; {} again", path, copy))
    return value


def check_target(target: Path, *, overwrite: bool, what: str) -> None:
    """Raises RequestError when `target` exists already, or cannot be written to."""
    if target.is_symlink() and not target.exists():
        raise RequestError(filled("{}: a broken symbolic link; remove it or choose another folder", target))
    if target.exists() and not target.is_dir():
        raise RequestError(filled("{}: is a file; choose another folder for the {}", target, what))
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise RequestError(filled("{}: not empty; add --overwrite to replace it, or choose another folder", target))
    parent = next(p for p in target.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RequestError(filled("{}: {} cannot be written to; choose another folder for the {}", target, parent, what))


def check_output_file(option: str, name: str | None) -> Path | None:
    """The absolute path of a file that a command writes at its end, for a check before its work. None for no name.

    option: its flag, for the message. Raises RequestError when the path is a folder, or no file can be written there.
    """
    if name is None:
        return None
    path = Path(name).expanduser().absolute()
    try:
        if path.is_dir():
            raise RequestError(filled("{} {}: a folder; give a file in it", option, name))
        if not path.parent.is_dir():
            raise RequestError(filled("{} {}: {} is not a folder; create it first, or choose another folder", option, name, path.parent))
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
        if len(os.fsencode(path.name + UNFINISHED)) > longest:
            raise RequestError(
                filled("{} {}…: a name has at most {} bytes here; choose a shorter one", option, name[:40], longest - len(UNFINISHED))
            )
        import tempfile  # late: the first frame of the console needs this module

        # permissions do not tell it to root, or on a file system of another machine
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = printable(error.strerror or str(error))
        raise RequestError(
            filled("{} {}: {} cannot be written to ({}); choose another folder", option, name, path.parent, reason)
        ) from None
    return path


def write_output(path: Path, text: str) -> None:
    """Write such a file atomically. Raises WorkError when it cannot be written."""
    try:
        write_text(path, text)
    except OSError as error:
        reason = "the disk is full" if disk_full(error) else error.strerror or error
        raise WorkError(
            filled("{}: cannot be written ({}); free some space or choose another folder, and run the command again", path, reason)
        ) from error


def need_space(target: Path, size: int, what: str) -> None:
    """Raises RequestError when the disk that `target` is on has less than `size` bytes free."""
    parent = next(p for p in target.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise RequestError(
            filled(
                "{}: the {} needs {}, but {} has {} free; free some space or choose another disk",
                target,
                what,
                quantity(size, "B"),
                parent,
                quantity(free, "B"),
            )
        )


@contextlib.contextmanager
def atomic_folder(target: Path, *, what: str) -> Iterator[Path]:
    """A temporary folder beside `target` to write into; it replaces `target` when the block succeeds.

    When the block raises, the temporary folder is removed and `target` is unchanged. All of it is on the disk before it gets its name. At
    every instant `target` is the old folder or the new one; on file systems that cannot exchange two names there is a moment without
    one, and what a process killed in it has left is put back by the next. Leftovers of a killed process are removed. Raises
    RequestError while another process writes there, and WorkError when the disk is full.
    """
    target = target.absolute()
    building, old = (target.with_name(target.name + ending) for ending in (UNFINISHED, ".old" + UNFINISHED))
    with only_writer(target, f"{target}: another process is writing it; wait for it, or choose another folder"):
        put_back(target, old)
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
        building.mkdir()
        with _replacement(target, building, old, what):
            yield building


@contextlib.contextmanager
def only_writer(target: Path, refusal: str) -> Iterator[None]:
    """Keeps other writers of `target` out, by a lock on a file beside it. Raises RequestError with `refusal`."""
    file = target.with_name(f".{target.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(lock, refusal)
            try:
                current = os.path.samestat(os.fstat(lock), os.stat(file))
            except FileNotFoundError:
                current = False
            if not current:
                continue  # the one before removed it between the opening and the lock
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return
        finally:
            os.close(lock)


@contextlib.contextmanager
def _replacement(target: Path, building: Path, old: Path, what: str) -> Iterator[None]:
    try:
        yield
        put_in_place(building, target, old)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        put_back(target, old)
        full = disk_full(error)
        if full is not None:
            raise WorkError(
                filled("{}: the disk is full; nothing was written; free some space and run the {} again", target, what)
            ) from error
        raise


@contextlib.contextmanager
def folder_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Keeps other processes out of a folder for the length of the block. Raises RequestError with `refusal` while one is in it."""
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(lock, refusal)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, refusal: str) -> None:
    """An exclusive lock. Raises RequestError when another process has it; a file system without locks has none to give."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RequestError(refusal) from None
    except OSError:
        # a file system without locks: another process cannot be detected
        pass


def put_in_place(building: Path, target: Path, old: Path) -> None:
    """Give a finished folder its name, all of it on the disk before, and remove what had the name until then. old: a name for that in
    the moment between two renames, where the file system cannot exchange two names. Raises OSError."""
    tree_to_disk(building)
    if not target.exists():
        os.rename(building, target)
    elif not _exchange(building, target):
        os.rename(target, old)
        os.rename(building, target)
    to_disk(target.parent)
    for leftover in (old, building):
        shutil.rmtree(leftover, ignore_errors=True)


def put_back(target: Path, old: Path) -> None:
    """Undo the first of the two renames of `put_in_place`, where a process was killed before the second. Raises OSError."""
    if old.exists() and not target.exists():
        os.rename(old, target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the kernel or the file system cannot."""
    import ctypes  # the first frame of the console needs this module, not this function

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


def disk_full(error: BaseException | None) -> OSError | None:
    """The "no space left" (or "quota exceeded") error among an error and its causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None
