"""Hugging Face model folders: their safetensors, read by rows, and the other files of the folder."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwen3vl_core import file_digests, limits
from qwen3vl_core.checkpoint.positional_io import EndOfFile, FileReader
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import open_regular, read_small
from qwen3vl_core.peft_folder import is_peft_folder
from qwen3vl_core.run_record import TRACKER

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MOST_DIMENSIONS = 16
_CHANGED = f"copy or convert it again, or remove {file_digests.NAME} if it was changed on purpose"
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
SIDE_SUFFIXES = (".json", ".jinja", ".txt", ".model")


@dataclass(frozen=True)
class Entry:
    """Where one tensor is stored: bytes [start, end) of `file`."""

    file: Path
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def _damaged(file: Path, why: str) -> RequestError:
    return RequestError(f"{file}: not a safetensors file ({why}); download or copy it again")


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file. Raises RequestError for a file that is truncated or not a safetensors file."""
    size = file.stat().st_size
    if not file.is_file():
        raise _damaged(file, "no regular file")
    with open_regular(file, links=True) as stream:
        first = stream.read(8)
        if len(first) < 8:
            raise _damaged(file, "it is empty")
        (length,) = struct.unpack("<Q", first)
        if length > min(size - 8, limits.SAFETENSORS_HEADER):
            raise _damaged(file, "its header is longer than the file")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):  # numbers of thousands of digits are refused, too
            raise _damaged(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no table")
    entries = {}
    data = 8 + length
    for name, item in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (start, end) = SAFETENSORS_DTYPES[item["dtype"]], tuple(item["shape"]), item["data_offsets"]
            if len(shape) > MOST_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise _damaged(file, f"the entry of {name[:80]} is not readable") from None
        if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize:
            raise _damaged(file, f"the entry of {name[:80]} does not fit its shape")
        if data + end > size:
            raise RequestError(f"{file}: cut short ({size} bytes, {name[:80]} ends at {data + end}); download or copy it again")
        entries[name] = Entry(file, data + start, data + end, dtype, shape)
    return entries


class HFReader:
    """The tensors of a Hugging Face folder, in one file or in shards. Several threads may read at once.

    strict: raise RequestError for the first problem of the files; else continue with what can be read and keep
    a line for each in `problems`. pattern: of the files; those of a model by default.
    """

    def __init__(self, folder: Path, strict: bool = True, pattern: str = "*.safetensors") -> None:
        self.folder = folder
        self._pattern = pattern
        self.entries: dict[str, Entry] = {}
        self.problems: list[str] = []
        self._strict = strict
        self._files = FileReader()
        self._checker = file_digests.DigestChecker(self._read_digests())
        for file, expected in self._weight_files().items():
            try:
                header = read_header(file)
            except RequestError as error:
                self._add_problem(str(error))
                continue
            absent = [name for name in expected if name not in header]
            if absent:
                self._add_problem(f"{folder / INDEX}: says that {absent[0]} is in {file.name}, but it is not; download both again")
            for name, entry in header.items():
                if name in self.entries:
                    self._add_problem(f"{folder}: {name} is in {self.entries[name].file.name} and in {file.name}; keep one of them")
                self.entries[name] = entry

    def _add_problem(self, line: str) -> None:
        if self._strict:
            raise RequestError(line)
        self.problems.append(line)

    def _read_digests(self) -> dict[str, file_digests.Digest] | None:
        """Those that a conversion has written; a file of weights with another length is a problem."""
        try:
            digests = file_digests.read(self.folder) or {}
            weights = {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}
            problem = file_digests.sizes_problem(self.folder, weights)
        except (ValueError, OSError) as error:
            digests, problem = {}, str(error)
        if problem is not None:
            self._add_problem(f"{self.folder}: {problem}; {_CHANGED}")
        return digests

    def _weight_files(self) -> dict[Path, list[str]]:
        """The safetensors files: those that the index names, with their tensors, else all."""
        try:
            named = read_index(self.folder) if self._pattern == "*.safetensors" else None
        except RequestError as error:
            self._add_problem(str(error))
            named = None
        if named is None:
            return {file: [] for file in sorted(self.folder.glob(self._pattern))}
        missing = sorted(name for name in named if not (self.folder / name).is_file())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self._add_problem(f"{self.folder}: {missing[0]}{more} is missing, though {INDEX} names it; download it again")
        return {self.folder / name: named[name] for name in sorted(named) if name not in missing}

    def read_rows(self, name: str, at: int | None, row: int, out: Tensor) -> None:
        """Fill `out`, contiguous and of the tensor's precision, with the rows from `row` on.

        at: the slice of a stack of experts; None for a tensor that is no stack. Raises WorkError when the file ends early.
        """
        entry = self.entries[name]
        shape = entry.shape if at is None else entry.shape[1:]
        first = row + (0 if at is None else at * shape[0])
        start = entry.start + first * math.prod(shape[1:]) * entry.dtype.itemsize
        try:
            data = out.reshape(-1).view(torch.uint8).numpy().data
            self._files.read(entry.file, start, data)
        except EndOfFile:
            raise WorkError(f"{entry.file}: ended while {name} was read; copy it again") from None
        problem = self._checker.problem(entry.file, start, data)
        if problem is not None:
            raise self._damaged(entry.file, problem)

    @staticmethod
    def _damaged(file: Path, problem: str) -> RequestError:
        return RequestError(f"{file}: {problem}; {_CHANGED}")

    def checked_in_passing(self) -> contextlib.AbstractContextManager[None]:
        """What is read in this block is compared with the digests at the end of it, not before it is used. Raises RequestError there."""
        return self._checker.in_passing(self.folder, self._damaged)

    def read(self, name: str, at: int | None = None) -> Tensor:
        """One tensor, or slice `at` of a stack, in newly allocated memory. Raises WorkError when the file ends early."""
        entry = self.entries[name]
        out = torch.empty(entry.shape if at is None else entry.shape[1:], dtype=entry.dtype)
        self.read_rows(name, at, 0, out)
        return out

    @property
    def bytes(self) -> int:
        """Total size of the tensors."""
        return sum(e.end - e.start for e in self.entries.values())


def read_index(folder: Path) -> dict[str, list[str]] | None:
    """{file: tensors in it} according to the index; None without an index. Raises RequestError for an invalid one."""
    index = folder / INDEX
    if not index.exists():
        return None
    files: dict[str, list[str]] = {}
    try:
        for tensor, name in json.loads(read_small(index, limits.SAFETENSORS_INDEX))["weight_map"].items():
            files.setdefault(name, []).append(tensor)
    except (RequestError, OSError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RequestError(f"{index}: not an index of safetensors files; copy it from the checkpoint again") from None
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or len(name.encode("utf-8", "replace")) > 255 or "\0" in name:
            raise RequestError(f"{index}: names the file {str(name)[:300]!r}, which is not in this folder; copy the index again")
    return files


def pickled_weights(folder: Path) -> list[str]:
    """Names of weight files that are pickles. They are never opened."""
    return sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES and f.is_file())


def is_hf_folder(path: Path) -> bool:
    """True for a folder with a model's safetensors in it; an adapter's alone are no model."""
    return path.is_dir() and not is_peft_folder(path) and ((path / INDEX).exists() or any(path.glob("*.safetensors")))


def side_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer and processor files: everything of a model folder that is not weights or code."""
    return sorted(
        f
        for f in folder.iterdir()
        if f.is_file() and f.suffix in SIDE_SUFFIXES and not f.name.endswith(".index.json")
        and f.name not in (TRACKER, "metadata.json", file_digests.NAME) and f.stat().st_size <= limits.SIDE_FILE
    )  # fmt: skip


def copy_side_files(source: Path, target: Path, dtype: torch.dtype | None = None) -> list[str]:
    """Copy the side files; `config.json` then states `dtype`, if one is given. Returns their names."""
    names = []
    for file in side_files(source):
        if file.name == "config.json" and dtype is not None:
            config = json.loads(file.read_text())
            # transformers 4 wrote torch_dtype, transformers 5 writes dtype, at the top level and in each sub-config
            for level in (config, config.get("text_config"), config.get("vision_config")):
                for key in ("dtype", "torch_dtype"):
                    if isinstance(level, dict) and key in level:
                        level[key] = str(dtype).removeprefix("torch.")
            (target / file.name).write_text(json.dumps(config, indent=2) + "\n")
        else:
            shutil.copyfile(file, target / file.name)
        names.append(file.name)
    return names
