"""Single samples out of a prepared dataset: random access by the index beside each shard. No torch, no Energon."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qwen3vl_core.errors import RequestError

INDEX = ".nv-meta"
LARGEST = 256 << 20
"""Bytes of a sample that are read at most."""
_AGAIN = "make it again with qwen3vl prepare"


@dataclass(frozen=True)
class DatasetSample:
    """One sample as it stands on disk."""

    key: str
    messages: list[dict[str, Any]]
    """`[{"role": ..., "content": [{"type": "text", "text": ...} or {"type": "image", "part": ...}]}]`"""
    parts: dict[str, bytes]
    """Content of each part, by the name that the messages call it."""
    shard: str


class Split:
    """The samples of one split, numbered as they stand. Raises RequestError when there is none to show."""

    def __init__(self, dataset: Path | str, split: str = "train") -> None:
        self.dataset, self.split = Path(dataset).expanduser().absolute(), split
        there = splits(self.dataset)
        if not there.get(split):
            names = ", ".join(name for name, shards in there.items() if shards) or "none"
            raise RequestError(f"{dataset}: no split {split}; there are: {names}")
        self._shards = [self.dataset / name for name in there[split]]
        self._tables = [_offsets(shard) for shard in self._shards]
        self._ends = np.cumsum([len(table) - 1 for table in self._tables])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> DatasetSample:
        """Raises IndexError beyond the end, RequestError for a sample that is damaged."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = int(np.searchsorted(self._ends, number, "right"))
        table, shard = self._tables[which], self._shards[which]
        place = number - (int(self._ends[which - 1]) if which else 0)
        begin, end = int(table[place]), int(table[place + 1])
        where = f"{shard.name}, sample {place}"
        if end - begin > LARGEST:
            raise RequestError(f"{where}: {end - begin:,} bytes; at most {LARGEST:,} are shown")
        key, parts, messages = "", {}, None
        try:
            with open(shard, "rb") as file:
                file.seek(begin)
                data = file.read(end - begin)
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is None:
                        continue
                    key, _, part = member.name.rpartition("/")[2].partition(".")
                    parts[part] = content.read()
            messages = json.loads(parts.pop("json"))["messages"]
        except (OSError, tarfile.TarError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"{where}: cannot be read ({type(error).__name__}: {error}); {_AGAIN}") from None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise RequestError(f"{where}: holds no list of messages; {_AGAIN}")
        return DatasetSample(key, messages, parts, shard.name)


def splits(dataset: Path) -> dict[str, list[str]]:
    """Shards of each split. Raises RequestError for a folder that is no prepared dataset."""
    file = dataset / INDEX / "split.yaml"
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        found = {str(name): [str(s) for s in shards or []] for name, shards in loaded["split_parts"].items()}
    except FileNotFoundError:
        raise RequestError(f"{dataset}: no dataset ({INDEX} is missing); give a folder made by qwen3vl prepare") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{file}: cannot be read ({type(error).__name__}); {_AGAIN}") from None
    for name in (shard for shards in found.values() for shard in shards):
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise RequestError(f"{dataset}: shard {name} lies outside the dataset; {_AGAIN}")
    return found


def report_of(dataset: Path) -> dict[str, Any]:
    """`report.json` of the preparation; empty when there is none."""
    try:
        value = json.loads((Path(dataset).expanduser() / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _offsets(shard: Path) -> np.ndarray:
    """int64 [samples + 1]: where each sample of a shard begins, and where the last one ends."""
    try:
        size = shard.stat().st_size
        table = np.fromfile(shard.with_name(shard.name + ".idx"), dtype="<u8").astype(np.int64)
    except OSError as error:
        raise RequestError(f"{error.filename}: {error.strerror}; {_AGAIN}") from None
    if len(table) < 2 or table[0] or (np.diff(table) <= 0).any() or table[-1] > size:
        raise RequestError(f"{shard.name}.idx: does not fit its shard; {_AGAIN}")
    return table
