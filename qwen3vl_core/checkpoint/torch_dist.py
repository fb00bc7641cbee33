"""Megatron's `torch_dist` checkpoints, read and written box by box: no model, no process group, no unsafe unpickling.

A checkpoint folder holds `latest_checkpointed_iteration.txt` (the tracker: `release` or a number) and `release/` or
`iter_0000500/` with `.metadata` (what stands where), `*.distcp` (the numbers), `common.pt` and `metadata.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from qwen3vl_core.errors import RequestError, WorkError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
DATA_FILE = "__0_0.distcp"
# what the tables of a checkpoint are made of; anything else in a `.metadata` file is refused
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex", "TensorProperties",
        "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "builtins": {"set", "frozenset", "slice"},
}  # fmt: skip


class _TablesOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "pathlib" or module.startswith("pathlib."):
            # some writers note the folder that they wrote to; it is not looked at
            return str
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's tables")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found on disk."""

    root: Path
    """Holds the tracker, and the config and tokenizer where they were carried along."""
    data: Path
    """Holds `.metadata` and the numbers."""
    iteration: int
    """0 for `release`."""


def iteration_folder(iteration: int) -> str:
    """Megatron's name: 500 -> `iter_0000500`."""
    return f"iter_{iteration:07d}"


def find(path: Path) -> Checkpoint | None:
    """The checkpoint that a path means: its folder, one of its `iter_…` folders, or a run that has `checkpoints/`.

    None where there is no sign of one. Raises RequestError for one that is broken.
    """
    if (path / ".metadata").is_file():
        named = re.fullmatch(r"iter_(\d{1,12})", path.name)
        return Checkpoint(path.parent if (path.parent / TRACKER).exists() else path, path, int(named[1]) if named else 0)
    if not (path / TRACKER).is_file():
        if (path / "checkpoints" / TRACKER).is_file():
            return find(path / "checkpoints")
        there = sorted(d.name for d in path.glob("iter_*") if d.is_dir()) if path.is_dir() else []
        if there:
            raise RequestError(f"{path}: {TRACKER} is missing; name one of its folders: {', '.join(there[-3:])}")
        return None
    word = (path / TRACKER).read_text().strip()
    if word != RELEASE and not re.fullmatch(r"\d{1,12}", word):
        raise RequestError(f"{path / TRACKER}: {word[:40]!r} is neither a number nor {RELEASE}; write the iteration into it")
    name, iteration = (RELEASE, 0) if word == RELEASE else (iteration_folder(int(word)), int(word))
    if not (path / name / ".metadata").is_file():
        there = sorted(d.parent.name for d in path.glob("*/.metadata"))
        raise RequestError(f"{path}: the tracker says {word}, but {name}/.metadata is missing; there is {', '.join(there) or 'nothing'}")
    return Checkpoint(path, path / name, iteration)


