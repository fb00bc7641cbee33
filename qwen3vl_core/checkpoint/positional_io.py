"""Reads and writes at an offset of a file, from several threads at once. Imports no torch.

Plain reads instead of a memory map: memory is bounded by the caller's buffers, and a failing disk raises an error
instead of killing the process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

from qwen3vl_core.files import open_regular

OPEN_FILES = 16


class EndOfFile(Exception):
    """A file ended before the requested bytes."""


class _Handles(OrderedDict[Path, int]):
    """The files that one thread has open; closed when the thread is gone."""

    def __del__(self) -> None:
        for handle in self.values():
            with contextlib.suppress(OSError):
                os.close(handle)


class FileReader:
    """Files open for reading. Each thread has its own handles, so that the kernel reads ahead where that thread reads."""

    def __init__(self) -> None:
        self._local = threading.local()

    def _handle(self, path: Path) -> int:
        handles = getattr(self._local, "handles", None)
        if handles is None:
            handles = self._local.handles = _Handles()
        handle = handles.get(path)
        if handle is None:
            # a checkpoint of many ranks has more files than a process may hold open
            if len(handles) >= OPEN_FILES:
                os.close(handles.popitem(last=False)[1])
            with open_regular(path, links=True) as file:
                handle = handles[path] = os.dup(file.fileno())
            if hasattr(os, "posix_fadvise"):
                with contextlib.suppress(OSError):
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        else:
            handles.move_to_end(path)
        return handle

    def read(self, path: Path, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes at `offset`. Raises EndOfFile, or OSError for a file that cannot be opened."""
        handle, done = self._handle(path), 0
        while done < len(out):
            got = os.preadv(handle, [out[done:]], offset + done)
            if not got:
                raise EndOfFile(f"{path}: ended at {offset + done}")
            done += got


def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError, with ENOSPC where the disk is full."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], offset + done)
