"""Keeps a run's log from filling the disk: what exceeds a length moves to `output.log.1`. Standard library only."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import UNFINISHED
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import LOG, OLD_LOG

VARIABLE = "QWEN3VL_LOG_BYTES"
LARGEST = 256 << 20
"""Bytes of a log before it is rotated; the environment variable overrides it."""
COLLAPSE_RANGE = 8
_PIECE = 16 << 20


def largest() -> int:
    """LARGEST, or what the environment says. Raises RequestError."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return LARGEST
    if not text.isdecimal() or not 1 << 16 <= int(text) < 1 << 60:
        raise RequestError(filled("{}={}: must be bytes from 65536 on; leave it out", VARIABLE, text))
    return int(text)


def rotate(run_dir: Path, descriptor: int, most: int) -> bool:
    """Move the content of the log, open as `descriptor`, to the older file once it is longer than `most` bytes. Returns whether it was.

    The run's processes have the log open, and go on appending: it stays the same file and loses its beginning. Where the file system
    cannot take bytes from the beginning of a file, it is emptied, which may lose what is written in that instant. Raises OSError.
    """
    size = os.fstat(descriptor).st_size
    if size <= most:
        return False
    block = os.fstat(descriptor).st_blksize or 4096
    cut = (size - 1) // block * block
    beside = run_dir / (OLD_LOG + UNFINISHED)
    with open(run_dir / LOG, "rb") as log, open(beside, "wb") as older:
        done = _copy(log.fileno(), older.fileno(), 0, cut)
        if not _without_beginning(descriptor, cut):
            while (end := os.fstat(descriptor).st_size) > done:
                done = _copy(log.fileno(), older.fileno(), done, end)
            os.ftruncate(descriptor, 0)
    os.replace(beside, run_dir / OLD_LOG)
    return True


def _copy(source: int, target: int, begin: int, end: int) -> int:
    while begin < end and (data := os.pread(source, min(_PIECE, end - begin), begin)):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
        begin += len(data)
    return begin


def _without_beginning(descriptor: int, size: int) -> bool:
    """Take the first `size` bytes from a file, a multiple of its file system's blocks, in one step; False where that cannot be done."""
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return False
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return fallocate(descriptor, COLLAPSE_RANGE, 0, size) == 0
