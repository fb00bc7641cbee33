"""Files whose digests are made while they are written. Imports no torch.

A save would otherwise read all of its files once more at the end. Here a thread reads the bytes in the memory that they are written from,
while they are written.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qwen3vl_core.file_digests import CHUNK, Digest

PARALLEL = 1 << 20
"""Fewer bytes are read by the thread that writes them: another one costs more."""


class WrittenDigests:
    """The digests of files that forked processes write, in an unnamed temporary file: they inherit it and append to it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, name: str, digest: Digest, waited: float) -> None:
        """waited: seconds that the writer has waited for the digest. A write of one line appends it whole."""
        line = json.dumps([name, digest[0], digest[1], round(waited, 6)]).encode() + b"\n"
        os.write(self._file.fileno(), line)

    def read(self, folder: Path) -> tuple[dict[str, Digest], float]:
        """The digests of those files of a folder that have the length they were written with, and the longest wait for one."""
        digests: dict[str, Digest] = {}
        longest, at, text = 0.0, 0, b""
        while data := os.pread(self._file.fileno(), 1 << 26, at):
            text, at = text + data, at + len(data)
        for line in text.splitlines():
            try:
                name, size, crcs, waited = json.loads(line)
            except ValueError:  # the temporary file's disk was full
                continue
            if (folder / name).stat().st_size == size:
                digests[name], longest = (size, tuple(crcs)), max(longest, waited)
        return digests, longest


class DigestedFile(io.BufferedWriter):
    """A new file that is written from its beginning to its end. When it is closed its digest is added to `digests`; none is after a
    seek: it is made from the file later, then."""

    def __init__(self, path: str | os.PathLike[str], digests: WrittenDigests) -> None:
        """Raises OSError."""
        super().__init__(io.FileIO(path, "wb"))
        self._digests, self._name, self._in_order = digests, os.path.basename(path), True
        self._pool = ThreadPoolExecutor(1)
        self._chunks: list[int] = []
        self._crc = self._filled = 0
        """CRC-32 and bytes of the chunk that is not full yet."""
        self._waited = 0.0

    def write(self, data: Any, /) -> int:
        """Raises OSError."""
        view = memoryview(data).cast("B")
        if len(view) < PARALLEL:
            self._add(view)
            return super().write(view)
        # neither holds the interpreter's lock
        added = self._pool.submit(self._add, view)
        try:
            return super().write(view)
        finally:
            began = time.monotonic()
            added.result()
            self._waited += time.monotonic() - began

    def _add(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            piece = data[at : at + CHUNK - self._filled]
            self._crc, self._filled, at = zlib.crc32(piece, self._crc), self._filled + len(piece), at + len(piece)
            if self._filled == CHUNK:
                self._next_chunk()

    def _next_chunk(self) -> None:
        self._chunks.append(self._crc)
        self._crc = self._filled = 0

    def fileno(self) -> int:
        """For fsync: what is in the buffer would not be on the disk after it."""
        self.flush()
        return super().fileno()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._in_order = False
        return super().seek(offset, whence)

    def close(self) -> None:
        """Raises OSError when the last bytes cannot be written."""
        if self.closed:
            return
        try:
            self.flush()
            size = len(self._chunks) * CHUNK + self._filled
            if self._filled:
                self._next_chunk()
            if self._in_order:
                self._digests.add(self._name, (size, tuple(self._chunks)), self._waited)
        finally:
            self._pool.shutdown()
            super().close()
