"""Reads Megatron's `torch_dist` checkpoints box by box: no model, no process group, no unsafe unpickling.

A checkpoint folder holds `latest_checkpointed_iteration.txt` (the tracker: `release` or a number) and `release/` or
`iter_0000500/` with `.metadata` (the tables), `*.distcp` (the tensors), `common.pt` and `metadata.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import itertools
import math
import os
import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from qwen3vl_core import file_digests, limits
from qwen3vl_core.checkpoint import foreign_names
from qwen3vl_core.checkpoint.dcp_metadata import Chunk, Shape, StorageInfo, read_tables
from qwen3vl_core.checkpoint.pickle_scan import check_pickle
from qwen3vl_core.checkpoint.positional_io import EndOfFile, FileReader
from qwen3vl_core.checkpoint.torch_save import TensorLocation, locate
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import open_regular, read_small
from qwen3vl_core.run_record import CHECKPOINTS, ITERATION, TRACKER
from qwen3vl_core.sizes import Architecture

RELEASE = "release"
SHARDS = ".distcp"
"""How the names of the files end that hold the tensors."""


class DamagedError(RequestError):
    """A checkpoint, or a file of it, is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found on disk."""

    root: Path
    """The folder with the tracker, and with config and tokenizer if they were copied."""
    data: Path
    """The folder with `.metadata` and the tensors."""
    iteration: int
    """0 for `release`."""


def iteration_folder(iteration: int) -> str:
    """Megatron's name: 500 -> `iter_0000500`."""
    return f"{ITERATION}{iteration:07d}"


def find(path: Path) -> Checkpoint | None:
    """The checkpoint at a path: its folder, one of its `iter_…` folders, or a run that has `checkpoints/`.

    None if there is none. Raises RequestError for an incomplete one.
    """
    if (path / ".metadata").is_file():
        match = re.fullmatch(rf"{ITERATION}(\d{{1,12}})", path.name)
        return Checkpoint(path.parent if (path.parent / TRACKER).exists() else path, path, int(match[1]) if match else 0)
    if not (path / TRACKER).is_file():
        if (path / CHECKPOINTS / TRACKER).is_file():
            return find(path / CHECKPOINTS)
        names = sorted(d.name for d in path.glob(f"{ITERATION}*") if d.is_dir()) if path.is_dir() else []
        if names:
            raise RequestError(f"{path}: {TRACKER} is missing; name one of its folders: {', '.join(names[-3:])}")
        return None
    tracked = read_small(path / TRACKER, limits.RUN_FILE).decode("utf-8", "replace").strip()
    if tracked != RELEASE and not re.fullmatch(r"\d{1,12}", tracked):
        raise RequestError(f"{path / TRACKER}: {tracked[:40]!r} is neither a number nor {RELEASE}; write the iteration into it")
    name, iteration = (RELEASE, 0) if tracked == RELEASE else (iteration_folder(int(tracked)), int(tracked))
    if not (path / name / ".metadata").is_file():
        names = sorted(d.parent.name for d in path.glob("*/.metadata"))
        raise RequestError(f"{path}: the tracker says {tracked}, but {name}/.metadata is missing; there is {', '.join(names) or 'nothing'}")
    return Checkpoint(path, path / name, iteration)


