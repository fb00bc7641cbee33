"""Records to checked samples: the media are there and seem whole, sizes are known, the JSON is made. Imports no torch.

JPEG and PNG headers are read here: a tenth of the time that Pillow takes to open a file. Whatever is not plainly sound
goes to Pillow, whose word counts.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from qwen3vl_core.data import llava, sources, video_decode
from qwen3vl_core.data.faults import DataError, picture_faults
from qwen3vl_core.data.llava import Frames, RecordError
from qwen3vl_core.data.pictures import FORMATS, LARGEST_RATIO, check_picture
from qwen3vl_core.data.tar import member_size

FRAME_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MOST_FRAMES = 100_000
"""What the five digits of a frame's name hold."""
_HEAD, _TAIL = 1 << 16, 64
_PLAIN_PIXELS = 64_000_000
"""Larger pictures are left to Pillow, which knows what is too large."""
_JPEG_END, _PNG_END = b"\xff\xd9", b"\0\0\0\0IEND\xaeB\x60\x82"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_KEPT = 200_000
"""Media whose result is remembered: sets ask about one picture in several records."""
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp", b"meta", b"pdin", b"udta")


class Sample(NamedTuple):
    """What will be written of a record. A tuple: many are sent between processes."""

    number: int
    id: str | None
    payload: bytes
    """The sample's JSON file."""
    parts: tuple[str, ...]
    """Names of the media within the sample."""
    files: tuple[str, ...]
    """Where they are, below the media's folder."""
    sizes: tuple[int, ...]
    """Bytes of each."""
    stamps: tuple[int, ...]
    """When each was last changed, in ns."""
    turns: int
    pictures: int
    videos: int
    size: int
    """Bytes in its shard."""


class Refusal(NamedTuple):
    """A record that cannot be used."""

    number: int
    id: str | None
    reason: str
    """A key of faults.REASONS."""
    detail: str


class Medium(NamedTuple):
    """A file that seems whole."""

    size: int
    stamp: int
    shape: tuple[int, int] | None
    """(height, width), where it was looked at."""


class Checker:
    """Holds what was found of each file, so that one that many records name is looked at once."""

    def __init__(self, root: Path, how: str) -> None:
        self.root, self.how = root, how
        """how: `none` looks whether the files are there; `header` reads headers and ends; `decode` decodes every pixel."""
        self._media: dict[str, Medium | DataError] = {}
        self._folders: dict[str, Frames | DataError | None] = {}

    def check(self, records: list[tuple[int, Any]]) -> list[Sample | Refusal]:
        """records: as `Source.records` gives them. One result for each."""
        return [self._check(number, record) for number, record in records]

    def _check(self, number: int, raw: Any) -> Sample | Refusal:
        try:
            record = sources.parse(number, raw)
        except RecordError as fault:
            name = raw.get("id") if isinstance(raw, dict) else None
            return Refusal(number, name if isinstance(name, str) else None, "bad_record", str(fault))
        for place, (_, text) in enumerate(record.turns):
            held = llava.CONTROL.search(text) if "<|" in text else None
            if held:
                return Refusal(number, record.id, "control_token", f"turn {place}: the text holds {held.group()}")
        try:
            parts, files = record.parts, list(record.pictures)
            media = [self._medium(name, "picture") for name in files]
            folders = [self._frames(name) for name in record.videos]
            for name, frames, part in zip(record.videos, folders, record.video_parts(folders), strict=True):
                if frames is None:
                    parts.append(part["part"])
                    files.append(name)
                    media.append(self._medium(name, "video"))
                    continue
                parts += part["frames"]
                files += (f"{name}/{frame}" for frame in frames.names)
                found = [self._medium(f"{name}/{frame}", "picture") for frame in frames.names]
                other = next((place for place, medium in enumerate(found) if medium.shape != found[0].shape), None)
                if other is not None:
                    raise DataError("broken_video", f"{self.root / name}: {frames.names[other]} is of another size than {frames.names[0]}")
                media += found
        except DataError as fault:
            return Refusal(number, record.id, fault.reason, fault.detail)
        payload = record.payload(folders)
        sizes = tuple(medium.size for medium in media)
        return Sample(
            number, record.id, payload, tuple(parts), tuple(files), sizes, tuple(medium.stamp for medium in media), len(record.turns),
            len(record.pictures), len(record.videos), member_size(len(payload)) + sum(map(member_size, sizes)),
        )  # fmt: skip

    def _medium(self, name: str, kind: str) -> Medium:
        found = self._media.get(name)
        if found is None:
            try:
                found = check_file(self.root / name, self.how, kind)
            except DataError as fault:
                found = fault
            if len(self._media) >= _KEPT:
                self._media.clear()
            self._media[name] = found
        if isinstance(found, DataError):
            raise found
        return found

    def _frames(self, name: str) -> Frames | None:
        """The frames of a video that is a folder; None for a file."""
        if name not in self._folders:
            try:
                path = self.root / name
                self._folders[name] = read_frames(path) if path.is_dir() else None
            except DataError as fault:
                self._folders[name] = fault
            except (OSError, ValueError) as error:
                self._folders[name] = DataError("missing_video", f"{str(self.root / name)!r}: {getattr(error, 'strerror', None) or error}")
        found = self._folders[name]
        if isinstance(found, DataError):
            raise found
        return found


