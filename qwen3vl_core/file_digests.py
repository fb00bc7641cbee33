"""Digests of a folder's files, by which later damage to them is found: a CRC-32 of every 4 MiB. Imports no torch.

A CRC-32 finds every flipped bit and every run of damage up to 32 bits, and overlooks other damage with a chance of 2**-32. It guards
against faulty disks and copies, not against attackers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import operator
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
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
PASSING = 64 << 10
"""Smaller pieces of a chunk are read again for its digest: one more piece costs as much."""
MANY = 32
"""After so many small pieces of a chunk it is read at once, while it is in memory."""
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


def joined(first: int, second: int, count: int) -> int:
    """CRC-32 of two pieces, one after the other, from the CRC-32 of each; the second piece has `count` bytes.

    `count` zero bytes after the first piece multiply its CRC by a power of two, as polynomials over GF(2).
    """
    for power in range(count.bit_length()):
        if count >> power & 1:
            columns, moved = _zeros(power), 0
            for bit in range(32):
                if first >> bit & 1:
                    moved ^= columns[bit]
            first = moved
    return first ^ second


@functools.cache
def _zeros(power: int) -> tuple[int, ...]:
    """What 2**power zero bytes make of each of the 32 bits of a CRC-32."""
    if power == 0:
        # the ones' complements before and after cancel out
        return tuple(zlib.crc32(b"\0", (1 << bit) ^ 0xFFFFFFFF) ^ zlib.crc32(b"\0", 0xFFFFFFFF) for bit in range(32))
    half = _zeros(power - 1)
    return tuple(functools.reduce(operator.xor, (half[i] for i in range(32) if column >> i & 1), 0) for column in half)


class _Pieces:
    """The pieces of one chunk that were read: (begin, end, CRC-32), in bytes of the file."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, int]] = []
        self.bytes = self.small = 0


class DigestChecker:
    """Compares what is read of a folder's files with their digests, each chunk once. Several threads may use it at once.

    A chunk is read for that as a whole when the first bytes of it are read. `in_passing` instead takes the digests of the bytes that were
    read anyway, so that they go through memory once; their damage is then found after they were used, at the end of the block.
    """

    def __init__(self, digests: Mapping[str, Digest] | None) -> None:
        self._digests = digests or {}
        self._checked: set[tuple[str, int]] = set()
        self._passing = False
        self._pieces: dict[tuple[str, int], _Pieces] = {}
        self._lock = threading.Lock()

    def problem(self, file: Path, begin: int, data: memoryview) -> str | None:
        """The first difference in the chunks that hold `data`, which was read of the file from byte `begin` on; None where there is none,
        and for files without a digest. Raises OSError."""
        known, count = self._digests.get(file.name), len(data)
        if known is None or not count:
            return None
        wanted = [(file.name, i) for i in range(begin // CHUNK, (begin + count - 1) // CHUNK + 1)]
        missing = [item for item in wanted if item not in self._checked]
        if not missing:
            return None
        if self._passing:
            return next(filter(None, (self._take(file, item, begin, data) for item in missing)), None)
        with open_regular(file, links=True) as stream:
            for item in missing:
                if (problem := self._differs(item, lambda index: crc_at(stream.fileno(), index))) is not None:
                    return problem
        return None

    def _differs(self, item: tuple[str, int], crc_of: Callable[[int], int]) -> str | None:
        crcs = self._digests[item[0]][1]
        if item[1] >= len(crcs) or crc_of(item[1]) != crcs[item[1]]:
            return f"differs from what was written, from byte {item[1] * CHUNK} on"
        self._checked.add(item)
        return None

    def _take(self, file: Path, item: tuple[str, int], begin: int, data: memoryview) -> str | None:
        """Take the digest of the part of `data` that is in one chunk; compare the chunk when all of it was read."""
        first, last = self._limits(item)
        low, high = max(begin, first), min(begin + len(data), last)
        before = None
        with self._lock:
            pieces = self._pieces.setdefault(item, _Pieces())
            small = high - low < PASSING
            pieces.small += small
            whole = pieces.small >= MANY
            if not small:
                # the CRC of the piece before goes on
                before = next((piece for piece in pieces.taken if piece[1] == low), None)
                if before is not None:
                    pieces.taken.remove(before)
        if not small:
            start, _, crc = before or (low, low, 0)
            crc = zlib.crc32(data[low - begin : high - begin], crc)
            with self._lock:
                pieces.taken.append((start, high, crc))
                pieces.bytes += high - low
                whole = whole or pieces.bytes >= last - first
        return self._finish(file, item) if whole else None

    def _limits(self, item: tuple[str, int]) -> tuple[int, int]:
        """The bytes [first, last) of a chunk."""
        return item[1] * CHUNK, min((item[1] + 1) * CHUNK, self._digests[item[0]][0])

    def _finish(self, file: Path, item: tuple[str, int]) -> str | None:
        """Compare a chunk by the digests of its pieces; what is between them is read."""
        with self._lock:
            pieces = self._pieces.pop(item, None)
        if pieces is None:
            return None
        (at, last), crc = self._limits(item), 0
        with open_regular(file, links=True) as stream:
            taken = sorted(pieces.taken)
            if any(a[1] > b[0] for a, b in itertools.pairwise(taken)) or 2 * sum(end - begin for begin, end, _ in taken) < last - at:
                # read twice, or little of it
                return self._differs(item, lambda index: crc_at(stream.fileno(), index))
            for begin, end, piece in [*taken, (last, last, 0)]:
                while at < begin:
                    gap = os.pread(stream.fileno(), min(PIECE, begin - at), at)
                    if not gap:
                        break
                    crc, at = zlib.crc32(gap, crc), at + len(gap)
                crc, at = joined(crc, piece, end - begin), end
        return self._differs(item, lambda _: crc)

    @contextlib.contextmanager
    def in_passing(self, folder: Path, damaged: Callable[[Path, str], Exception]) -> Iterator[None]:
        """Take digests from the bytes that are read in this block, and raise `damaged(file, problem)` at its end for what differs, also in
        place of an error of the block: damage may be its cause."""
        self._passing = True
        try:
            yield
        except Exception:
            self._end(folder, damaged)
            raise
        finally:
            self._passing = False
        self._end(folder, damaged)

    def _end(self, folder: Path, damaged: Callable[[Path, str], Exception]) -> None:
        def problem(item: tuple[str, int]) -> str | None:
            try:
                return self._finish(folder / item[0], item)
            except OSError as error:
                return error.strerror

        with _threads() as pool:
            work = sorted(self._pieces)
            for item, found in zip(work, pool.map(problem, work), strict=True):
                if found is not None:
                    raise damaged(folder / item[0], found)


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
