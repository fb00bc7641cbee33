"""Hugging Face model folders: safetensors read tensor by tensor and written as a stream, and the files beside them.

Read by plain file reads instead of a memory map: peak memory is one tensor, and a network disk is read forwards.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwen3vl_core.errors import RequestError, WorkError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
LARGEST_HEADER = 100_000_000
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SIDE_SUFFIXES = (".json", ".jinja", ".txt", ".model")
LARGEST_SIDE_FILE = 200_000_000


@dataclass(frozen=True)
class Entry:
    """Where one tensor stands: bytes [start, end) of `file`."""

    file: Path
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def _damaged(file: Path, why: str) -> RequestError:
    return RequestError(f"{file}: not a safetensors file ({why}); download or copy it again")


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file. Raises RequestError for a file that is cut short or is none."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        if len(first) < 8:
            raise _damaged(file, "it is empty")
        (length,) = struct.unpack("<Q", first)
        if length > min(size - 8, LARGEST_HEADER):
            raise _damaged(file, "its header is longer than the file")
        try:
            header = json.loads(stream.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise _damaged(file, "its header is not JSON") from None
    found = {}
    data = 8 + length
    for name, item in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (start, end) = DTYPES[item["dtype"]], tuple(item["shape"]), item["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise _damaged(file, f"the entry of {name} is not readable") from None
        if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize:
            raise _damaged(file, f"the entry of {name} does not fit its shape")
        if data + end > size:
            raise RequestError(f"{file}: cut short ({size} bytes, {name} ends at {data + end}); download or copy it again")
        found[name] = Entry(file, data + start, data + end, dtype, shape)
    return found


class HFReader:
    """The tensors of a Hugging Face folder, whole or sharded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file in weight_files(folder):
            for name, entry in read_header(file).items():
                if name in self.entries:
                    raise RequestError(f"{folder}: {name} is in {self.entries[name].file.name} and in {file.name}; keep one of them")
                self.entries[name] = entry

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own. Raises WorkError when the file ends early."""
        entry = self.entries[name]
        buffer = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        with entry.file.open("rb", buffering=0) as stream:
            stream.seek(entry.start)
            view, done = memoryview(buffer.numpy()), 0
            while done < len(view):
                got = stream.readinto(view[done:])
                if not got:
                    raise WorkError(f"{entry.file}: ended while {name} was read; copy it again")
                done += got
        return buffer.view(entry.dtype).view(entry.shape)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(e.end - e.start for e in self.entries.values())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that its index names, else all. Raises RequestError for what is missing."""
    index = folder / INDEX
    if index.exists():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RequestError(f"{index}: not an index of safetensors files; copy it from the checkpoint again") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise RequestError(f"{index}: names the file {name!r}, which is not in this folder; copy the index again")
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise RequestError(f"{folder}: {missing[0]}{more} is missing, though {INDEX} names it; download it again")
        return [folder / name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RequestError(f"{folder}: no .safetensors file in it; choose a Hugging Face model folder")
    return files


def is_hf_folder(path: Path) -> bool:
    """True for a folder with safetensors in it."""
    return path.is_dir() and ((path / INDEX).exists() or any(path.glob("*.safetensors")))


def side_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer and processor files: everything of a model folder that is not weights or code."""
    return sorted(
        f
        for f in folder.iterdir()
        if f.is_file() and f.suffix in SIDE_SUFFIXES and not f.name.endswith(".index.json")
        and f.name not in ("latest_checkpointed_iteration.txt", "metadata.json") and f.stat().st_size <= LARGEST_SIDE_FILE
    )  # fmt: skip


def copy_side_files(source: Path, target: Path, dtype: torch.dtype | None = None) -> list[str]:
    """Carry the side files along; `config.json` then states `dtype`, if one is given. Returns their names."""
    names = []
    for file in side_files(source):
        if file.name == "config.json" and dtype is not None:
            config = json.loads(file.read_text())
            # transformers 4 wrote torch_dtype, transformers 5 writes dtype, in the whole and in each part
            for part in (config, config.get("text_config"), config.get("vision_config")):
                for key in ("dtype", "torch_dtype"):
                    if isinstance(part, dict) and key in part:
                        part[key] = str(dtype).removeprefix("torch.")
            (target / file.name).write_text(json.dumps(config, indent=2) + "\n")
        else:
            shutil.copyfile(file, target / file.name)
        names.append(file.name)
    return names


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _shards(planned: Iterable[Planned], limit: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    filled = 0
    for tensor in planned:
        if shards[-1] and filled + tensor.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.bytes
    return shards


def write_safetensors(folder: Path, planned: list[Planned], tensors: Iterator[Tensor], shard_bytes: int = SHARD_BYTES) -> int:
    """Stream `tensors`, in the order of `planned`, to safetensors with an index where there is more than one file.

    The headers are known beforehand, so nothing is kept. Returns the bytes written.
    """
    shards = _shards(planned, shard_bytes)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for t in shard:
            header[t.name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.bytes]}
            weight_map[t.name] = file
            at += t.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb", buffering=0) as stream:
            _write_all(stream, struct.pack("<Q", len(text)) + text)
            for t in shard:
                tensor = next(tensors)
                if tuple(tensor.shape) != t.shape or tensor.dtype != t.dtype:
                    raise AssertionError(f"{t.name}: {tensor.dtype} {tuple(tensor.shape)} came for {t.dtype} {t.shape}")
                _write_all(stream, memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
        total += at
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return total


def _write_all(stream, data: bytes | memoryview) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += stream.write(view[done:])
