"""LLaVA records, {id, image, conversations: [{from, value}]} with `<image>` in the text, and the rules for all records.

Records are counted from 0, as `jq '.[12]'` does. A sample's key is its record's number, so that ids with dots,
duplicate ids and records without an id all work; the id is stored with the conversation. Imports no torch.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.files import is_url

TAG, VIDEO_TAG = "<image>", "<video>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
FRAMES_PER_SECOND = 2.0
"""Default for a folder of frames without a rate: the model's own sampling rate of videos."""
VIDEO_SUFFIXES = ("mp4", "mov", "m4v", "webm", "mkv", "avi")
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_TAGS = re.compile(f"({TAG}|{VIDEO_TAG})")
_quoted = json.encoder.encode_basestring
CONTROL_TOKENS = tuple(
    f"<|{name}|>" for name in ("im_start", "im_end", "image_pad", "video_pad", "vision_start", "vision_end", "vision_pad", "endoftext")
)
"""Tokens of the chat format: text that contains one could end a turn, or stand for a picture that does not exist."""
CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))


@dataclass(frozen=True, slots=True)
class Frames:
    """A video that is a folder of pictures."""

    names: tuple[str, ...]
    """Files in the folder, in temporal order."""
    fps: float


class SourceRecord(NamedTuple):
    """One conversation with its media, checked against every rule that needs no other file."""

    number: int
    """Index in the list, from 0."""
    id: str | None
    turns: tuple[tuple[str, str], ...]
    """(user | assistant | system, text); in the users' texts `<image>` and `<video>`, one for each picture and video."""
    pictures: tuple[str, ...]
    """Names relative to the media's folder, in the order of the tags."""
    videos: tuple[str, ...] = ()
    """Names of files, or of folders of frames."""

    @property
    def key(self) -> str:
        """Name of the sample in its shard: unique, and without dots."""
        return f"{self.number:08d}"

    @property
    def parts(self) -> list[str]:
        """Names of the pictures within the sample: `img0.jpg`, `img1.png`."""
        return [f"img{i}.{suffix(name, PICTURE_SUFFIXES, 'img')}" for i, name in enumerate(self.pictures)]

    def video_parts(self, frames: Sequence[Frames | None] = ()) -> list[dict[str, Any]]:
        """The conversation's parts for the videos. frames: for each video, its folder of frames or None."""
        parts: list[dict[str, Any]] = []
        for i, name in enumerate(self.videos):
            folder = frames[i] if i < len(frames) else None
            if folder is None:
                parts.append({"type": "video", "part": f"vid{i}.{suffix(name, VIDEO_SUFFIXES, 'video')}"})
                continue
            files = [f"vid{i}.{n:05d}.{suffix(file, PICTURE_SUFFIXES, 'img')}" for n, file in enumerate(folder.names)]
            parts.append({"type": "video", "part": f"vid{i}", "frames": files, "fps": folder.fps})
        return parts

    def payload(self, parts: Sequence[str] | None = None, frames: Sequence[Frames | None] = ()) -> bytes:
        """The sample's JSON file: {"id", "messages": [{"role", "content": [part, ...]}]} with the parts that `sources` describes.

        Line breaks between a tag and its text are removed: the chat template joins picture and text directly, and an inference
        prompt has none either. The JSON is built from strings: its layout is fixed, and an encoder takes three times as long.
        parts: `self.parts`, if already computed.
        """
        _, name, turns, _, clips = self
        pictures = iter(self.parts if parts is None else parts)
        videos = iter(self.video_parts(frames)) if clips else iter(())
        messages = []
        for role, text in turns:
            if role != "user" or "<" not in text:
                content = f'{{"type":"text","text":{_quoted(text)}}}' if text else ""
            else:
                items = []
                # a text, then a tag and a text for each tag; without videos every tag is a picture's
                pieces = _TAGS.split(text) if clips else text.split(TAG)
                step = 2 if clips else 1
                last = len(pieces) - 1
                for place in range(0, last + 1, step):
                    piece = pieces[place]
                    if place:
                        if not clips or pieces[place - 1] == TAG:
                            items.append(f'{{"type":"image","part":"{next(pictures)}"}}')
                        else:
                            items.append(json.dumps(next(videos), ensure_ascii=False, separators=(",", ":")))
                        piece = piece.lstrip("\r\n")
                    if place < last:
                        piece = piece.rstrip("\r\n")
                    if piece:
                        items.append(f'{{"type":"text","text":{_quoted(piece)}}}')
                content = ",".join(items)
            messages.append(f'{{"role":"{role}","content":[{content}]}}')
        head = "" if name is None else f'"id":{_quoted(name)},'
        return f'{{{head}"messages":[{",".join(messages)}]}}'.encode()


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def suffix(name: str, known: Sequence[str], other: str) -> str:
    """The file extension in lower case if it is one of `known`, else `other`."""
    extension = name.rpartition(".")[2].lower()
    return extension if extension in known else other


