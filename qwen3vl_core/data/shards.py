"""Random access to the samples of a prepared dataset's split. Reads Energon's own files; imports no torch."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from braceexpand import braceexpand

from qwen3vl_core import limits
from qwen3vl_core.data.brace_lists import count_names
from qwen3vl_core.data.energon import FOLDER
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.sample_order import SampleOrder
from qwen3vl_core.data.storage import Place, Remote, place_of, read_small, size_of
from qwen3vl_core.data.tar import member_places, sample_offsets, sample_parts, split_key
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.yaml_text import load_yaml

OPEN_FILES = 64
_HEADER_BYTES = 16 << 10
"""Read at once of a part whose header is looked at."""
_AGAIN = "make it again with qwen3vl prepare"


class ShardSplit:
    """The samples of one split, numbered as they stand in its shards. Safe to use after a fork.

    Raises RequestError when `path` is no dataset, or the split is missing or empty.
    """

    def __init__(self, path: str | Place, split: str) -> None:
        self.path, self.split = place_of(path), split
        names = _split_shards(self.path, split)
        self._shards = [self.path / name for name in names]
        tables = [_offsets(shard) for shard in self._shards]
        counts = [len(table) - 1 for table in tables]
        for name, count, stated in zip(names, counts, _stated_counts(self.path, names), strict=True):
            if stated not in (None, count):
                raise RequestError(f"{path}: {name} holds {count} samples, the index says {stated}; copy both again, or {_AGAIN}")
        if not sum(counts):
            raise RequestError(f"{path}: split {split} holds no sample; {_AGAIN}")
        self._begins = np.concatenate([table[:-1] for table in tables])
        self._ends = np.concatenate([table[1:] for table in tables])
        self._shard_of = np.repeat(np.arange(len(tables), dtype=np.int32), counts)
        self._open: dict[int, int] = {}
        self._owner = os.getpid()
        identity = [_identity(self.path), split, [[name, count] for name, count in zip(names, counts, strict=True)]]
        self.identity: str = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        """Depends on the dataset's content, not on its path."""

    def __len__(self) -> int:
        return len(self._begins)

    def order(self, seed: int) -> SampleOrder:
        """The order in which the samples are visited."""
        return SampleOrder(len(self), seed)

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        """(key, {part: content}) of a sample.

        Raises DataError when its part of the shard is damaged, WorkError when the disk cannot be read.
        """
        shard, begin, end = int(self._shard_of[number]), int(self._begins[number]), int(self._ends[number])
        location = self._shards[shard]
        try:
            chunk = (
                location.read_range(begin, end - begin) if isinstance(location, Remote) else _read(self._file(shard), begin, end - begin)
            )
        except OSError as error:
            raise WorkError(f"{self._shards[shard]}: {error.strerror}; is the dataset's disk still there?") from error
        position = f"{self._shards[shard].name}, byte {begin:,}"
        try:
            if len(chunk) < end - begin:
                raise ValueError("the file is shorter than its index says")
            key, parts = sample_parts(chunk)
        except ValueError as error:
            raise DataError("shard-damaged", position, reason=str(error)) from error
        if not parts:
            raise DataError("shard-without-sample", position)
        return key, parts

    def open_parts(self, number: int) -> dict[str, BinaryIO]:
        """{part: its bytes as a file} of a sample: of a large picture or video only what is read of it is read from disk.

        Raises DataError when its part of the shard is damaged, WorkError when the disk cannot be read.
        """
        shard, begin, end = int(self._shard_of[number]), int(self._begins[number]), int(self._ends[number])
        if isinstance(self._shards[shard], Remote):
            return {part: io.BytesIO(content) for part, content in self.read(number)[1].items()}
        try:
            file = self._file(shard)
            parts: dict[str, BinaryIO] = {}
            for name, at, size in member_places(lambda at, size: _read(file, begin + at, size), end - begin):
                if (split_name := split_key(name)) is not None:
                    parts[split_name[1]] = io.BufferedReader(_PartFile(file, begin + at, size), _HEADER_BYTES)
            return parts
        except OSError as error:
            raise WorkError(f"{self._shards[shard]}: {error.strerror}; is the dataset's disk still there?") from error
        except ValueError as error:
            raise DataError("shard-damaged", self.place(number), reason=str(error)) from error

    @property
    def remote(self) -> bool:
        """Whether shards are in an object store, where each read is a request."""
        return isinstance(self.path, Remote)

    def place(self, number: int) -> str:
        """Location of a sample, for messages: used where its key could not be read."""
        return f"{self.shard_name(number)}@{int(self._begins[number])}"

    def shard_name(self, number: int) -> str:
        """File name of the shard that holds a sample."""
        return self._shards[int(self._shard_of[number])].name

    def sample_size(self, number: int) -> int:
        """Bytes that a sample takes in its shard."""
        return int(self._ends[number] - self._begins[number])

    def _file(self, shard: int) -> int:
        if self._owner != os.getpid():
            # descriptors made before a fork are the parent's to close
            self._open, self._owner = {}, os.getpid()
        if shard not in self._open:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            path = self._shards[shard]
            assert isinstance(path, Path)
            self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        if self._owner == os.getpid():
            for file in self._open.values():
                os.close(file)
        self._open = {}


