"""The metadata of a `torch_dist` checkpoint as torch's own classes pickle it, written without importing those, which takes a second.

Each class here stands for one of torch; the pickle of protocol 2 names a class once, in clear, and the name is
replaced by torch's. `dcp_metadata.py` reads them.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import torch

from qwen3vl_core.checkpoint.dcp_metadata import Shape

PROTOCOL = 2


@dataclass(eq=False)
class Metadata:
    """All tables."""

    state_dict_metadata: dict[str, Any]
    storage_data: dict[MetadataIndex, Any]
    planner_data: Any = None
    storage_meta: Any = None


@dataclass(eq=False)
class TensorStorageMetadata:
    """One tensor."""

    properties: TensorProperties
    size: torch.Size
    chunks: list[ChunkStorageMetadata]


@dataclass(eq=False)
class BytesStorageMetadata:
    """An object that is not a tensor."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(eq=False)
class ChunkStorageMetadata:
    """One box of a tensor."""

    offsets: torch.Size
    sizes: torch.Size


@dataclass(eq=False)
class MetadataIndex:
    """A tensor's name and the offset of one box."""

    fqn: str
    offset: torch.Size | None = None
    index: int | None = None


@dataclass(eq=False)
class _BoxPlace:
    """Where a box is stored."""

    relative_path: str
    offset: int
    length: int


class _MEM_FORMAT_ENCODING:
    """Of a tensor's memory format: 0, contiguous."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (0,)


_CONTIGUOUS = _MEM_FORMAT_ENCODING()


class TensorProperties:
    """Of one tensor."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __getstate__(self) -> tuple[Any, ...]:
        return self.dtype, torch.strided, False, _CONTIGUOUS, False


_TORCH = {cls: f"metadata\n{cls.__name__}" for cls in (
    Metadata, TensorStorageMetadata, BytesStorageMetadata, ChunkStorageMetadata, MetadataIndex, TensorProperties, _MEM_FORMAT_ENCODING,
)} | {_BoxPlace: "filesystem\n_StorageInfo"}  # fmt: skip


def tables(
    tensors: dict[str, tuple[torch.dtype, Shape, list[tuple[Shape, Shape]]]],
    stored: list[tuple[str, Shape | None, int | None, str, int, int]],
) -> bytes:
    """The content of `.metadata`. tensors: precision, shape and boxes (offset, size) by name. stored: for each box or object its name,
    offset (None: an object) and number among the tensor's boxes, its file, and first byte and length there."""
    entries: dict[str, Any] = {}
    for key, (dtype, shape, chunks) in tensors.items():
        boxes = [ChunkStorageMetadata(torch.Size(offset), torch.Size(size)) for offset, size in chunks]
        entries[key] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(shape), boxes)
    places: dict[MetadataIndex, _BoxPlace] = {}
    for key, offset, number, file, start, length in stored:
        if offset is None:
            entries[key] = BytesStorageMetadata()
        index = MetadataIndex(key) if offset is None else MetadataIndex(key, torch.Size(offset), number)
        places[index] = _BoxPlace(file, start, length)
    data = pickle.dumps(Metadata(entries, places), protocol=PROTOCOL)
    for cls, name in _TORCH.items():
        own = f"c{cls.__module__}\n{cls.__name__}\n".encode()
        if data.count(own) > 1:
            raise AssertionError(f"{cls.__name__} is named {data.count(own)} times")
        data = data.replace(own, f"ctorch.distributed.checkpoint.{name}\n".encode())
    return data