def text_of(value: Any, what: str, where: str = "") -> str:
    """`value`, if it is text that can be encoded. Raises DataError that names it `what`; where: the turn that it is in."""
    if not isinstance(value, str):
        raise DataError("record-not-text", where, what=what, found=kind_of(value))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError("record-lone-surrogate", where, what=what) from None
    return value


def media_name(name: Any, what: str = "picture") -> str:
    """A normalised relative name. Raises DataError for one that leaves the folder."""
    plain = type(name) is str and name.isascii() and name and name[0] != "/" and name[-1] not in "./"
    if plain and not ("./" in name or "//" in name or ":" in name or "\0" in name):
        # nothing that `normpath` would change, no URL, no drive
        return name
    what = "picture" if what == "image" else what
    name = text_of(name, f"a {what}'s name")
    if is_url(name):
        raise DataError("media-address", f"{what} {name}")
    if name.startswith("/") or (name[1:2] == ":" and name[2:3] in ("/", "\\")):
        raise DataError("media-absolute", f"{what} {name}")
    tidy = posixpath.normpath(name)
    if not name or tidy == "." or "\0" in name:
        raise DataError("media-without-name", f"{what} {name!r}")
    if tidy == ".." or tidy.startswith("../"):
        raise DataError("media-outside", f"{what} {name}")
    return tidy


def turns(record: dict[str, Any], key: str = "conversations") -> tuple[tuple[str, str], ...]:
    """The conversation of a record, checked. Raises DataError that names the broken rule."""
    conversation = record.get(key)
    if not isinstance(conversation, list) or not conversation:
        raise DataError("not-a-conversation" if conversation else "no-conversation", key=key, found=kind_of(conversation))
    turns, answered = [], False
    for place, turn in enumerate(conversation):
        if not isinstance(turn, dict):
            raise DataError("turn-not-an-object", f"turn {place}", found=kind_of(turn))
        speaker = turn["from"] if "from" in turn else turn.get("role")
        text = turn["value"] if "value" in turn else turn.get("content")
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            speaker = text_of(speaker, "from", f"turn {place}")
            raise DataError("unknown-role", f"turn {place}", role=speaker, roles=list(ROLES))
        if type(text) is not str or not text.isascii():
            text = text_of(text, "value", f"turn {place}")
        if role == "system" and place:
            raise DataError("system-turn-not-first", f"turn {place}")
        if role == "assistant":
            if not text or text.isspace():
                raise DataError("empty-answer", f"turn {place}")
            answered = True
        turns.append((role, text))
    if not answered:
        raise DataError("no-answer")
    return tuple(turns)


def checked(
    number: int, name: Any, conversation: tuple[tuple[str, str], ...], pictures: tuple[str, ...], videos: tuple[str, ...]
) -> SourceRecord:
    """A record whose tags and media agree. Raises DataError otherwise."""
    image_tags = video_tags = 0
    for role, text in conversation:
        if role == "user" and "<" in text:
            image_tags += text.count(TAG)
            video_tags += text.count(VIDEO_TAG)
    for tag, tags, names, what in ((TAG, image_tags, pictures, "picture"), (VIDEO_TAG, video_tags, videos, "video")):
        if tags != len(names):
            raise DataError("tags-differ", tags=_counted(tags, f"{tag} tag"), media=_counted(len(names), what))
    if type(name) in (dict, list, bool):
        raise DataError("id-not-text", found=kind_of(name))
    if name is not None and not (type(name) is str and name.isascii()):
        name = text_of(str(name), "id")
    return SourceRecord(number, name, conversation, pictures, videos)


def parse(number: int, record: dict[str, Any]) -> SourceRecord:
    """One record, checked. Raises DataError that names the broken rule."""
    conversation = turns(record)
    videos = _names(record, "video")
    if videos and "image" not in record and not any(VIDEO_TAG in text for _, text in conversation):
        # public video datasets of the LLaVA family use the image tag for videos
        conversation = tuple((role, text.replace(TAG, VIDEO_TAG) if role == "user" else text) for role, text in conversation)
    return checked(number, record.get("id"), conversation, _names(record, "image"), videos)


def _names(record: dict[str, Any], what: str) -> tuple[str, ...]:
    found = record.get(what)
    if found is None or found == "":
        return ()
    if type(found) is str:
        return (media_name(found, what),)
    return tuple([media_name(name, what) for name in (found if isinstance(found, list) else [found])])