class _PartFile(io.RawIOBase):
    """A stretch of a file."""

    def __init__(self, file: int, begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._file, max(0, min(len(buffer), self._size - self._at)), self._begin + self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _read(file: int, begin: int, size: int) -> bytes:
    """Up to `size` bytes; a single `pread` may return fewer than are available."""
    chunk = os.pread(file, size, begin)
    while len(chunk) < size:
        more = os.pread(file, size - len(chunk), begin + len(chunk))
        if not more:
            break
        chunk += more
    return chunk


def _load(folder: Place, name: str) -> Any:
    """A YAML file of the index, or the JSON file that may replace it; None without either."""
    for ending in ("yaml", "json"):
        file = folder / f"{name}.{ending}"
        if file.is_file():
            try:
                # libyaml if available, for speed: the index names every shard
                return load_yaml(read_small(file, limits.DATASET_INDEX).decode(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            except RequestError:
                raise
            except (ValueError, OSError) as error:
                raise RequestError(f"{file}: cannot be read ({type(error).__name__}); {_AGAIN}") from None
    return None


def splits_of(path: Place) -> dict[str, list[str]]:
    """Shards of each split, by name. Raises RequestError when `path` is no prepared dataset."""
    meta = path / FOLDER
    if not meta.is_dir():
        state = "not a folder" if path.is_file() else "no Energon index there" if path.is_dir() else "no such folder"
        raise RequestError(f"{path}: {state}; give a folder made by qwen3vl prepare")
    loaded = _load(meta, "split")
    parts = loaded.get("split_parts") if isinstance(loaded, dict) else None
    if not isinstance(parts, dict):
        raise RequestError(f"{path}: {FOLDER} names no splits; {_AGAIN}")
    lists = {str(name): _patterns(path, patterns) for name, patterns in parts.items()}
    excluding = _patterns(path, loaded.get("exclude"))
    if sum(map(count_names, (pattern for patterns in (*lists.values(), excluding) for pattern in patterns))) > limits.SHARD_NAMES:
        raise RequestError(f"{path}: {FOLDER} names over {limits.SHARD_NAMES:,} shards; correct its brace lists, or {_AGAIN}")
    excluded = {name for pattern in excluding for name in braceexpand(pattern)}
    shards_by_split = {name: [shard for pattern in patterns for shard in braceexpand(pattern)] for name, patterns in lists.items()}
    known = {shard for shards in shards_by_split.values() for shard in shards}
    if excluded - known:
        raise RequestError(f"{path}: the index leaves out single samples ({min(excluded - known)}), which is not read here; {_AGAIN}")
    return {name: [shard for shard in shards if shard not in excluded] for name, shards in shards_by_split.items()}


def _patterns(path: Place, patterns: Any) -> list[str]:
    """The brace lists of an entry of the index. Raises RequestError for anything else, and for braces that do not match."""
    if not isinstance(patterns or [], list) or not all(isinstance(pattern, str) for pattern in patterns or []):
        raise RequestError(f"{path}: the lists of shards in {FOLDER} must hold names; {_AGAIN}")
    for pattern in patterns or []:
        try:
            count_names(pattern)
        except ValueError as error:
            raise RequestError(f"{path}: {FOLDER} holds {pattern[:80]!r} ({error}); correct it, or {_AGAIN}") from None
    return patterns or []


def _split_shards(path: Place, split: str) -> list[str]:
    splits = splits_of(path)
    if not splits.get(split):
        available = ", ".join(name for name, shards in splits.items() if shards) or "none"
        raise RequestError(f"{path}: no split {split}; there are: {available}; prepare the data with a share for it (--split)")
    for name in splits[split]:
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise RequestError(f"{path}: shard {name} lies outside the dataset; {_AGAIN}")
        if not (path / name).is_file():
            raise RequestError(f"{path}: shard {name} is missing; copy it there, or {_AGAIN}")
    return splits[split]


def _offsets(shard: Place) -> np.ndarray:
    """int64 [samples + 1]: where each sample begins, and where the last one ends."""
    file = shard.with_suffix(".tar.idx")
    if file.is_file():
        content = file.read_bytes()
        table = np.frombuffer(content[: len(content) // 8 * 8], dtype="<u8").astype(np.int64)
        # an index of another shard, or a truncated one, gives wrong offsets for every sample: then the headers are read
        # differences of numbers near 2**63 wrap around: the numbers are compared with both ends, too
        between = len(table) and table[0] == 0 and (table >= 0).all() and (table <= table[-1]).all()
        if between and (np.diff(table) > 0).all() and table[-1] <= size_of(shard):
            return table
    if isinstance(shard, Remote):
        raise RequestError(f"{shard}: its index {file.name} is not beside it, or of another shard; copy both again, or {_AGAIN}")
    try:
        return np.array(sample_offsets(shard), dtype=np.int64)
    except (ValueError, OSError) as error:
        raise RequestError(f"{shard}: cannot be read ({error}); copy it again, or {_AGAIN}") from None


def _stated_counts(path: Place, names: list[str]) -> list[Any]:
    """Samples of each shard according to the index; None where it has no count."""
    loaded = _load(path / FOLDER, ".info")
    counts = loaded.get("shard_counts") if isinstance(loaded, dict) else None
    return [counts.get(name) if isinstance(counts, dict) else None for name in names]


def _identity(path: Place) -> str:
    file = path / FOLDER / "index.uuid"
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
