"""One conversation with its media as every layout gives it, and the rules that hold for all of them. Imports no torch.

Records are counted from 0, as `jq '.[12]'` does. A sample's key is its record's number, so that ids with dots,
duplicate ids and records without an id all work; the id is stored with the conversation.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.files import is_url

TAG, VIDEO_TAG = "<image>", "<video>"
FRAMES_PER_SECOND = 2.0
"""Default for a list or folder of frames without a rate: the model's own sampling rate of videos."""
VIDEO_SUFFIXES = ("mp4", "mov", "m4v", "webm", "mkv", "avi")
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")
_SHOWN = 120
"""Characters of a value that a message quotes."""
_TAGS = re.compile(f"({TAG}|{VIDEO_TAG})")
_quoted = json.encoder.encode_basestring
CONTROL_TOKENS = tuple(
    f"<|{name}|>" for name in ("im_start", "im_end", "image_pad", "video_pad", "vision_start", "vision_end", "vision_pad", "endoftext")
)
"""Tokens of the chat format: text that contains one could end a turn, or stand for a picture that does not exist."""
CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"), (b"MM\0*", "tif"))

Note = tuple[str, str]
"""(UNUSED_KEY or REMARK, the key or the remark)"""
UNUSED_KEY, REMARK = "key", "remark"


@dataclass(frozen=True, slots=True)
class Frames:
    """A video that is a folder or a list of pictures."""

    names: tuple[str, ...]
    """Paths of the frames, as `SourceRecord.pictures` has them, in temporal order."""
    fps: float


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture or video of a record that is more than the name of a file."""

    content: str | bytes | tuple[str | bytes, ...]
    """A file's name, a file's bytes, or the frames of a video."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the record says of how it is read: see `media.OPTIONS`."""


class BoxTags(NamedTuple):
    """BoxTags and points that stand in the texts as `<bbox>`, and what they are called, as `<ref-object>`."""

    labels: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    """x, y, x, y, …"""
    pictures: tuple[int, ...]
    """For each box, the number of its picture."""
    scale: float | None
    """Largest coordinate; None: pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What few records have: fields of turns beside role and content, tools, boxes."""

    turns: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Number of the turn -> `loss` (False: not trained), `tool_calls`."""
    tools: list[Any] | None = None
    """Declarations of functions, as the chat template takes them."""
    boxes: BoxTags | None = None


PICTURE, VIDEO = 0, 1
"""Pieces of a turn that stand for a medium."""
Content = str | tuple[str | int, ...]
"""Of a turn: text with tags, or pieces, whose texts hold no tags and whose line breaks are kept."""


class SourceRecord(NamedTuple):
    """One conversation with its media, checked against every rule that needs no other file."""

    number: int
    """Index in the source, from 0."""
    id: str | None
    turns: tuple[tuple[str, Content], ...]
    """(user | assistant | system | tool, content); `<image>` and `<video>` in users' and tools' texts, one for each picture and video."""
    pictures: tuple[Any, ...]
    """Names relative to the media's folder, absolute names, or Medium, in the order of the tags."""
    videos: tuple[Any, ...] = ()
    """Names of files or of folders of frames, or Medium."""
    extras: Extras | None = None
    notes: tuple[Note, ...] = ()
    """What of the record is not used or was put right, for the report to count."""

    @property
    def key(self) -> str:
        """Name of the sample in its shard: unique, and without dots."""
        return f"{self.number:08d}"

    @property
    def parts(self) -> list[str]:
        """Names of the pictures within the sample: `img0.jpg`, `img1.png`."""
        return [f"img{i}.{suffix_of(picture)}" for i, picture in enumerate(self.pictures)]

    def video_parts(self, frames: Sequence[Frames | None] = ()) -> list[dict[str, Any]]:
        """The conversation's parts for the videos. frames: for each video, its frames if it is a folder or a list of them."""
        parts: list[dict[str, Any]] = []
        for i, video in enumerate(self.videos):
            folder = frames[i] if i < len(frames) else None
            options = video.options if isinstance(video, Medium) else {}
            if folder is not None:
                options = {name: value for name, value in options.items() if name != "fps"}
            sampling = {"sampling": options} if options else {}
            if folder is None:
                name = video.content if isinstance(video, Medium) else video
                ending = suffix(name.rpartition("\0")[2], VIDEO_SUFFIXES, "video") if isinstance(name, str) else "mp4"
                parts.append({"type": "video", "part": f"vid{i}.{ending}", **sampling})
                continue
            files = [f"vid{i}.{n:05d}.{suffix_of(file)}" for n, file in enumerate(folder.names)]
            parts.append({"type": "video", "part": f"vid{i}", "frames": files, "fps": folder.fps, **sampling})
        return parts

    def payload(
        self, parts: Sequence[str] | None = None, frames: Sequence[Frames | None] = (), boxes: Sequence[dict[str, Any]] = ()
    ) -> bytes:
        """The sample's JSON file: {"id", "tools", "boxes", "messages": [{"role", "content": [part, ...]}]}, as `sources` describes it.

        Line breaks between a tag and its text are removed: the chat template joins picture and text directly, and an inference
        prompt has none either. The JSON is built from strings: its layout is fixed, and an encoder takes three times as long.
        parts: `self.parts`, if already computed. boxes: for `inspect` to draw.
        """
        _, name, turns, _, clips, extras, _ = self
        pictures = iter(self.parts if parts is None else parts)
        videos = iter(self.video_parts(frames)) if clips else iter(())
        fields = extras.turns if extras is not None else {}
        messages = []
        for number, (role, text) in enumerate(turns):
            if type(text) is not str:
                content = ",".join(
                    f'{{"type":"text","text":{_quoted(piece)}}}' if isinstance(piece, str)
                    else f'{{"type":"image","part":"{next(pictures)}"}}' if piece == PICTURE else _compact(next(videos))
                    for piece in text
                )  # fmt: skip
            elif role not in ("user", "tool") or "<" not in text:
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
                            items.append(_compact(next(videos)))
                        piece = piece.lstrip("\r\n")
                    if place < last:
                        piece = piece.rstrip("\r\n")
                    if piece:
                        items.append(f'{{"type":"text","text":{_quoted(piece)}}}')
                content = ",".join(items)
            more = "".join(f",{_quoted(key)}:{_compact(value)}" for key, value in fields[number].items()) if number in fields else ""
            messages.append(f'{{"role":"{role}","content":[{content}]{more}}}')
        head = "" if name is None else f'"id":{_quoted(name)},'
        if extras is not None and extras.tools:
            head += f'"tools":{_compact(extras.tools)},'
        if boxes:
            head += f'"boxes":{_compact(list(boxes))},'
        return f'{{{head}"messages":[{",".join(messages)}]}}'.encode()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def suffix(name: str, known: Sequence[str], other: str) -> str:
    """The file extension in lower case if it is one of `known`, else `other`."""
    extension = name.rpartition(".")[2].lower()
    return extension if extension in known else other


