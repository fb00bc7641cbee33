"""Plain ustar archives: a writer that copies bytes, and a reader for one sample's bytes in a shard. Imports no torch.

`tarfile` spends most of its time on header objects; these 512-byte headers are packed and parsed directly, in the
format that tar, webdataset and Energon read. Owner and time are fixed, so that equal members give equal bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from qwen3vl_core import limits
from qwen3vl_core.files import UNFINISHED

BLOCK = 512
RECORD = 20 * BLOCK
"""Archives end on a multiple of this, with at least two empty blocks."""
LARGEST_MEMBER = 8**11 - 1
"""The limit of the eleven octal digits of the size field."""
_MODE_OWNER_GROUP = b"0000644\x00" + b"0000000\x00" * 2
_TIME = b"\0" + b"%011o\0" % 0
_LINK_MAGIC_NAMES = bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
_REST = bytes(12)
# the checksum counts its own field as eight spaces; "0" is the type of a regular file
_FIXED_SUM = sum(_MODE_OWNER_GROUP + _TIME + b"        0" + _LINK_MAGIC_NAMES)
_BLANK = np.frombuffer(bytes(100) + _MODE_OWNER_GROUP + bytes(11) + _TIME + b"        0" + _LINK_MAGIC_NAMES + bytes(155) + _REST, np.uint8)


def padded(size: int) -> int:
    """Bytes that `size` bytes of content take, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def member_size(size: int) -> int:
    """Bytes that a member with `size` bytes of content takes, including its header."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a regular file's content. Raises ValueError for a name or size that ustar cannot hold."""
    if not name or "\0" in name or ("/" in name and not {"", ".."}.isdisjoint(name.split("/"))) or name == "..":
        raise ValueError(f"{name!r} is no relative file name")
    if not 0 <= size <= LARGEST_MEMBER:
        raise ValueError(f"{name}: {size} bytes; ustar holds up to {LARGEST_MEMBER}")
    raw, prefix = name.encode(), b""
    if len(raw) > 100:
        cut = raw.rfind(b"/", 0, 156)
        if cut < 1 or len(raw) - cut - 1 > 100:
            raise ValueError(f"{name!r} is too long for ustar")
        prefix, raw = raw[:cut], raw[cut + 1 :]
    length = b"%011o" % size
    total = _FIXED_SUM + sum(raw) + sum(length) + sum(prefix)
    return b"%b%b%b%b%06o\0 0%b%b%b" % (
        raw.ljust(100, b"\0"), _MODE_OWNER_GROUP, length, _TIME, total, _LINK_MAGIC_NAMES, prefix.ljust(155, b"\0"), _REST,
    )  # fmt: skip


def header_blocks(names: list[bytes], sizes: list[int]) -> np.ndarray:
    """uint8 [n, 512]: the result of `header` for each, vectorised. names: known to be relative, of at most 100 bytes."""
    blocks = np.tile(_BLANK, (len(names), 1))
    blocks[:, :100] = np.array(names, dtype="S100").view(np.uint8).reshape(-1, 100)
    blocks[:, 124:135] = _octal(np.array(sizes, dtype=np.int64), 11)
    sums = blocks[:, :100].sum(axis=1, dtype=np.int32) + blocks[:, 124:135].sum(axis=1, dtype=np.int32) + _FIXED_SUM
    blocks[:, 148:154] = _octal(sums, 6)
    blocks[:, 154] = 0
    return blocks


def _octal(values: np.ndarray, digits: int) -> np.ndarray:
    """int64 [n] -> uint8 [n, digits], as text."""
    return ((values[:, None] >> np.arange(3 * (digits - 1), -1, -3)) & 7).astype(np.uint8) + ord("0")


