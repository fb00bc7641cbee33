"""Media that are not files of their own: stretches of a shard or of a spool file, as one name. Imports no torch.

A name is a path, or a path, an offset, a size and a file extension with zero bytes between them, which no path holds.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

SPOOL_SUFFIX = ".spool"


def range_name(path: str, offset: int, size: int, suffix: str = "") -> str:
    """The name of a stretch of a file. suffix: the extension that it would have as a file."""
    return f"{path}\0{offset}\0{size}\0{suffix}"


def split_name(name: str) -> tuple[str, int, int]:
    """(path, offset, size) of a stretch; size -1 for a whole file."""
    path, separator, rest = name.partition("\0")
    if not separator:
        return path, 0, -1
    offset, size, _ = rest.split("\0")
    return path, int(offset), int(size)


def read_range(name: str) -> bytes:
    """The bytes that a name stands for. Raises OSError."""
    path, offset, size = split_name(name)
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


class RangeReader:
    """Reads stretches of files that follow each other in one file: it stays open until another one is read."""

    def __init__(self) -> None:
        self._file: io.FileIO | None = None
        self._path, self._identity = "", (0, 0, 0, 0)

    def open(self, path: str) -> tuple[int, int]:
        """(descriptor, modification time in ns) of the file as it is now. Raises OSError."""
        status = os.stat(path)
        identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if self._file is None or (path, identity) != (self._path, self._identity):
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with its last reference
            self._path, self._identity = path, identity
        return self._file.fileno(), status.st_mtime_ns

    def __getstate__(self) -> dict[str, Any]:
        return RangeReader().__dict__


def identity_of(name: str) -> str:
    """What of a name tells whether the content is the same: a spool file is another one in every run, its content has a digest."""
    return "" if "\0" in name and split_name(name)[0].endswith(SPOOL_SUFFIX) else name


class Spool:
    """Bytes from within records, kept in files until they are written into shards: memory would not hold them.

    Each process appends to a file of its own; the folder is removed by `close`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """folder: where the files go; None: a temporary folder, made when it is needed."""
        self._folder, self._path, self._size = folder, "", 0
        self._file, self._owner = -1, 0

    def add(self, content: bytes) -> tuple[str, int]:
        """(name of the stretch, digest of its content as 62 bits). Raises OSError."""
        if not self._path or self._owner != os.getpid():
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="qwen3vl-"))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._path, self._size = str(self._folder / f"{os.getpid()}{SPOOL_SUFFIX}"), 0
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._owner = os.getpid()
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        name = range_name(self._path, self._size, len(content))
        self._size += len(content)
        # of the same record in a later prepare: a hash that withstands an attack would take longer than all other checks of a picture
        return name, zlib.crc32(content) << 30 | zlib.adler32(content) >> 2

    def clear(self) -> None:
        """Forget what was added, to use its space again."""
        if self._path:
            os.truncate(self._path, 0)
            self._size = 0

    def close(self) -> None:
        if self._owner == os.getpid():
            os.close(self._file)
        self._path, self._owner = "", 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        # another process has a file of its own
        return self.__dict__ | {"_path": "", "_size": 0, "_file": -1, "_owner": 0}
