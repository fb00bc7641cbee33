"""Writes a `torch_dist` checkpoint box by box, from several threads, as if one rank had saved it.

The offset of each box is known before the first byte, so the files do not depend on the order of the threads.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen3vl_core.checkpoint import positional_io
from qwen3vl_core.checkpoint.dcp_metadata import Shape
from qwen3vl_core.checkpoint.dcp_tables import tables
from qwen3vl_core.checkpoint.torch_save import TensorRecord, record

# neighbouring boxes go to different files: threads that write to the same file block each other
FILES = 4


@dataclass(frozen=True)
class Box:
    """The space reserved for one box: in file number `file`, from byte `start` on."""

    file: int
    start: int
    record: TensorRecord


class RegionWriter:
    """Use as a context manager: `add` every box, then `write` their bytes, and `finish` at the end."""

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True)
        self.data = data
        self.names = [f"__0_{number}.distcp" for number in range(FILES)]
        self._handles = [os.open(data / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644) for name in self.names]
        self._ends = [0] * FILES
        self._tensors: dict[str, tuple[torch.dtype, Shape, list[tuple[Shape, Shape]]]] = {}
        self._entries: list[tuple[str, Shape | None, int | None, int, int, int]] = []
        self._empty: tuple[int, int, int] | None = None
        self.bytes = 0

    def __enter__(self) -> RegionWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles = []

    def _reserve(self, length: int) -> tuple[int, int]:
        """(file number, first byte) of `length` bytes in the file that is shortest so far."""
        file = self._ends.index(min(self._ends))
        start = self._ends[file]
        self._ends[file] += length
        return file, start

    def add(self, key: str, global_shape: Shape, offset: Shape, size: Shape, dtype: torch.dtype) -> Box:
        """Reserve space for one box of the tensor `key`."""
        archive = record(dtype, size)
        first, _, chunks = self._tensors.setdefault(key, (dtype, global_shape, []))
        assert first == dtype, key
        file, start = self._reserve(archive.bytes)
        self._entries.append((key, offset, len(chunks), file, start, archive.bytes))
        chunks.append((offset, size))
        self.bytes += archive.data_bytes
        return Box(file, start, archive)

    def write(self, box: Box, start: int, data: memoryview) -> None:
        """Write bytes of a box, from its byte `start` on. Several threads may write at once."""
        archive, handle = box.record, self._handles[box.file]
        if start + len(data) > archive.data_bytes:
            raise AssertionError(f"{start + len(data)} bytes written for a box of {archive.data_bytes}")
        if start == 0:
            positional_io.write_at(handle, archive.head, box.start)
        positional_io.write_at(handle, data, box.start + len(archive.head) + start)
        if start + len(data) == archive.data_bytes:
            positional_io.write_at(handle, archive.tail, box.start + len(archive.head) + archive.data_bytes)

    def add_empty(self, key: str, index: Shape, count: Shape) -> None:
        """An entry of a sharded object that is None, under the name that Megatron's `ShardedObject.unique_key` gives.

        A model of many experts has thousands of them: all share one record.
        """
        if self._empty is None:
            blob = io.BytesIO()
            torch.save([None], blob)
            file, start = self._reserve(blob.tell())
            positional_io.write_at(self._handles[file], blob.getbuffer(), start)
            self._empty = file, start, blob.tell()
        unique = f"{key}/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, count))}"
        self._entries.append((unique, None, None, *self._empty))

    def finish(self, common: dict[str, Any]) -> None:
        """Write the tables: after this the checkpoint is complete."""
        # torch's own writer says of a full disk that it is an "iostream error"
        blob = io.BytesIO()
        torch.save(common, blob)
        (self.data / "common.pt").write_bytes(blob.getvalue())
        backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}
        (self.data / "metadata.json").write_text(json.dumps(backends))
        places = [(key, offset, index, self.names[file], start, size) for key, offset, index, file, start, size in self._entries]
        (self.data / ".metadata").write_bytes(tables(self._tensors, places))