class TarWriter:
    """Writes PATH.tmp and renames it when the block succeeds; otherwise removes it.

    with TarWriter(path) as tar: tar.add("00000001.json", b"...")
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        """Bytes of the members so far."""
        self._beside = path.with_name(path.name + UNFINISHED)
        self._file = open(self._beside, "wb", buffering=4 << 20)  # noqa: SIM115 - closed by __exit__

    def add(self, name: str, data: bytes) -> None:
        """Append a regular file. Raises ValueError for a name that an archive cannot hold, OSError when the disk fails."""
        self._file.write(header(name, len(data)))
        self._file.write(data)
        if len(data) % BLOCK:
            self._file.write(bytes(padded(len(data)) - len(data)))
        self.size += member_size(len(data))

    def close(self) -> None:
        """Finish the archive and give it its final name."""
        end = self.size + 2 * BLOCK
        self._file.write(bytes(2 * BLOCK + -end % RECORD))
        self._file.close()
        os.replace(self._beside, self.path)

    def discard(self) -> None:
        """Delete the unfinished archive."""
        # closing flushes and may fail as the write did; the descriptor is freed nevertheless
        with contextlib.suppress(OSError):
            self._file.close()
        self._beside.unlink(missing_ok=True)

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise


def _member(block: bytes) -> tuple[str, int, bytes] | None:
    """(name, content size, type) of a header block; None for an empty block. Raises ValueError for a damaged one."""
    if not any(block):
        return None
    try:
        expected = int(block[148:156].split(b"\0", 1)[0].strip() or b"0", 8)
        size = int.from_bytes(block[125:136]) if block[124] & 0x80 else int(block[124:136].rstrip(b" \0") or b"0", 8)
        # Adler's lower half is 1 + the sum of the bytes, modulo 65521, in a tenth of the time; its own field counts as spaces
        total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32
        if len(block) != BLOCK or expected - total not in (0, 65521):
            raise ValueError("checksum")
        name = block[:100].rstrip(b"\0").split(b"\0", 1)[0].decode()
        prefix = block[345:500].split(b"\0", 1)[0].decode() if block[257:263] == b"ustar\0" else ""
        if size < 0:
            raise ValueError("a size below 0")
    except (ValueError, IndexError) as error:
        raise ValueError(f"damaged tar header ({error})") from error
    return (f"{prefix}/{name}" if prefix else name), size, block[156:157]


def members(chunk: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files in a stretch of an archive. Raises ValueError when it is damaged or cut off."""
    at = 0
    while at < len(chunk):
        member = _member(chunk[at : at + BLOCK])
        if member is None:
            return
        name, size, kind = member
        if kind not in (b"0", b"\0"):
            # long names, folders and other types, from other writers: tarfile supports all of them
            yield from _members_by_tarfile(chunk[at:])
            return
        if at + BLOCK + size > len(chunk):
            raise ValueError(f"{name}: cut off")
        yield name, chunk[at + BLOCK : at + BLOCK + size]
        at += member_size(size)


def member_places(read: Callable[[int, int], bytes], size: int) -> Iterator[tuple[str, int, int]]:
    """(name, begin of the content, its size) of the regular files in the first `size` bytes of what read(begin, size) reads, from their
    headers alone. Raises ValueError when it is damaged or cut off, and for members of other types."""
    at = 0
    while at < size:
        member = _member(read(at, BLOCK))
        if member is None:
            return
        name, content, kind = member
        if kind not in (b"0", b"\0") or at + BLOCK + content > size:
            raise ValueError(f"{name}: cut off, or no regular file")
        yield name, at + BLOCK, content
        at += member_size(content)


