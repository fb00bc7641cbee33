"""Files whose digests are made while they are written. Imports no torch.

A save would otherwise read all of its files once more at the end. Here threads read each chunk back from the system's memory as soon as
it is written, while the next ones and fsync wait for the disk.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qwen3vl_core.file_digests import CHUNK, Digest, crc_at

THREADS = 2
"""For one file. Each reads faster than a process writes."""


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
    seek, nor when the file cannot be read back: it is made from the file later, then."""

    def __init__(self, path: str | os.PathLike[str], digests: WrittenDigests) -> None:
        """Raises OSError."""
        super().__init__(io.FileIO(path, "wb"))
        self._digests, self._name, self._at, self._in_order = digests, os.path.basename(path), 0, True
        self._descriptor = os.open(path, os.O_RDONLY)
        self._pool = ThreadPoolExecutor(THREADS)
        self._chunks: list[Future[int]] = []

    def write(self, data: Any, /) -> int:
        count = super().write(data)
        self._at += count
        if self._at // CHUNK > len(self._chunks):
            self.flush()
            self._read_until(self._at // CHUNK)
        return count

    def fileno(self) -> int:
        """For fsync: what is in the buffer would not be on the disk after it."""
        self.flush()
        return super().fileno()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._in_order = False
        return super().seek(offset, whence)

    def _read_until(self, end: int) -> None:
        self._chunks += [self._pool.submit(crc_at, self._descriptor, index) for index in range(len(self._chunks), end)]

    def close(self) -> None:
        """Raises OSError when the last bytes cannot be written."""
        if self.closed:
            return
        try:
            self.flush()
            began = time.monotonic()
            self._read_until(-(-self._at // CHUNK))
            if self._in_order:
                crcs = [chunk.exception() is None and chunk.result() for chunk in self._chunks]
                if False not in crcs:
                    self._digests.add(self._name, (self._at, tuple(map(int, crcs))), time.monotonic() - began)
        finally:
            self._pool.shutdown(cancel_futures=True)
            os.close(self._descriptor)
            super().close()