def suffix_of(picture: Any) -> str:
    """The file extension for a picture: of its name, or of its first bytes."""
    content = picture.content if isinstance(picture, Medium) else picture
    if isinstance(content, tuple):
        content = content[0]
    if isinstance(content, str):
        return suffix(content.rpartition("\0")[2], PICTURE_SUFFIXES, "img")
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((ending for start, ending in _MAGIC if content.startswith(start)), "img")


def cut(value: Any, most: int = _SHOWN) -> str:
    """A value for a message: one line of at most so many characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = text[:most].encode("utf-8", "backslashreplace").decode()
    shown = " ".join("".join(c if c.isprintable() else " " for c in shown).split())
    return shown if len(text) <= most else f"{shown}… ({len(text):,} characters)"


def text_of(value: Any, what: str, where: str = "") -> str:
    """`value`, if it is text that can be encoded. Raises DataError that names it `what`. where: the turn that it is in."""
    if not isinstance(value, str):
        raise DataError("record-not-text", where, what=what, found=kind_of(value))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError("record-lone-surrogate", where, what=what) from None
    return value


def media_name(name: Any, what: str = "picture") -> str:
    """A normalised name: relative to the media's folder, or absolute. Raises DataError for one that leaves the folder."""
    plain = type(name) is str and name.isascii() and name and name[0] != "/" and name[-1] not in "./"
    if plain and not ("./" in name or "//" in name or ":" in name or "\0" in name or "\\" in name):
        # nothing that `normpath` would change, no URL, no drive
        return name
    what = "picture" if what == "image" else what
    name = text_of(name, f"a {what}'s name")
    if name[:7].lower() == "file://":
        name = "/" + unquote(name[7:].partition("/")[2])
    if is_url(name):
        raise DataError("media-address", f"{what} {cut(name)}")
    if name[1:2] == ":" and name[2:3] in ("/", "\\"):
        raise DataError("media-drive", f"{what} {cut(name)}")
    # written on Windows
    tidy = posixpath.normpath(name.replace("\\", "/"))
    if not name or tidy in (".", "/") or "\0" in name:
        raise DataError("media-without-name", f"{what} {cut(name)!r}")
    if tidy == ".." or tidy.startswith("../"):
        raise DataError("media-outside", f"{what} {cut(name)}")
    return tidy
