"""Digests of a folder's files, by which later damage to them is found: a CRC-32 of every 4 MiB. Imports no torch.

A CRC-32 finds every flipped bit and every run of damage up to 32 bits, and overlooks other damage with a chance of 2**-32. It guards
against faulty disks and copies, not against attackers.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.files import open_regular, write_text

NAME = "digests.json"
VERSION = 1
CHUNK = 4 << 20
PIECE = 256 << 10
"""Bytes that are read at once, into memory that stays in the CPU's cache."""
SMALL = 1 << 20
"""Files up to this size are compared whole also where only a look is asked for."""
THREADS = 8

Digest = tuple[int, tuple[int, ...]]
"""(bytes of the file, CRC-32 of each chunk)."""


_local = threading.local()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0))))


def crc_at(descriptor: int, index: int) -> int:
    """CRC-32 of one chunk of an open file. Raises OSError."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(PIECE))
    crc, at, end = 0, index * CHUNK, (index + 1) * CHUNK
    while at < end and (count := os.preadv(descriptor, [buffer[: end - at]], at)):
        crc, at = zlib.crc32(buffer[:count], crc), at + count
    return crc


def of_files(folder: Path, names: Iterable[str]) -> dict[str, Digest]:
    """Digests of these files, each read once by several threads. Raises OSError."""
    digests: dict[str, Digest] = {}
    with _threads() as pool:
        for name in names:
            descriptor = os.open(folder / name, os.O_RDONLY)
            try:
                size = os.fstat(descriptor).st_size
                chunks = pool.map(lambda index, descriptor=descriptor: crc_at(descriptor, index), range(-(-size // CHUNK)))
                digests[name] = size, tuple(chunks)
            finally:
                os.close(descriptor)
    return digests


def add(folder: Path) -> None:
    """Write the digests of a folder's regular files, those below it not among them. Raises OSError."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False) and entry.name != NAME)
    write_text(folder / NAME, written(of_files(folder, names)))


def written(digests: Mapping[str, Digest]) -> str:
    """The text of the digests' file, which holds a digest of itself."""
    files = {name: {"bytes": size, "crc32": "".join(f"{crc:08x}" for crc in chunks)} for name, (size, chunks) in sorted(digests.items())}
    return json.dumps({"v": VERSION, "chunk": CHUNK, "files": files, "self": _own(files)}) + "\n"


def _own(files: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(files, sort_keys=True).encode()):08x}"


def read(folder: Path) -> dict[str, Digest] | None:
    """The digests of a folder; None where it has none. Raises ValueError when their file is damaged, OSError when it cannot be read."""
    try:
        with open_regular(folder / NAME, links=True) as file:
            text = file.read(limits.DIGESTS + 1)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text[: limits.DIGESTS])
        files = value["files"]
        if value["v"] != VERSION or value["chunk"] != CHUNK or value["self"] != _own(files):
            raise ValueError("not what was written")
        digests: dict[str, Digest] = {}
        for name, entry in files.items():
            size, crcs = entry["bytes"], entry["crc32"]
            if name != os.path.basename(name) or not isinstance(size, int) or len(crcs) != 8 * -(-size // CHUNK):
                raise ValueError(f"{name[:80]} is no file of a checkpoint")
            digests[name] = size, tuple(int(crcs[i : i + 8], 16) for i in range(0, len(crcs), 8))
        return digests
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{NAME} is damaged ({str(error)[:80]})") from None


class DigestChecker:
    """Compares what is read of a folder's files with their digests, each chunk once. Several threads may use it at once."""

    def __init__(self, digests: Mapping[str, Digest] | None) -> None:
        self._digests = digests or {}
        self._checked: set[tuple[str, int]] = set()

    def problem(self, file: Path, begin: int, count: int) -> str | None:
        """The first difference in the chunks that hold these bytes; None where there is none, and for files without a digest. Raises
        OSError."""
        known = self._digests.get(file.name)
        if known is None or not count:
            return None
        wanted = [(file.name, i) for i in range(begin // CHUNK, (begin + count - 1) // CHUNK + 1)]
        missing = [item for item in wanted if item not in self._checked]
        if not missing:
            return None
        with open_regular(file, links=True) as stream:
            for item in missing:
                if item[1] >= len(known[1]) or crc_at(stream.fileno(), item[1]) != known[1][item[1]]:
                    return f"differs from what was written, from byte {item[1] * CHUNK} on"
                self._checked.add(item)
        return None


def quick_problem(folder: Path) -> str | None:
    """The first file that is missing, has another length, or is small and differs; None also for a folder without digests. Raises
    ValueError when the digests are damaged, OSError."""
    digests = read(folder)
    if digests is None:
        return None
    small = {name: digest for name, digest in digests.items() if digest[0] <= SMALL}
    return sizes_problem(folder, digests) or problem(folder, small)


def sizes_problem(folder: Path, digests: Mapping[str, Digest]) -> str | None:
    """The first file that is missing or has another length; reads none of them."""
    for name, (size, _) in digests.items():
        try:
            size_now = os.stat(folder / name).st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if size_now != size:
            return f"{name} has {size_now} bytes, {size} were written"
    return None


def problem(
    folder: Path, digests: Mapping[str, Digest], *, share: tuple[int, int] = (0, 1), told: Callable[[int], None] | None = None
) -> str | None:
    """The first difference between the files and their digests: one line, or None.

    share: (i, n): every n-th chunk only, from the i-th on, for n processes that check together. told: called with the bytes of each
    chunk that was read.
    """
    with contextlib.ExitStack() as stack:
        work: list[tuple[str, int, int, int, int]] = []
        for name, (size, chunks) in digests.items():
            try:
                descriptor = stack.enter_context(open_regular(folder / name, links=True)).fileno()
            except OSError as error:
                return f"{name}: {error.strerror}"
            if (size_now := os.fstat(descriptor).st_size) != size:
                return f"{name} has {size_now} bytes, {size} were written"
            work += [(name, descriptor, index, crc, size) for index, crc in enumerate(chunks)]

        def differs(item: tuple[str, int, int, int, int]) -> str | None:
            name, descriptor, index, crc, size = item
            try:
                same = crc_at(descriptor, index) == crc
            except OSError as error:
                return f"{name}: {error.strerror}"
            if told is not None:
                told(min(CHUNK, size - index * CHUNK))
            begin = index * CHUNK
            return None if same else f"{name} differs from what was written, between bytes {begin} and {min(begin + CHUNK, size)}"

        # ends before the files are closed
        pool = stack.enter_context(_threads())
        return next(filter(None, pool.map(differs, work[share[0] :: share[1]])), None)
