"""Columns and tags of other names: `--columns`, and LLaMA-Factory's dataset_info.json. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.data.errors import listed
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small

FILE = "dataset_info.json"
NAMES = (
    "id", "image", "images", "video", "videos", "conversations", "messages", "system", "tools", "objects", "history", "caption",
    "question", "answer", "query", "response", "prompt", "completion", "instruction", "input", "output",
)  # fmt: skip
"""What `--columns` can name."""
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "observation_tag": "observation",
    "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip


_SOURCES = {"file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"}
"""Keys of LLaMA-Factory's entries, of which each has one."""


@dataclass(frozen=True)
class Naming:
    """How a source calls what is read. Applying the empty one changes nothing."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """What it is -> the source's name for it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of LLaMA-Factory: role_tag, content_tag, user_tag, …"""

    def applied(self, record: Any) -> Any:
        """The record under the names that are read."""
        if not isinstance(record, dict) or not (self.columns or self.tags):
            return record
        renamed = dict(record)
        # all are taken out before any is put in: two columns may swap their names
        taken = {name: renamed.pop(column) for name, column in self.columns.items() if column in renamed}
        renamed |= taken
        turns = renamed.get("conversations")
        if self.tags and isinstance(turns, list):
            roles = {self.tags[tag]: _TAGS[tag] for tag in self.tags if tag.endswith("_tag") and tag not in ("role_tag", "content_tag")}
            role_tag, content_tag = self.tags.get("role_tag", "from"), self.tags.get("content_tag", "value")
            renamed["conversations"] = [_turn(turn, role_tag, content_tag, roles) for turn in turns]
        return renamed

    def check_first(self, record: Any, path: Path) -> None:
        """Raises RequestError when a column that was asked for is not in the first record."""
        if isinstance(record, dict):
            missing = [column for column in self.columns.values() if column not in record]
            if missing and len(missing) == len(self.columns):
                raise RequestError(
                    f"{path}: no column {missing[0]} in its first record; there are {listed([str(key) for key in record], 12)}"
                )


def _turn(turn: Any, role_tag: str, content_tag: str, roles: Mapping[str, str]) -> Any:
    if not isinstance(turn, dict):
        return turn
    others = {key: value for key, value in turn.items() if key not in (role_tag, content_tag)}
    role = turn.get(role_tag)
    return {"from": roles.get(role, role) if isinstance(role, str) else role, "value": turn.get(content_tag), **others}


def parse_columns(text: str | None) -> dict[str, str]:
    """`image=photo,caption=title` -> {"image": "photo", "caption": "title"}. Raises RequestError."""
    columns: dict[str, str] = {}
    for pair in (text or "").split(","):
        if not pair.strip():
            continue
        name, equals, column = (word.strip() for word in pair.partition("="))
        if not equals or not column or name not in NAMES:
            raise RequestError(
                f"--columns {text}: must be NAME=COLUMN,…, each NAME one of {', '.join(NAMES)}; use image=photo,caption=title"
            )
        if name in columns:
            raise RequestError(f"--columns {text}: {name} twice; name one column for it")
        columns[name] = column
    return columns


def naming_of(source: Path, columns: str | None, dataset: str | None) -> tuple[Path, Naming, str]:
    """(the file or folder of records, its naming, the name of its entry): from `--columns`, or from the dataset_info.json that
    `source` is or that stands beside it. Raises RequestError."""
    asked = parse_columns(columns)
    infos = _entries(source) if source.name == FILE else {}
    if source.name == FILE and infos is not None:
        name = dataset or (next(iter(infos)) if len(infos) == 1 else None)
        if name is None or name not in infos:
            state = f"--dataset {dataset}: {source} has no such dataset" if dataset else f"{source}: names {len(infos)} datasets"
            raise RequestError(f"{state}; choose one by --dataset: {listed(list(infos), 12)}")
        entry = infos[name]
        file = entry.get("file_name")
        if isinstance(file, str) and ("\0" in file or len(file) > 1000 or any(len(part.encode()) > 255 for part in file.split("/"))):
            raise RequestError(f"{source}: the file_name of {name} is no file's name; correct it")
        if not isinstance(file, str) or not file:
            raise RequestError(f"{source}: {name} names no file but an address; fetch it: qwen3vl download dataset …")
        return source.parent / file, _naming(source, name, entry, asked), name
    if dataset is not None:
        raise RequestError(f"--dataset {dataset}: names an entry of a {FILE}; give that file as SOURCE")
    beside = source.parent / FILE
    if not asked and beside.is_file() and beside != source:
        named = {name: entry for name, entry in (_entries(beside) or {}).items() if entry.get("file_name") == source.name}
        if len(named) == 1:
            name, entry = next(iter(named.items()))
            return source, _naming(beside, name, entry, asked), name
    return source, Naming(asked), ""


def _entries(path: Path) -> dict[str, dict[str, Any]] | None:
    """The datasets that a dataset_info.json names; None where it is another file of that name."""
    try:
        loaded = json.loads(read_small(path, limits.DATASET_INDEX))
    except RequestError:
        raise
    except (OSError, ValueError, RecursionError):
        return None
    try:
        json.dumps(loaded, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError(f"{path}: holds half a character (a lone surrogate); correct it") from None
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(entry, dict) for entry in loaded.values()):
        return None
    if not all(
        {"file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"} & entry.keys() for entry in loaded.values()
    ):
        return None
    return loaded


def _naming(path: Path, name: str, entry: dict[str, Any], asked: dict[str, str]) -> Naming:
    """Raises RequestError for a dataset of preferences, and for columns that are not text."""
    if entry.get("ranking"):
        raise RequestError(f"{path}: {name} holds preferences between answers (ranking), not answers to learn; choose another dataset")
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt"):
        raise RequestError(f"{path}: {name} has the formatting {formatting!r}; must be alpaca or sharegpt")
    for key, names in (("columns", columns), ("tags", tags)):
        if not isinstance(names, dict) or not all(value is None or isinstance(value, str) for value in names.values()):
            raise RequestError(f"{path}: {name}: {key} must be an object of names")
    canonical = _ALPACA if formatting == "alpaca" else {"messages": "conversations"}
    renamed = {canonical.get(what, what): column for what, column in columns.items() if column}
    return Naming(
        {what: column for what, column in (renamed | asked).items() if what != column}, {k: v for k, v in tags.items() if v and k in _TAGS}
    )