def read_frames(folder: Path) -> Frames:
    """Names of the frames in a folder, by the numbers in them, and frames a second. Raises DataError."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.rpartition(".")[2].lower() in FRAME_SUFFIXES and not e.name.startswith(".")]
    if not names:
        raise DataError("broken_video", f"{folder}: no frame ({', '.join(FRAME_SUFFIXES)}) in this folder")
    if len(names) > MOST_FRAMES:
        raise DataError("broken_video", f"{folder}: {len(names):,} frames; {MOST_FRAMES:,} at most")
    names.sort(key=lambda name: ([int(digits) for digits in re.findall(r"[0-9]{1,18}", name)], name))
    try:
        for name in names:
            name.encode()
    except UnicodeEncodeError:
        raise DataError("broken_video", f"{str(folder)!r}: a frame's name is no text") from None
    for file in (folder / "fps", folder / "fps.txt"):
        if file.is_file():
            try:
                with open(file, encoding="utf-8") as opened:
                    fps = float(opened.read(64))
            except ValueError:
                fps = 0.0
            if not 1e-3 <= fps <= 1e5:
                raise DataError("broken_video", f"{file}: must hold the frames of a second, one number above 0")
            return Frames(tuple(names), fps)
    return Frames(tuple(names), llava.FRAMES_PER_SECOND)


def check_file(path: Path, how: str, kind: str = "picture") -> Medium:
    """A picture or video that seems whole. Raises DataError."""
    missing, broken = f"missing_{kind}", f"broken_{kind}"
    try:
        # a pipe by that name would wait for a writer
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = "no such file" if getattr(error, "errno", None) == errno.ENOENT else getattr(error, "strerror", None) or error
        raise DataError(missing, f"{path}: {reason}" if path.name.isprintable() else f"{str(path)!r}: {reason}") from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise DataError(missing, f"{path}: not a file")
        if not found.st_size:
            raise DataError(broken, f"{path}: empty file")
        if how == "none":
            return Medium(found.st_size, found.st_mtime_ns, None)
        if kind == "video":
            shape = _video(file, path, found.st_size, how)
            return Medium(found.st_size, found.st_mtime_ns, shape)
        head = os.read(file, _HEAD)
        tail = head if found.st_size <= len(head) else os.pread(file, _TAIL, found.st_size - _TAIL)
    except OSError as error:
        raise DataError(broken, f"{path}: {error.strerror}") from error
    finally:
        os.close(file)
    shape = plain_picture(head, tail) if how == "header" else None
    if shape is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_picture(path, how)
            with picture_faults(str(path)), Image.open(path, formats=FORMATS) as image:
                shape = (image.height, image.width)
    return Medium(found.st_size, found.st_mtime_ns, shape)


def plain_picture(head: bytes, tail: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG or PNG whose header is in order and whose end is there; None for whatever needs a closer look."""
    if head[:3] == b"\xff\xd8\xff" and tail[-2:] == _JPEG_END:
        shape = _jpeg_size(head)
    elif head[:8] == b"\x89PNG\r\n\x1a\n" and tail[-12:] == _PNG_END:
        shape = _png_size(head)
    else:
        return None
    if shape is None or min(shape) < 1 or max(shape) > LARGEST_RATIO * min(shape) or shape[0] * shape[1] > _PLAIN_PIXELS:
        return None
    return shape


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """From the segments up to the pixels."""
    at, shape = 2, None
    while at + 4 <= len(head) and head[at] == 0xFF:
        marker, size = head[at + 1], head[at + 2] << 8 | head[at + 3]
        if marker == 0xDA:
            return shape
        if marker in (0xC0, 0xC1, 0xC2):
            if size < 11 or at + 10 > len(head) or head[at + 4] != 8 or head[at + 9] not in (1, 3, 4) or size != 8 + 3 * head[at + 9]:
                return None
            shape = head[at + 5] << 8 | head[at + 6], head[at + 7] << 8 | head[at + 8]
        elif size < 2 or not (0xE0 <= marker <= 0xEF or marker in (0xC4, 0xDB, 0xDD, 0xFE)):
            return None
        at += 2 + size
    return None


def _png_size(head: bytes) -> tuple[int, int] | None:
    """From the chunks up to the pixels, whose checksums are looked at."""
    at, shape = 8, None
    while at + 12 <= len(head):
        size, kind = struct.unpack_from(">I4s", head, at)
        if kind == b"IDAT":
            return shape
        end = at + 12 + size
        if end > len(head) or zlib.crc32(head[at + 4 : end - 4]) != int.from_bytes(head[end - 4 : end]):
            return None
        if shape is None:
            if kind != b"IHDR" or size != 13 or head[at + 16] not in _PNG_DEPTHS.get(head[at + 17], ()) or any(head[at + 18 : at + 20]):
                return None
            shape = struct.unpack_from(">II", head, at + 8)[::-1]
        at = end
    return None


def _video(file: int, path: Path, size: int, how: str) -> tuple[int, int]:
    """(height, width). Raises DataError for what the loader could not read."""
    with open(file, "rb", closefd=False) as opened:
        data = opened.read()
    if data[4:8] == b"ftyp":
        _check_boxes(data, path)
    header = video_decode.header(data, str(path))
    if how == "decode":
        import numpy as np

        for begin in range(0, header.frames, 64):
            # some at a time: all frames of a long video would not fit in memory
            video_decode.frames(data, np.arange(begin, min(begin + 64, header.frames)), str(path))
    return header.height, header.width


def _check_boxes(data: bytes, path: Path) -> None:
    """Raises DataError when an MP4's outermost boxes do not fill the file: it was cut off."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _BOXES:
            # something appended by a camera: the video before it may be whole
            return
        if size == 1 and at + 16 <= len(data):
            size = int.from_bytes(data[at + 8 : at + 16])
        if size == 0:
            return
        if size < 8 or at + size > len(data):
            raise DataError("broken_video", f"{path}: cut off, {size:,} bytes of {kind.decode()} stated, {len(data) - at:,} there")
        at += size
