"""Writes stretches of shards: members copied to known offsets, with a checksum of the bytes. Imports no torch.

Every task names its input and its offset, so that the result does not depend on the number of processes. A picture costs
three system calls, and a mebibyte of shard one more: files are read into their final position in a buffer, which is
written unchanged, and the headers of all its members are made at once.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from qwen3vl_core.data.byte_ranges import RangeReader, split_name
from qwen3vl_core.data.tar import BLOCK, header, header_blocks, padded
from qwen3vl_core.errors import WorkError

_BUFFER = 1 << 20
"""Bytes of a shard that are assembled together: they stay in the CPU cache."""
_AT_ONCE = 4 << 20
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

SampleFiles = tuple[int, bytes, tuple[str, ...], tuple[str, ...], tuple[int, ...], int]
"""For a sample: number, JSON, names of the media within the sample, their files, their sizes, bytes in the shard."""


def write_stretch(root: str, shard: str, offset: int, samples: Sequence[SampleFiles]) -> tuple[int, int]:
    """Write samples into an existing shard, from `offset` on; returns (bytes, their checksum).

    Raises WorkError when a file has changed since it was checked, OSError when the disk fails.
    """
    file = os.open(shard, os.O_WRONLY | os.O_CLOEXEC)
    out = _ShardOutput(file, offset)
    try:
        for large, group in groupby(samples, key=lambda sample: sample[-1] > _BUFFER):
            if large:
                for sample in group:
                    _write_large(f"{root}/", sample, out)
            else:
                _write_small(f"{root}/", list(group), out)
    finally:
        os.close(file)
    return out.at - offset, out.sum


class _ShardOutput:
    """Writes complete blocks one after the other and keeps a checksum of all of them."""

    def __init__(self, file: int, at: int) -> None:
        self.file, self.at, self.sum = file, at, 0
        self.buffer = bytearray(_BUFFER + 1)

    def write(self, data: bytes | memoryview) -> None:
        self.sum = checksum(data, self.sum)
        done, size = 0, len(data)
        while done < size:
            done += write_at(self.file, [memoryview(data)[done:]], self.at + done)
        self.at += size


def write_at(file: int, buffers: list[bytes | memoryview], offset: int) -> int:
    """Bytes written, as `os.pwritev`."""
    return os.pwritev(file, buffers, offset)


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """CRC-32 of the sums of each block's words, a tenth of the cost of a CRC of the blocks; an incomplete last block is not in it.

    data: the bytes after those whose checksum is `before`; the result does not depend on where they are cut.
    """
    words = np.frombuffer(data, "<u8", len(data) // BLOCK * (BLOCK // 8))
    return zlib.crc32(words.reshape(-1, BLOCK // 8).sum(axis=1, dtype=np.uint64).astype("<u8", copy=False).data, before)


def _write_small(folder: str, samples: Sequence[SampleFiles], out: _ShardOutput) -> None:
    """Samples that fit into the buffer, as many at a time as it holds."""
    names: list[bytes] = []
    sizes: list[int] = []
    # for each buffer: (its blocks, members up to its end, [(offset, JSON)], [(record, offset, bytes, file)])
    buffers: list[tuple[int, int, list[tuple[int, bytes]], list[tuple[int, int, int, str]]]] = []
    payloads: list[tuple[int, bytes]] = []
    files: list[tuple[int, int, int, str]] = []
    at = 0
    for number, payload, parts, paths, lengths, size in samples:
        if at + size > _BUFFER:
            buffers.append((at // BLOCK, len(names), payloads, files))
            payloads, files, at = [], [], 0
        key = b"%08d." % number
        length = len(payload)
        names.append(key + b"json")
        sizes.append(length)
        payloads.append((at + BLOCK, payload))
        at += BLOCK + -(-length // BLOCK) * BLOCK
        for part, path, length in zip(parts, paths, lengths, strict=True):
            names.append(key + part.encode())
            sizes.append(length)
            files.append((number, at + BLOCK, length, path))
            at += BLOCK + -(-length // BLOCK) * BLOCK
    buffers.append((at // BLOCK, len(names), payloads, files))
    # for all buffers at once: with the few members of one, the overhead of array operations dominates
    headers = header_blocks(names, sizes)
    counts = 1 - -np.array(sizes) // BLOCK
    ends = np.cumsum(counts)
    buffer_blocks = np.frombuffer(out.buffer, np.uint8, _BUFFER).reshape(-1, BLOCK)
    ranges = RangeReader()
    first = begin = 0
    with memoryview(out.buffer) as view:
        for blocks, last, payloads, files in buffers:
            ends_in_buffer = ends[first:last] - begin
            # the padding in the last block of each member
            buffer_blocks[ends_in_buffer - 1] = 0
            for number, place, length, path in files:
                offset, path = _located(folder, path)
                try:
                    if offset is not None:
                        read = _fill_from(ranges.open(path)[0], offset, view[place : place + length])
                    else:
                        file = os.open(path, _FLAGS)
                        try:
                            # one byte further, to detect a file that has grown
                            read = os.readv(file, (view[place : place + length + 1],))
                            if read < length:
                                read += _fill(file, view[place + read : place + length + 1])
                        finally:
                            os.close(file)
                except OSError as error:
                    raise _unreadable(path, number, error) from error
                if read != length:
                    raise _changed(path, number)
            for place, payload in payloads:
                view[place : place + len(payload)] = payload
            # after the contents: one byte more than the file's size is read, to detect a file that has grown
            buffer_blocks[ends_in_buffer - counts[first:last]] = headers[first:last]
            out.write(view[: blocks * BLOCK])
            first, begin = last, begin + blocks


def _write_large(folder: str, sample: SampleFiles, out: _ShardOutput) -> None:
    """A sample of any size, in pieces."""
    number, payload, parts, files, lengths, _ = sample
    key = f"{number:08d}."
    out.write(header(key + "json", len(payload)))
    out.write(payload + bytes(-len(payload) % BLOCK))
    for part, name, length in zip(parts, files, lengths, strict=True):
        out.write(header(key + part, length))
        offset, path = _located(folder, name)
        with _read_errors(path, number):
            file = os.open(path, _FLAGS)
        try:
            if offset is not None:
                os.lseek(file, offset, os.SEEK_SET)
            for begin in range(0, length, _AT_ONCE):
                size = min(length - begin, _AT_ONCE)
                piece = memoryview(bytearray(padded(size)))
                with _read_errors(path, number):
                    read = _fill(file, piece[:size])
                if read < size:
                    raise _changed(path, number)
                out.write(piece)
            if offset is None and os.fstat(file).st_size != length:
                raise _changed(path, number)
        finally:
            os.close(file)


def _located(folder: str, name: str) -> tuple[int | None, str]:
    """(offset of a stretch or None for a whole file, path). folder: ends on a slash."""
    if "\0" in name:
        path, offset, _ = split_name(name)
        return offset, path if path[0] == "/" else folder + path
    return None, name if name[0] == "/" else folder + name


def _fill_from(file: int, offset: int, view: memoryview) -> int:
    """Bytes read from `offset` on: as many as `view` holds, or fewer at the end of the file."""
    done = 0
    while done < len(view) and (read := os.preadv(file, (view[done:],), offset + done)):
        done += read
    return done


def _fill(file: int, view: memoryview) -> int:
    """Bytes read: as many as `view` holds, or fewer at the end of the file."""
    done = 0
    while done < len(view):
        read = os.readv(file, (view[done:],))
        if not read:
            break
        done += read
    return done


@contextlib.contextmanager
def _read_errors(path: str, number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(path, number, error) from error


def _unreadable(path: str, number: int, error: OSError) -> WorkError:
    return WorkError(f"record {number}: {path}: {error.strerror}; it was readable when it was checked; run the prepare again")


def _changed(path: str, number: int) -> WorkError:
    return WorkError(f"record {number}: {path} changed while it was read; run the prepare again")


def sum_stretch(shard: str, offset: int, size: int) -> int:
    """Checksum of a stretch of a file; of the bytes up to its end when the file is shorter."""
    total = 0
    with open(shard, "rb", buffering=0) as file:
        file.seek(offset)
        piece = memoryview(bytearray(min(size, _AT_ONCE)))
        while size > 0:
            read = _fill(file.fileno(), piece[:size])
            total = checksum(piece[:read], total)
            if read < len(piece[:size]):
                break
            size -= read
    return total
