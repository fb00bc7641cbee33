"""Safetensors written in any order: the offset of each tensor is known before the first byte.

A file's header is written last. Until then it begins with zeros, which no reader accepts as a safetensors file.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen3vl_core.checkpoint import positional_io
from qwen3vl_core.checkpoint.hf import INDEX, SAFETENSORS_NAMES, SINGLE

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Extent:
    """The bytes of a file that a tensor takes."""

    handle: int
    start: int
    bytes: int


def _shards(planned: Iterable[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in planned:
        if shards[-1] and filled + tensor.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.bytes
    return shards


class SafetensorsWriter:
    """Writes tensors into one or more safetensors files, with an index where there is more than one. Use as a context manager."""

    def __init__(self, folder: Path, planned: list[TensorSpec], shard_bytes: int | None = None) -> None:
        shards = _shards(planned, shard_bytes or SHARD_BYTES)
        self.folder = folder
        self.bytes = 0
        self._files: list[tuple[int, bytes, int]] = []
        # the kernel lets one thread write to a file at a time, and the others spin
        self._turns: dict[int, threading.Lock] = {}
        self._extents: dict[str, _Extent] = {}
        self._map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            header: dict[str, object] = {"__metadata__": {"format": "pt"}}
            at = 0
            for t in shard:
                header[t.name] = {"dtype": SAFETENSORS_NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.bytes]}
                self._map[t.name] = file
                at += t.bytes
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            handle = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            self._turns[handle] = threading.Lock()
            self._files.append((handle, struct.pack("<Q", len(text)) + text, at))
            start = 8 + len(text)
            for t in shard:
                self._extents[t.name] = _Extent(handle, start, t.bytes)
                start += t.bytes
            self.bytes += at

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for handle, _, _ in self._files:
            os.close(handle)
        self._files = []

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Write bytes of the tensor `name`, from its byte `start` on. Several threads may write at once."""
        extent = self._extents[name]
        if start + len(data) > extent.bytes:
            raise AssertionError(f"{name}: {start + len(data)} bytes written for {extent.bytes}")
        with self._turns[extent.handle]:
            positional_io.write_at(extent.handle, data, extent.start + start)

    def finish(self) -> None:
        """Write the headers and the index: after this the files are complete."""
        for handle, header, _ in self._files:
            positional_io.write_at(handle, header, 0)
        if len(self._files) > 1:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": self._map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
