"""The tables of a `torch_dist` checkpoint (`.metadata`): which tensors it has and where their chunks are stored.

The tables are a pickle. It is read without calling anything that it names: each class that belongs in a checkpoint is replaced
by a plain one of ours, everything else is rejected.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen3vl_core import limits
from qwen3vl_core.checkpoint.pickle_scan import check_pickle
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import open_regular
from qwen3vl_core.formats import printable

Shape = tuple[int, ...]


class Table:
    """A plain replacement for each class in the tables of a checkpoint: no code that the pickle names is ever called."""

    values: Any

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.values = state


class Properties(Table):
    """Properties of one tensor; saved as a tuple whose first value is the precision."""

    @property
    def dtype(self) -> torch.dtype:
        return self.values[0]


class TensorEntry(Table):
    """One tensor; each of its chunks has `offsets` and `sizes`."""

    size: Shape
    chunks: list[Any]
    properties: Properties

    def sized(self, size: Shape) -> TensorEntry:
        """The same tensor as part of another one of shape `size`."""
        entry = TensorEntry()
        entry.size, entry.chunks, entry.properties = size, self.chunks, self.properties
        return entry


class Index(Table):
    """A tensor's name and the offset of one chunk; None for an object that is not a tensor."""

    fqn: str
    offset: Shape | None = None

    def __hash__(self) -> int:
        return hash((self.fqn, self.offset))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and (self.fqn, self.offset) == (other.fqn, other.offset)


class StorageInfo(Table):
    """Where something is stored."""

    relative_path: str
    offset: int
    length: int