def load_plain(stream: BinaryIO) -> Any:
    """`torch.load` of tensors and plain values; Megatron's `common.pt` holds an argparse namespace too. Raises UnpicklingError,
    RuntimeError and others for a damaged archive, and for one that nests or holds more than a checkpoint's."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    archive = torch._C.PyTorchFileReader(stream)
    # torch.save compresses nothing; an archive that is compressed may hold a thousand times its size
    if (held := sum(map(archive.get_record_size, archive.get_all_records()))) > size:
        raise RuntimeError(f"{held:,} bytes in an archive of {size:,}")
    table = archive.get_record("data.pkl")
    check_pickle(table)
    # torch calls it, with the number of bytes if that is what the pickle has
    if b"bytearray" in table:
        raise pickle.UnpicklingError("builtins.bytearray")
    stream.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(stream, map_location="cpu", weights_only=True)


COMMON_KEY = "common_state/"
"""What the name of the common values begins with where they are among the shards: Megatron-Core from 0.19 on."""


def read_common(data: Path) -> dict[str, Any]:
    """The common values: `common.pt`, or the object of that name among the shards; empty where there are none. Raises RequestError when
    they hold more than tensors and plain values, or are damaged."""
    file = data / "common.pt"
    try:
        if file.stat().st_size > limits.COMMON_PT:
            raise DamagedError(f"{file}: {file.stat().st_size} bytes are too many for it; copy the checkpoint again")
        with open_regular(file, links=True) as stream:
            value = load_plain(stream)
    except FileNotFoundError:
        reader = RegionReader(data)
        key = reader.common_key
        return {} if key is None else reader.read_object(key)
    except pickle.UnpicklingError as error:
        raise unsafe(file, error) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, MemoryError, OSError) as error:
        raise DamagedError(f"{file}: not readable ({first_line(error)}); copy the checkpoint again") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{file}: holds no table; copy the checkpoint again")
    return value


def first_line(error: BaseException) -> str:
    """What an error says, in one short line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120] or type(error).__name__


def read_digests(data: Path) -> dict[str, file_digests.Digest] | None:
    """The digests of a checkpoint's files; None for one of an older version or another program. Raises RequestError."""
    try:
        return file_digests.read(data)
    except (ValueError, OSError) as error:
        raise DamagedError(f"{data}: {first_line(error)}; copy the checkpoint again, or use the one before it") from None


def unsafe(file: Path, error: Exception) -> RequestError:
    """The error for a file that names more than plain values."""
    return RequestError(f"{file}: holds more than tensors and plain values ({first_line(error)}); not loaded")


def shared_lock(data: Path) -> BinaryIO | None:
    """Lock a checkpoint folder while the returned file is referenced, so that the training run does not delete it meanwhile.

    None where the file system has no locks, or there is no checkpoint.
    """
    try:
        file = open_regular(data / ".metadata", links=True)
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return None
    return file


