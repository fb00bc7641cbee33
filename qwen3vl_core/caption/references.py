"""Reads reference captions, by the name of their picture, from files of several formats. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError

"""Largest file of references, in bytes."""
SHAPES = (
    '{"a.jpg": "caption" or ["caption", ...]}, [{"image": "a.jpg", "caption": ...}] (a list, or one per line), '
    "LLaVA conversations, or COCO's {images, annotations}"
)
_NAMES = ("image", "file_name", "picture", "file")
_TEXTS = ("caption", "captions", "references", "reference", "text")


class References:
    """Captions by picture. A picture is looked up by the end of its path that the file has, else by its file name."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._by_name: dict[str, list[str]] = {}
        self._by_last: dict[str, list[str]] = {}
        for name, text in pairs:
            if text.strip():
                for table, key in ((self._by_name, name), (self._by_last, Path(name).name)):
                    table.setdefault(key, []).append(text.strip())

    def __len__(self) -> int:
        """Number of pictures with references."""
        return len(self._by_name)

    def of(self, path: Path) -> tuple[str, ...]:
        """References of a picture, without duplicates."""
        parts = path.parts
        for begin in range(len(parts)):
            texts = self._by_name.get("/".join(parts[begin:]))
            if texts:
                return tuple(dict.fromkeys(texts))
        return tuple(dict.fromkeys(self._by_last.get(path.name, ())))


def read_references(name: str) -> References:
    """The captions in a file. Raises RequestError for a file in none of the formats `SHAPES`, or without captions."""
    path = Path(name).expanduser()
    option = f"--references {name}"
    try:
        size = path.stat().st_size
        if size > limits.REFERENCES:
            most = f"{limits.REFERENCES:,}"
            raise RequestError(f"{option}: {size:,} bytes, more than {most}; give a file with captions of these pictures only")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"{option}: cannot be read ({error.strerror}); give a file with captions") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{option}: not UTF-8 text (byte {error.start:,}); give {SHAPES}") from None
    try:
        references = References(_pairs(_loaded(text)))
    except json.JSONDecodeError as error:
        raise RequestError(f"{option}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}); give {SHAPES}") from None
    except (RecursionError, ValueError) as error:
        raise RequestError(f"{option}: {error}; give {SHAPES}") from None
    if not len(references):
        raise RequestError(f"{option}: holds no caption of a picture; give {SHAPES}")
    return references


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # one record per line
        if error.msg != "Extra data":
            raise
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    """(picture, caption) pairs of a loaded file. Raises ValueError for another format."""
    if isinstance(value, dict) and isinstance(value.get("annotations"), list) and isinstance(value.get("images"), list):
        names = {
            row["id"]: row.get("file_name") for row in value["images"] if isinstance(row, dict) and isinstance(row.get("id"), int | str)
        }
        for row in value["annotations"]:
            picture = names.get(row["image_id"]) if isinstance(row, dict) and isinstance(row.get("image_id"), int | str) else None
            if isinstance(picture, str) and isinstance(row.get("caption"), str):
                yield picture, row["caption"]
        return
    if isinstance(value, dict):
        value = [
            {"image": name, "caption": texts} if not isinstance(texts, dict) else {"image": name, **texts} for name, texts in value.items()
        ]
    if not isinstance(value, list):
        raise ValueError("neither a JSON object nor a list")
    for row in value:
        if isinstance(row, dict):
            yield from _of_row(row)


def _of_row(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    picture = next((row[key] for key in _NAMES if isinstance(row.get(key), str)), None)
    if picture is None:
        return
    turns = row.get("conversations")
    if isinstance(turns, list):
        # the first answer describes the picture; later ones answer other questions
        answer = next((t.get("value") for t in turns if isinstance(t, dict) and t.get("from") in ("gpt", "assistant")), None)
        if isinstance(answer, str):
            yield picture, answer
        return
    for key in _TEXTS:
        texts = row.get(key)
        for text in texts if isinstance(texts, list) else [texts]:
            if isinstance(text, str):
                yield picture, text