def load_plain(stream: Any) -> Any:
    """`torch.load` of tensors and plain values; Megatron's `common.pt` holds an argparse namespace too."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(stream, map_location="cpu", weights_only=True)


def read_common(data: Path) -> dict[str, Any]:
    """`common.pt`. Raises RequestError when it holds more than tensors and plain values."""
    file = data / "common.pt"
    try:
        return load_plain(file)
    except FileNotFoundError:
        return {}
    except pickle.UnpicklingError as error:
        raise RequestError(f"{file}: holds more than numbers and plain values ({str(error).splitlines()[0][:120]}); not loaded") from None


class RegionReader:
    """Boxes of the tensors in a checkpoint, whatever parallel layout wrote it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        try:
            with (data / ".metadata").open("rb") as stream:
                self.metadata: Metadata = _TablesOnly(stream).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError) as error:
            raise RequestError(f"{data / '.metadata'}: not readable ({error}); copy the checkpoint again") from None
        self.tensors: dict[str, TensorStorageMetadata] = {}
        self.objects: dict[str, _StorageInfo] = {}
        self._chunks: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], _StorageInfo]]] = {}
        sizes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
        for key, item in self.metadata.state_dict_metadata.items():
            if isinstance(item, TensorStorageMetadata):
                self.tensors[key] = item
                sizes |= {(key, tuple(chunk.offsets)): tuple(chunk.sizes) for chunk in item.chunks}
        for index, info in self.metadata.storage_data.items():
            if index.fqn not in self.tensors:
                self.objects[index.fqn] = info
                continue
            offset = tuple(index.offset)
            self._chunks.setdefault(index.fqn, []).append((offset, sizes[index.fqn, offset], info))

    def _load(self, info: _StorageInfo) -> Any:
        """What was saved at one place of a `.distcp` file. The file's name is not trusted to stay in the folder."""
        file = self.data / Path(info.relative_path).name
        try:
            with file.open("rb") as stream:
                stream.seek(info.offset)
                blob = stream.read(info.length)
        except FileNotFoundError:
            raise RequestError(f"{file}: missing, though .metadata names it; copy the checkpoint again") from None
        if len(blob) < info.length:
            raise RequestError(f"{file}: cut short ({info.offset + len(blob)} bytes, {info.offset + info.length} are named); copy it again")
        return load_plain(io.BytesIO(blob))

    def read(self, key: str, offset: tuple[int, ...] | None = None, size: tuple[int, ...] | None = None) -> Tensor:
        """A box of the tensor `key`; the whole of it by default. Raises RequestError when chunks are missing."""
        tensor = self.tensors[key]
        offset = offset or (0,) * len(tensor.size)
        size = tuple(tensor.size) if size is None else size
        end = tuple(o + s for o, s in zip(offset, size, strict=True))
        out, filled = None, 0
        for at, extent, info in self._chunks.get(key, ()):
            low = [max(a, b) for a, b in zip(offset, at, strict=True)]
            high = [min(a, b + c) for a, b, c in zip(end, at, extent, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            chunk = self._load(info)
            if tuple(chunk.shape) != extent:
                chunk = chunk.reshape(extent)
            if at == offset and extent == size:
                return chunk
            if out is None:
                out = torch.empty(size, dtype=tensor.properties.dtype)
            there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
            here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, at, strict=True))
            out[there] = chunk[here]
            filled += math.prod(b - a for a, b in zip(low, high, strict=True))
        if filled != math.prod(size):
            raise RequestError(f"{self.data}: {key} is not whole ({filled} of {math.prod(size)} numbers are there); copy the checkpoint again")
        return out

    def read_object(self, unique_key: str) -> Any:
        """A saved object (Megatron wraps each in a list). KeyError when it is not there."""
        return self._load(self.objects[unique_key])[0]


class RegionWriter:
    """Writes a `torch_dist` checkpoint box by box, as one rank's save would look. Use as a context; `finish` at the end."""

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True)
        self.data = data
        self._stream = (data / DATA_FILE).open("wb", buffering=4 << 20)
        self._entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self.bytes = 0

    def __enter__(self) -> RegionWriter:
        return self

    def __exit__(self, *error) -> None:
        self._stream.close()

    def _append(self, value: Any) -> _StorageInfo:
        start = self._stream.tell()
        torch.save(value, self._stream)
        return _StorageInfo(DATA_FILE, start, self._stream.tell() - start)

    def write(self, key: str, global_shape: tuple[int, ...], offset: tuple[int, ...], box: Tensor) -> None:
        """One box of the tensor `key`."""
        entry = self._entries.get(key)
        if entry is None:
            properties = TensorProperties(dtype=box.dtype)
            entry = self._entries[key] = TensorStorageMetadata(properties, torch.Size(global_shape), [])
        if entry.properties.dtype != box.dtype:
            raise WorkError(
                f"{key}: {box.dtype} after {entry.properties.dtype}; the layers of one tensor must agree: choose one with --dtype"
            )
        chunk = ChunkStorageMetadata(torch.Size(offset), box.shape)
        entry.chunks.append(chunk)
        # a view would drag its whole storage into the file
        whole = box if box.is_contiguous() and box.untyped_storage().nbytes() == box.nbytes else box.clone()
        self._places[MetadataIndex(key, chunk.offsets, len(entry.chunks) - 1)] = self._append(whole)
        self.bytes += box.nbytes

    def write_object(self, key: str, index: int, count: int, value: Any) -> None:
        """One entry of a sharded object, under the name that Megatron's `ShardedObject.unique_key` gives."""
        unique = f"{key}/shard_{index}_{count}"
        self._entries[unique] = BytesStorageMetadata()
        self._places[MetadataIndex(unique)] = self._append([value])

    def finish(self, common: dict[str, Any]) -> None:
        """The tables: after this the checkpoint is whole."""
        self._stream.close()
        torch.save(common, self.data / "common.pt")
        (self.data / "metadata.json").write_text(
            json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1})
        )
        table = Metadata(state_dict_metadata=self._entries, storage_data=self._places)
        (self.data / ".metadata").write_bytes(pickle.dumps(table))