_METADATA, _FILESYSTEM, _PLANNER = (f"torch.distributed.checkpoint.{name}" for name in ("metadata", "filesystem", "planner"))
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
# classes that the tables of a checkpoint may use; anything else in a `.metadata` file is rejected
_ALLOWED: dict[str, dict[str, Any]] = {
    _METADATA: {
        "Metadata": Table, "TensorStorageMetadata": TensorEntry, "BytesStorageMetadata": Table, "ChunkStorageMetadata": Table,
        "MetadataIndex": Index, "TensorProperties": Properties, "StorageMeta": Table, "_MEM_FORMAT_ENCODING": Table,
    },
    _FILESYSTEM: {"_StorageInfo": StorageInfo, "_StoragePrefix": Table},
    _PLANNER: {name: Table for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")},
    # Megatron-Core up to 0.15 has classes of its own for the tables and for the plan of each rank
    _MEGATRON: {"MCoreSavePlan": Table, "MCoreMetadata": Table},
    "torch": {"Size": torch.Size} | {
        name: getattr(torch, name)
        for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int16", "int8", "uint8", "bool")
    },
    "torch.serialization": {"_get_layout": Table},
    "collections": {"OrderedDict": OrderedDict},
    "builtins": {"set": set, "frozenset": frozenset, "slice": slice},
}  # fmt: skip


class _TablesOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get(module, {}).get(name)
        if allowed is not None:
            return allowed
        if module == "pathlib" or module.startswith("pathlib."):
            # some writers record their target folder; it is ignored
            return Table
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint's tables")


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor that was saved as one record, or as part of one."""

    offset: Shape
    size: Shape
    stored: StorageInfo
    whole: Shape | None = None
    """The shape of the record; None: it holds this box and nothing else."""
    begin: Shape | None = None
    """Where in the record this box begins."""

    @property
    def record(self) -> Shape:
        return self.size if self.whole is None else self.whole

    @property
    def at(self) -> Shape:
        return (0,) * len(self.size) if self.begin is None else self.begin

    def part(self, row: int, rows: int, offset: Shape) -> Chunk:
        """`rows` of its rows from `row` on, which are the tensor's from `offset` on."""
        return Chunk(offset, (rows, *self.size[1:]), self.stored, self.record, (self.at[0] + row, *self.at[1:]))

    def placed(self, lead: Shape, row: int) -> Chunk:
        """The same numbers `row` rows further down, and at `lead` along axes of length 1 put in front."""
        offset, ones = ((self.offset[0] + row, *self.offset[1:]) if self.offset else ()), (1,) * len(lead)
        begin = None if self.begin is None else (0,) * len(lead) + self.begin
        return Chunk(lead + offset, ones + self.size, self.stored, None if self.whole is None else ones + self.whole, begin)


class Chunks:
    """The chunks of one tensor. Chunks of stacked layers and experts hold one index each and are looked up by it."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self.all = chunks
        self.lead = min((next((i for i, n in enumerate(c.size) if n != 1), len(c.size)) for c in chunks), default=0)
        self._at: dict[Shape, list[Chunk]] = {}
        for chunk in chunks:
            self._at.setdefault(chunk.offset[: self.lead], []).append(chunk)

    def near(self, offset: Shape, size: Shape) -> list[Chunk]:
        """Every chunk that may touch a box."""
        lead = self.lead
        if math.prod(size[:lead]) >= len(self._at):
            return self.all
        indices = itertools.product(*(range(o, o + n) for o, n in zip(offset[:lead], size[:lead], strict=True)))
        return [chunk for index in indices for chunk in self._at.get(index, ())]


MOST = 1 << 60
"""Above every length and position in a file."""
_MOST_DIMENSIONS = 16


def _shape(value: Any, key: str, dimensions: int | None = None) -> Shape:
    """A shape or an offset as a tuple. Raises ValueError and TypeError for anything else."""
    if not isinstance(value, tuple | list) or len(value) > _MOST_DIMENSIONS:
        raise ValueError(f"{key[:80]!r} has no valid shape")
    shape = tuple(value)
    if not all(type(n) is int and 0 <= n < MOST for n in shape):
        raise ValueError(f"{key[:80]!r} has no valid shape")
    if dimensions is not None and len(shape) != dimensions:
        raise ValueError(f"a chunk of {key[:80]!r} has {len(shape)} dimensions, not {dimensions}")
    return shape


def _file_name(value: Any) -> str:
    """The last part of a path: nothing in the tables can point outside the folder."""
    name = os.path.basename(value) if isinstance(value, str) else ""
    if not name or name in (".", "..") or not name.isprintable() or len(name) > 255:
        raise ValueError("a file has no valid name")
    return name


def _short(error: BaseException) -> str:
    """An error on one short line, whatever the file put into it."""
    return printable(str(error)[:200]).replace("\n", " ") or type(error).__name__


def read_tables(file: Path) -> tuple[dict[str, TensorEntry], dict[str, StorageInfo], dict[str, Chunks]]:
    """(tensors, saved objects, the tensors' chunks), by key. Raises RequestError for anything but the tables of a checkpoint."""
    tensors: dict[str, TensorEntry] = {}
    objects: dict[str, StorageInfo] = {}
    chunks: dict[str, list[Chunk]] = {}
    sizes: dict[tuple[str, Shape], Shape] = {}
    count = 0
    try:
        if (size := file.stat().st_size) > limits.TORCH_DIST_TABLES:
            raise ValueError(f"{size:,} bytes, at most {limits.TORCH_DIST_TABLES:,}")
        with open_regular(file, links=True) as stream:
            data = stream.read()
        check_pickle(data)
        table = _TablesOnly(io.BytesIO(data)).load()
        for key, item in table.state_dict_metadata.items():
            if not isinstance(key, str):
                raise ValueError(f"a name is a {type(key).__name__}")
            if isinstance(item, TensorEntry):
                # a pickle may name the same list of chunks for each of its tensors
                if (count := count + len(item.chunks)) > len(table.storage_data):
                    raise ValueError("more parts of tensors than places of them")
                item.size = _shape(item.size, key)
                if not isinstance(item.properties.dtype, torch.dtype):
                    raise ValueError(f"{key} has no precision")
                tensors[key] = item
                sizes |= {
                    (key, _shape(chunk.offsets, key, len(item.size))): _shape(chunk.sizes, key, len(item.size)) for chunk in item.chunks
                }
        for index, stored in table.storage_data.items():
            if not isinstance(index.fqn, str):
                raise ValueError(f"a name is a {type(index.fqn).__name__}")
            if not all(type(n) is int and 0 <= n < MOST for n in (stored.offset, stored.length)):
                raise ValueError(f"{index.fqn[:80]!r} has no valid position")
            stored.relative_path = _file_name(stored.relative_path)
            if index.fqn not in tensors:
                objects[index.fqn] = stored
                continue
            offset = _shape(index.offset, index.fqn)
            chunks.setdefault(index.fqn, []).append(Chunk(offset, sizes[index.fqn, offset], stored))
    except (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, MemoryError, OverflowError,
            RecursionError) as error:  # fmt: skip
        raise RequestError(f"{file}: not readable ({_short(error)}); copy the checkpoint again") from None
    return tensors, objects, {key: Chunks(chunks_of_key) for key, chunks_of_key in chunks.items()}
