"""One interface for all collections of samples: the splits of a dataset, a single shard, a source that is not prepared yet.

Each is a collection with `len`, `read(number) -> (key, {part: content})` and `place(number)`, as `ShardSplit`. Imports no torch.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwen3vl_core.data import sources
from qwen3vl_core.data.blend import Blend, is_metadataset, split_names
from qwen3vl_core.data.byte_ranges import read_range
from qwen3vl_core.data.dataset_info import naming_of
from qwen3vl_core.data.energon import FOLDER, is_own_index
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.prepare.check import Checker, Refusal
from qwen3vl_core.data.shards import ShardSplit, splits_of
from qwen3vl_core.data.storage import Place, Remote
from qwen3vl_core.data.tar import sample_offsets, sample_parts
from qwen3vl_core.errors import RequestError

DATASET, BLEND, SHARD, SOURCE = "dataset", "blend", "shard", "source"


class Samples(Protocol):
    """Samples by number, from 0."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        """(key, {part: content}). Raises DataError."""

    def place(self, number: int) -> str:
        """Location of a sample, for messages."""


class ShardFile:
    """The samples of one archive. Raises RequestError for anything but a tar archive with samples."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._offsets = sample_offsets(path)
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(f"{path}: not a complete tar archive ({reason}); copy it again") from None
        if len(self._offsets) < 2:
            raise RequestError(f"{path}: no sample in it (files named KEY.json, KEY.img0.jpg)")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        begin, end = self._offsets[number : number + 2]
        with open(self.path, "rb") as file:
            file.seek(begin)
            chunk = file.read(end - begin)
        try:
            return sample_parts(chunk)
        except ValueError as error:
            raise DataError("shard-damaged", self.place(number), reason=str(error)) from error

    def place(self, number: int) -> str:
        return f"{self.path.name}@{self._offsets[number]}"


class SourceFile:
    """The records of a source as the samples that prepare would write. Raises RequestError for an unsupported file."""

    def __init__(self, path: Path, images: Path | None = None, columns: str | None = None) -> None:
        source, naming, _ = naming_of(path, columns, None)
        located = sources.locate(source)
        self._open = lambda: sources.open_records(source, naming, located)
        self._file = self._open()
        self.path, self.kind = path, self._file.kind
        self._length = self._file.length()
        self._records, self._next = self._file.records(), 0
        self._checker = Checker(images or located.root, "header", naming=naming)
        # what one record holds in itself is kept until the next is read
        weakref.finalize(self, self._checker.spool.close)

    def __len__(self) -> int:
        return self._length

    def _record(self, number: int) -> tuple[int, Any]:
        """The record of this number: sources are read forwards, and from the start again for an earlier one."""
        if number < self._next:
            self._records, self._next = self._open().records(), 0
        while True:
            record = next(self._records)
            self._next += 1
            if record[0] == number:
                return record

    def read(self, number: int) -> tuple[str, dict[str, bytes]]:
        self._checker.spool.clear()
        result = self._checker.check([self._record(number)])[0]
        if isinstance(result, Refusal):
            raise DataError(result.code, **result.rule)
        parts = {"json": result.payload}
        try:
            for part, name in zip(result.parts, result.files, strict=True):
                parts[part] = read_range(name if "\0" in name else str(self._checker.root / name))
        except OSError as error:
            raise DataError("picture-missing", str(error.filename), reason=error.strerror) from error
        return f"{result.number:08d}", parts

    def place(self, number: int) -> str:
        return f"record {number}"


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` numbers below `count`, evenly spaced; all of them when `wanted` is 0 or at least `count`."""
    if not wanted or wanted >= count:
        return list(range(count))
    return sorted({int(number) for number in np.linspace(0, count - 1, wanted)})


def kind_of_path(path: Place) -> str | None:
    """`dataset`, `blend` (a metadataset), `shard` or `source`; None for a path that holds no data."""
    if is_metadataset(path):
        return BLEND
    if isinstance(path, Remote):
        return DATASET if (path / FOLDER / "split.yaml").is_file() else None
    if path.is_dir() and (path / FOLDER).is_dir():
        return DATASET if is_own_index(path) else SOURCE
    if path.suffix == ".tar" and (path.is_file() or not path.exists()):
        return SHARD
    return SOURCE if sources.is_source(path) else None


def open_samples(path: Place, split: str | None = None, images: Path | None = None, columns: str | None = None) -> dict[str, Any]:
    """Name -> its samples: the splits of a dataset or a blend, or the one shard or source. Raises RequestError."""
    kind = kind_of_path(path)
    if kind == BLEND:
        return {name: Blend(path, name) for name in ([split] if split else split_names(path))}
    if kind == DATASET:
        splits = [name for name, shards in splits_of(path).items() if shards]
        if split is None and not splits:
            raise RequestError(f"{path}: no split holds a shard; make it again with qwen3vl prepare")
        return {name: ShardSplit(path, name) for name in ([split] if split else splits)}
    assert isinstance(path, Path)
    return {path.name: ShardFile(path) if kind == SHARD else SourceFile(path, images, columns)}
