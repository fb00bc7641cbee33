"""Reads single samples of a prepared dataset like the training, for notebooks. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.pictures import PictureRules, token_count, upright_size
from qwen3vl_core.data.shards import ShardSplit, splits_of
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import read_small

LARGEST = 256 << 20
"""Largest sample that is read, in bytes."""
_AGAIN = "make it again with qwen3vl prepare"


@dataclass(frozen=True)
class DatasetSample:
    """One sample as stored on disk."""

    key: str
    messages: list[dict[str, Any]]
    """`[{"role": ..., "content": [{"type": "text", "text": ...} or {"type": "image", "part": ...}]}]`"""
    parts: dict[str, bytes]
    """Content of each part, by its name in the messages."""
    shard: str


class Split:
    """The samples of one split in their order on disk. Raises RequestError when it has none."""

    def __init__(self, dataset: Path | str, split: str = "train") -> None:
        self._shards = ShardSplit(Path(dataset).expanduser().absolute(), split)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int) -> DatasetSample:
        """Raises IndexError beyond the end, RequestError for a damaged sample."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = self._shards.shard_name(number)
        location = f"{shard}, sample {number}"
        if (size := self._shards.sample_size(number)) > LARGEST:
            raise RequestError(f"{location}: {size:,} bytes; at most {LARGEST:,} are shown")
        try:
            key, parts = self._shards.read(number)
            messages = json.loads(parts.pop("json"))["messages"]
        except (WorkError, DataError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"{location}: cannot be read ({type(error).__name__}: {error}); {_AGAIN}") from None
        finally:
            self._shards.close()  # a page may stay open for days
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise RequestError(f"{location}: holds no list of messages; {_AGAIN}")
        return DatasetSample(key, messages, parts, shard)


def splits(dataset: Path) -> list[str]:
    """Names of the splits that have shards. Raises RequestError for a folder that is not a prepared dataset."""
    return [name for name, shards in splits_of(dataset).items() if shards]


def report_of(dataset: Path) -> dict[str, Any]:
    """`report.json` of the preparation; empty when there is none."""
    try:
        value = json.loads((Path(dataset).expanduser() / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def picture_tokens(model: Path | str) -> Callable[[bytes], int | None] | None:
    """What counts the tokens of a picture file for a model, by the picture's header; None for a model without a picture processor.

    The count is None for what is no picture. Raises RequestError for a damaged preprocessor_config.json.
    """
    file = Path(model).expanduser() / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(read_small(file, limits.CONFIG))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: cannot be read ({error}); copy it from the original checkpoint") from None
    rules = PictureRules.from_config(config if isinstance(config, dict) else {}, str(file))

    def count(content: bytes) -> int | None:
        try:
            return token_count(*upright_size(content), rules)
        except Exception:
            # Pillow raises errors of many types for damaged files
            return None

    return count