def _members_by_tarfile(chunk: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        for entry in tar_entries(io.BytesIO(chunk), len(chunk)):
            if entry.isreg():
                yield entry.name, chunk[entry.offset_data : entry.offset_data + entry.size]
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error


class _BoundedInfo(tarfile.TarInfo):
    """A header whose size is checked before anything of that size is read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _NAMES and info.size > limits.TAR_NAME):
            raise tarfile.ReadError(f"a member with a size of {info.size:,} bytes")
        return info


_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
"""Members that hold the name or other values of the next one, which `tarfile` reads whole."""


def _plain_entries(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The regular files that an archive begins with, up to the first header that only `tarfile` understands, in a fifth of its time."""
    at = 0
    while True:
        file.seek(at)
        try:
            member = _member(file.read(BLOCK))
            begin = at
            if member is not None and member[2] == b"x" and member[1] <= _TIMES and _only_times(file.read(member[1])):
                # webdataset's writer keeps the parts of a second in a header of their own
                begin = at + member_size(member[1])
                file.seek(begin)
                member = _member(file.read(BLOCK))
        except ValueError:
            return
        if member is None or member[2] not in (b"0", b"\0") or member[0][-1:] in ("", "/") or begin + BLOCK + member[1] > size:
            return
        info = tarfile.TarInfo(member[0])
        info.size, info.offset, info.offset_data = member[1], at, begin + BLOCK
        yield info
        at = begin + member_size(member[1])


_TIMES = 1024


def _only_times(records: bytes) -> bool:
    """Whether the values of an extended header say nothing of the name, the size or the type of the file after it."""
    at = 0
    while at < len(records):
        length, _, rest = records[at:].partition(b" ")
        if not length.isdigit() or rest.partition(b"=")[0] not in (b"mtime", b"atime", b"ctime"):
            return False
        at += max(int(length), 1)
    return at == len(records)


def tar_entries(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of an archive of `size` bytes, in order: of any type, from any writer. Content is at `offset_data`.

    Raises tarfile.TarError when it is damaged or cut off, for sizes that it cannot hold, and for sparse files.
    """
    begin = 0
    for plain in _plain_entries(file, size):
        yield plain
        begin = plain.offset_data + padded(plain.size)
    # from the first other header on; no member ends at 0
    file.seek(begin)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_BoundedInfo) as archive:
            while (member := archive.next()) is not None:
                # the archive remembers every member: with millions of them that is gigabytes
                archive.members = []  # type: ignore[attr-defined]
                if member.size < 0 or member.issparse():
                    raise tarfile.ReadError(f"{member.name}: a sparse file, or a size below 0")
                if member.isreg() and member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"cut off within {member.name}")
                yield member
    except (ValueError, OverflowError, RecursionError, IndexError) as error:
        # of names and numbers that tarfile does not expect
        raise tarfile.ReadError(f"a damaged header ({error})") from error


def split_key(name: str) -> tuple[str, str] | None:
    """`folder/00000001.img0.jpg` -> (`folder/00000001`, `img0.jpg`), as webdataset does; None without a dot."""
    folder, slash, base = name.rpartition("/")
    key, dot, part = base.partition(".")
    return (folder + slash + key, part) if dot and key else None


def sample_offsets(path: Path) -> list[int]:
    """Where each sample of a shard begins, and where the last one ends, from the headers.

    Raises ValueError when the archive is damaged or cut off.
    """
    offsets: list[int] = []
    end, current = 0, None
    try:
        with open(path, "rb") as file:
            for entry in tar_entries(file, os.fstat(file.fileno()).st_size):
                key = split_key(entry.name) if entry.isreg() else None
                if key is not None and key[0] != current:
                    offsets.append(entry.offset)
                    current = key[0]
                end = entry.offset_data + padded(entry.size)
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error
    with open(path, "rb") as file:
        # tarfile takes a truncated header for the end of the archive
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError("the end of the archive is missing")
    return [*offsets, end]


def sample_parts(chunk: bytes) -> tuple[str, dict[str, bytes]]:
    """(key, {part: content}) from a sample's bytes in a shard; no parts if they hold no file of a sample. Raises ValueError when
    they are damaged."""
    key, parts = "", dict[str, bytes]()
    for name, content in members(chunk):
        split_name = split_key(name)
        if split_name is not None:
            key = split_name[0]
            parts[split_name[1]] = content
    return key, parts
