"""Shards that someone else has made: WebDataset's and Energon's archives as records, their media where they lie. Imports no torch.

A sample is the members whose names agree up to the first dot: a conversation or caption as JSON or text, pictures, videos.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.data.byte_ranges import range_name
from qwen3vl_core.data.json_files import loads
from qwen3vl_core.data.media_values import RANGE
from qwen3vl_core.data.records import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from qwen3vl_core.data.tar import BLOCK, padded, tar_entries
from qwen3vl_core.data.turns import media_key
from qwen3vl_core.errors import RequestError

_TEXTS = {"txt": "caption", "caption": "caption", "text": "caption", "question": "question", "answer": "answer", "prompt": "prompt"}


class WebDatasetRecords:
    """The samples of some archives as records. Raises RequestError for one that is no complete tar."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.path = paths, paths[0]
        self.count: int | None = None

    def records(self) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            try:
                yield from self._samples(path)
            except (tarfile.TarError, OSError, EOFError) as error:
                reason = " ".join(str(error).split())[:200]
                raise RequestError(f"{path}: not a complete tar archive ({reason}); copy or download it again") from None

    def _samples(self, path: Path) -> Iterator[dict[str, Any]]:
        absolute, size = str(path.absolute()), path.stat().st_size
        key: tuple[str, str] | None = None
        members: dict[str, tuple[int, int, bytes | None]] = {}
        end = 0
        # unbuffered: between the headers lie media, which nothing here reads
        with open(path, "rb", buffering=0) as archive:
            for member in tar_entries(archive, size):
                end = member.offset_data + padded(member.size)
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not ending or name.startswith("."):
                    continue
                if (folder, stem) != key and members:
                    yield _record(absolute, members)
                    members = {}
                key = folder, stem
                if ending in members:
                    raise RequestError(f"{path}: two members {member.name}; the samples' names must differ")
                text = ending.rpartition(".")[2].lower()
                content = None
                if text == "json" or text in _TEXTS:
                    if member.size > limits.TAR_TEXT:
                        raise RequestError(f"{path}: {member.name} has {member.size:,} bytes of text; {limits.TAR_TEXT >> 20} MiB at most")
                    # tar_entries goes on from its own offset
                    archive.seek(member.offset_data)
                    content = archive.read(member.size) or b""
                members[ending] = member.offset_data, member.size, content
            if members:
                yield _record(absolute, members)
            archive.seek(end)
            if (archive.read(BLOCK) or b"").strip(b"\0"):
                # tarfile takes a damaged header for the end of the archive
                raise tarfile.ReadError(f"a damaged header at byte {end}")


def _record(path: str, members: dict[str, tuple[int, int, bytes | None]]) -> dict[str, Any]:
    """One record of a sample's members: ending -> (offset, size, content of a text)."""
    record: dict[str, Any] = {}
    media: dict[str, dict[str, Any]] = {"image": {}, "video": {}}
    for ending, (offset, size, content) in members.items():
        last = ending.rpartition(".")[2].lower()
        kind = "image" if last in PICTURE_SUFFIXES else "video" if last in VIDEO_SUFFIXES else None
        if kind is not None:
            media[kind][ending] = {RANGE: range_name(path, offset, size, last)}
        elif last == "json":
            assert content is not None
            record |= _json_member(content, ending)
        elif last in _TEXTS:
            assert content is not None
            record.setdefault(_TEXTS[last], content.decode("utf-8", "surrogateescape").strip())
        elif last in ("jpgs", "videos", "pkl", "pickle", "pyd"):
            raise RequestError(
                f"{path}: a member .{last} holds a Python pickle, which could run code when it is read; prepare its source instead"
            )
        elif last in ("wav", "mp3", "flac"):
            record[f"audio_{last}"] = f"member.{last}"
        else:
            record[f".{last}"] = f"member of {size} bytes"
    if isinstance(record.get("messages"), list) and _fill_parts(record["messages"], {**media["image"], **media["video"]}):
        record.pop("boxes", None)
        return record
    for kind, by_ending in media.items():
        if by_ending:
            # names in the JSON are those that the media had before they were put into the archive
            for key in [key for key in record if media_key(key) == kind]:
                del record[key]
            record[kind + "s"] = list(by_ending.values())
    return record


def _json_member(content: bytes, ending: str) -> dict[str, Any]:
    try:
        loaded = loads(content)
    except (ValueError, RecursionError) as error:
        return {"conversations": f"not JSON: {str(error)[:80]}"}
    if isinstance(loaded, list):
        # Pai's: the conversation alone
        return {"conversations": loaded}
    if isinstance(loaded, str):
        return {"caption": loaded}
    if not isinstance(loaded, dict):
        return {"conversations": json.dumps(loaded)[:80]}
    if any(key in loaded for key in ("conversations", "messages")):
        return loaded
    # img2dataset's metadata, beside the caption as text: its own caption is the same
    return {key: value for key, value in loaded.items() if key not in ("key", "status", "error_message", "exif", "sha256", "url")}


def _fill_parts(messages: list[Any], media: dict[str, Any]) -> bool:
    """Whether the messages' parts name members, as `prepare` writes them; their places are filled in then."""
    parts = [
        part
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
    ]
    named = [
        part for part in parts if isinstance(part, dict) and part.get("type") in ("image", "video") and isinstance(part.get("part"), str)
    ]
    for part in named:
        kind, frames = part["type"], part.pop("frames", None)
        names = frames if isinstance(frames, list) else [part["part"]]
        if not all(name in media for name in names):
            return False
        del part["part"]
        sampling = part.pop("sampling", None)
        if isinstance(sampling, dict):
            part |= {"total_pixels" if name == "max_pixels" else name: value for name, value in sampling.items()}
        part[kind] = [media[name] for name in names] if isinstance(frames, list) else media[names[0]]
    return bool(named)
