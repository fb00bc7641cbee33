"""Pictures from a dataset, with the questions of its samples as prompts and the answers as references."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from qwen3vl_core.caption.pictures import Picture, shown
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect.samples import BLEND, DATASET, kind_of_path, open_samples
from qwen3vl_core.data.pictures import check_proportions, decode
from qwen3vl_core.data.records import PICTURE_SUFFIXES, suffix
from qwen3vl_core.data.storage import place_of
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import disk_full


def find_samples(name: str, split: str, limit: int, folder: Path, left_out: list[str]) -> list[Picture]:
    """The first `limit` samples (0: all) of a dataset's split, a shard or a file of conversations that have one picture.

    Their pictures are written into `folder`, so that they can be shown for as long as the comparison exists. left_out: gets
    a line for each sample that cannot be used. Raises RequestError for a path that holds no samples, or none with one picture.
    """
    path = place_of(name)
    option = f"--data {shown(name)}"
    if not path.exists():
        raise RequestError(f"{option}: no such file or folder; give a dataset that qwen3vl prepare made, a shard or LLaVA JSON")
    kind = kind_of_path(path)
    if kind is None:
        raise RequestError(
            f"{option}: no dataset; give a folder that qwen3vl prepare made, a shard or LLaVA JSON, or the pictures as --images"
        )
    try:
        (samples,) = open_samples(path, split if kind in (DATASET, BLEND) else None).values()
    except RequestError as error:
        raise RequestError(f"--data {error}") from None
    chosen: list[Picture] = []
    for number in range(len(samples)):
        if limit and len(chosen) == limit:
            break
        try:
            key, parts = samples.read(number)
            chosen.append(_picture(key, parts, folder))
        except DataError as error:
            left_out.append(f"{samples.place(number)}: {error.detail}")
    if not chosen:
        raise RequestError(
            f"{option}: no sample with one picture among {len(samples):,} ({left_out[0] if left_out else 'none'}); choose another"
        )
    return chosen


def _picture(key: str, parts: dict[str, bytes], folder: Path) -> Picture:
    """Raises DataError for a sample that is not a question about exactly one picture."""
    try:
        messages = json.loads(parts["json"])["messages"]
        user_content = next(m for m in messages if m["role"] == "user")["content"]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        media = [part["part"] for m in messages for part in m["content"] if part["type"] != "text"]
        question, answer = _text(user_content), _text(answers[0]) if answers else ""
    except (KeyError, TypeError, ValueError, StopIteration, RecursionError):
        raise DataError("sample-without-conversation") from None
    if len(media) != 1 or media[0] not in parts or not media[0].startswith("img"):
        raise DataError("sample-not-one-picture", count=len(media))
    data = parts[media[0]]
    image = decode(data, key)
    check_proportions(image.height, image.width)
    # the key and the part's name are untrusted: only their letters and digits go into the file's name
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in key)[:100] or "sample"
    path = folder / f"{name}.{suffix(media[0], PICTURE_SUFFIXES, 'img')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        reason = "the disk is full" if disk_full(error) else error.strerror
        raise WorkError(f"{path}: cannot be written ({reason}); free some space, or compare fewer with --limit") from error
    return Picture(path, hashlib.sha256(data).digest(), question, (answer,) if answer else ())


def _text(content: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in content if part["type"] == "text").strip()