class RegionReader:
    """Reads boxes of the tensors in a checkpoint, written by any parallel layout. Several threads may read at once."""

    def __init__(self, data: Path, *, check: bool = True) -> None:
        """check: compare what is read with the checkpoint's digests, where it has some. Raises RequestError."""
        self.data = data
        self._lock = shared_lock(data)
        self._digests = read_digests(data) if check else None
        self._checker = file_digests.DigestChecker(self._digests)
        if self._digests is not None:
            small = {name: digest for name, digest in self._digests.items() if not name.endswith(SHARDS)}
            problem = file_digests.problem(data, small) or file_digests.sizes_problem(data, self._digests)
            if problem is not None:
                raise DamagedError(f"{data}: {problem}; copy the checkpoint again, or use the one before it")
        self.tensors, self.objects, self._chunks = read_tables(data / ".metadata")
        self._files = FileReader()
        self._paths: dict[str, Path] = {}
        self._locations: dict[int, TensorLocation | None] = {}

    def file_of(self, stored: StorageInfo) -> Path:
        """The file of a stored object. Only the last part of its name is used, so that it cannot point outside the folder."""
        name = str(stored.relative_path)
        file = self._paths.get(name)
        if file is None:
            file = self._paths[name] = self.data / Path(name).name
        return file

    def damage(self) -> list[str]:
        """A line for each file that is missing or shorter than the tables say."""
        needed: dict[Path, int] = {}
        for stored in itertools.chain(self.objects.values(), (c.stored for chunks in self._chunks.values() for c in chunks.all)):
            file = self.file_of(stored)
            needed[file] = max(needed.get(file, 0), stored.offset + stored.length)
        lines = []
        for file, size in sorted(needed.items()):
            if not file.is_file():
                lines.append(f"{file}: missing, though .metadata names it; copy the checkpoint again")
            elif file.stat().st_size < size:
                lines.append(f"{file}: cut short ({file.stat().st_size} bytes, {size} are named); copy it again")
        return lines

    def _touching(self, key: str, offset: Shape, size: Shape) -> list[Chunk]:
        chunks = self._chunks.get(key)
        candidates = chunks.near(offset, size) if chunks else []
        return [c for c in candidates if all(a < b + m and b < a + n for a, n, b, m in zip(offset, size, c.offset, c.size, strict=True))]

    def _bytes(self, stored: StorageInfo, start: int, out: memoryview) -> None:
        file = self.file_of(stored)
        try:
            self._files.read(file, stored.offset + start, out)
            self._check(file, stored.offset + start, out)
        except FileNotFoundError:
            raise RequestError(f"{file}: missing, though .metadata names it; copy the checkpoint again") from None
        except EndOfFile:
            raise RequestError(
                f"{file}: cut short ({file.stat().st_size} bytes, {stored.offset + stored.length} are named); copy it again"
            ) from None

    @cached_property
    def _most_bytes(self) -> int:
        """Of all files: no tensor has more."""
        return sum(file.stat().st_size for file in self.data.glob(f"*{SHARDS}"))

    @property
    def common_key(self) -> str | None:
        """The name of the common values among the saved objects; None where they are in `common.pt`."""
        return next((key for key in self.objects if key.startswith(COMMON_KEY)), None)

    def _check(self, file: Path, begin: int, data: memoryview) -> None:
        """Compare the chunks that hold these bytes with their digests, each once. Raises DamagedError."""
        if (problem := self._checker.problem(file, begin, data)) is not None:
            raise self._damaged(file, problem)

    @staticmethod
    def _damaged(file: Path, problem: str) -> DamagedError:
        return DamagedError(f"{file}: {problem}; copy the checkpoint again, or use the one before it")

    def checked_in_passing(self) -> contextlib.AbstractContextManager[None]:
        """What is read in this block is compared with the digests at the end of it, not before it is used. Raises DamagedError there."""
        return self._checker.in_passing(self.data, self._damaged)

    def _size(self, file: Path) -> int:
        try:
            return file.stat().st_size
        except OSError as error:
            raise DamagedError(f"{file}: {error.strerror}, though .metadata names it; copy the checkpoint again") from None

    def bytes_of(self, stored: StorageInfo) -> bytearray:
        """The record at one location, as it was saved."""
        file = self.file_of(stored)
        if stored.length > (size := self._size(file)):  # before so much memory is taken
            raise DamagedError(f"{file}: cut short ({size} bytes, {stored.offset + stored.length} are named); copy it again")
        blob = bytearray(stored.length)
        self._bytes(stored, 0, memoryview(blob))
        return blob

    def _load(self, stored: StorageInfo) -> Any:
        """The complete object that was saved at one location."""
        blob = self.bytes_of(stored)
        if getattr(stored, "transform_descriptors", None):
            raise RequestError(f"{self.file_of(stored)}: compressed; save the checkpoint without compression")
        return self._plain(io.BytesIO(blob), self.file_of(stored))

    @staticmethod
    def _plain(stream: Any, file: Path) -> Any:
        try:
            return load_plain(stream)
        except pickle.UnpicklingError as error:
            raise unsafe(file, error) from None
        except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError, OSError) as error:
            raise RequestError(f"{file}: not readable ({first_line(error)}); copy the checkpoint again") from None

    def _location(self, stored: StorageInfo) -> TensorLocation | None:
        """Where a chunk's data is in its record; None where the record has to be loaded as a whole."""
        if id(stored) not in self._locations:

            def read(offset: int, count: int) -> bytes:
                out = bytearray(count)
                self._bytes(stored, offset, memoryview(out))
                return bytes(out)

            self._locations[id(stored)] = None if getattr(stored, "transform_descriptors", None) else locate(read, stored.length)
        return self._locations[id(stored)]

    def _part(self, chunk: Chunk, low: Shape, high: Shape, dtype: torch.dtype, out: Tensor) -> Tensor:
        """The box [low, high) of a chunk's record, in coordinates of the record; in `out` if that needs no copy, else a new tensor."""
        location, record = self._location(chunk.stored), chunk.record
        extent = tuple(b - a for a, b in zip(low, high, strict=True))
        inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        if location is None or location.dtype != dtype or math.prod(location.shape) != math.prod(record):
            value = self._load(chunk.stored)
            if not isinstance(value, Tensor) or value.numel() != math.prod(record) or value.dtype != dtype:
                raise RequestError(f"{self.file_of(chunk.stored)}: does not hold what .metadata says; copy the checkpoint again")
            return value.reshape(record)[inside]
        # full rows are read, from the first to the last requested element, along the first axis longer than one
        axis = next((i for i, n in enumerate(extent) if n != 1), len(extent) - 1)
        row = math.prod(record[axis + 1 :])
        stride = [math.prod(record[i + 1 :]) for i in range(len(extent))]
        first = sum(a * s for a, s in zip(low[: axis + 1], stride, strict=False)) if extent else 0
        count = (extent[axis] if extent else 1) * row
        full_rows = extent[axis + 1 :] == record[axis + 1 :]
        direct = full_rows and out.is_contiguous()
        target = out if direct else torch.empty(count, dtype=dtype)
        self._bytes(chunk.stored, location.offset + first * dtype.itemsize, target.reshape(-1).view(torch.uint8).numpy().data)
        if direct:
            return out
        rows = target.view((1,) * axis + (extent[axis],) + record[axis + 1 :]) if extent else target.view(())
        return rows[(slice(None),) * (axis + 1) + inside[axis + 1 :]] if extent else rows

    def read(self, key: str, offset: Shape | None = None, size: Shape | None = None, out: Tensor | None = None) -> Tensor:
        """A box of the tensor `key`; all of it by default. Raises RequestError when chunks are missing.

        out: a contiguous tensor of shape `size` and the stored precision to read into; allocated by default.
        """
        entry = self.tensors[key]
        offset = offset or (0,) * len(entry.size)
        size = tuple(entry.size) if size is None else size
        if out is None:
            if math.prod(size) * entry.properties.dtype.itemsize > self._most_bytes:
                raise DamagedError(f"{self.data}: {key} is larger than all of the files; copy the checkpoint again")
            out = torch.empty(size, dtype=entry.properties.dtype)
        filled = 0
        for chunk in self._touching(key, offset, size):
            low = tuple(max(a, b) for a, b in zip(offset, chunk.offset, strict=True))
            high = tuple(min(a + n, b + m) for a, n, b, m in zip(offset, size, chunk.offset, chunk.size, strict=True))
            target = out[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))]
            first, last = (tuple(a - o + i for a, o, i in zip(at, chunk.offset, chunk.at, strict=True)) for at in (low, high))
            part = self._part(chunk, first, last, out.dtype, target)
            if part is not target:
                target.copy_(part)
            filled += target.numel()
        if filled != math.prod(size):
            count = f"{filled} of {math.prod(size)} elements"
            raise RequestError(f"{self.data}: {key} is incomplete ({count}); copy the checkpoint again")
        return out

    def rewrite(self, architecture: Architecture) -> None:
        """Give the tensors the names and boxes of our own layout, where another program wrote them under its own."""
        if foreign_names.is_foreign(self.tensors, architecture):
            self.tensors, self._chunks = foreign_names.rewritten(self.tensors, self._chunks, architecture)

    def read_object(self, unique_key: str) -> Any:
        """A saved object (Megatron wraps each in a list). Raises KeyError when the checkpoint does not have it."""
        return self._load(self.objects[unique_key])[0]
