"""Turns records into checked samples: media files exist and look complete, sizes are known, the JSON is built. Imports no torch.

JPEG and PNG headers are parsed here, in a tenth of the time that Pillow takes to open a file. A file that is not plainly
valid goes to Pillow, which decides.
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
from qwen3vl_core.data.errors import REASON_OF, DataError, picture_errors
from qwen3vl_core.data.llava import Frames, SourceRecord
from qwen3vl_core.data.pictures import FORMATS, LARGEST_RATIO, check_picture
from qwen3vl_core.data.tar import member_size
from qwen3vl_core.problems import Problem

FRAME_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MOST_FRAMES = 100_000
"""The limit of the five digits in a frame's name."""
_FIRST, _HEAD, _TAIL = 1 << 12, 1 << 16, 64
"""Bytes read of a picture: from its start, from its start if those do not reach the pixels, and from its end."""
_PLAIN_PIXELS = 64_000_000
"""Larger pictures are left to Pillow, which applies its own limit."""
_last_jpeg = b"\0", b"\0"
"""The bytes before and after the frame header, up to the pixels, of the last JPEG whose segments were parsed."""
_JPEG_END, _PNG_END = b"\xff\xd9", b"\0\0\0\0IEND\xaeB\x60\x82"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_KEPT = 200_000
"""Media files whose result is cached: in many datasets several records use one picture."""
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp", b"meta", b"pdin", b"udta")


class TarSample(NamedTuple):
    """What will be written for a record. A tuple, because many are sent between processes."""

    number: int
    payload: bytes
    """The sample's JSON file."""
    parts: tuple[str, ...]
    """Names of the media within the sample."""
    files: tuple[str, ...]
    """Their paths, relative to the media folder."""
    sizes: tuple[int, ...]
    """Bytes of each."""
    stamps: tuple[int, ...]
    """Modification time of each, in ns."""
    turns: int
    pictures: int
    videos: int
    size: int
    """Bytes in its shard."""


class Refusal(NamedTuple):
    """A record that cannot be used."""

    number: int
    id: str | None
    code: str
    rule: dict[str, Any]
    """Of the problem, as plain values: a worker process sends them."""

    @classmethod
    def of(cls, number: int, name: str | None, error: DataError) -> Refusal:
        return cls(number, name, error.problem.code, dict(error.problem.rule))

    @property
    def reason(self) -> str:
        """A key of errors.REASONS."""
        return REASON_OF[self.code]

    @property
    def detail(self) -> str:
        return str(Problem(self.code, rule=self.rule))


class CheckedFile(NamedTuple):
    """A file that looks complete."""

    size: int
    stamp: int
    shape: tuple[int, int] | None
    """(height, width); None where it was not read."""


class Checker:
    """Caches the result of each file, so that a file that many records name is checked once."""

    def __init__(self, root: Path, how: str) -> None:
        self.root, self.how = root, how
        """how: `none` checks that the files exist; `header` reads headers and ends; `decode` decodes every pixel."""
        # a string: building a Path takes as long as opening the file
        self._folder = str(root / "x")[:-1]
        self._media: dict[str, CheckedFile | DataError] = {}
        self._folders: dict[str, Frames | DataError | None] = {}

    def check(self, records: list[tuple[int, Any]]) -> list[TarSample | Refusal]:
        """records: as `RecordFile.records` gives them. One result for each.

        Step by step for all of them, not record by record: after a system call the caches are cold, and everything else
        takes half as long again.
        """
        parsed = [self._record(number, record) for number, record in records]
        checked = self._media
        for record in parsed:
            if isinstance(record, SourceRecord):
                for name in record.pictures:
                    if name not in checked:
                        self._look(name, "picture")
        return [self._sample(record) if isinstance(record, SourceRecord) else record for record in parsed]

    def _record(self, number: int, raw: Any) -> SourceRecord | Refusal:
        try:
            record = sources.parse(number, raw)
        except DataError as error:
            record_id = raw.get("id") if isinstance(raw, dict) else None
            return Refusal.of(number, record_id if isinstance(record_id, str) else None, error)
        for turn, (_, text) in enumerate(record.turns):
            if "<|" in text and (token := llava.CONTROL.search(text)):
                return Refusal.of(number, record.id, DataError("control-token", f"turn {turn}", token=token.group()))
        return record

    def _sample(self, record: SourceRecord) -> TarSample | Refusal:
        number, name, turns, files, videos = record
        parts = record.parts
        folders: list[Frames | None] = []
        try:
            media = [self._medium(file, "picture") for file in files]
            if videos:
                folders = [self._frames(video) for video in videos]
                files = (*files, *self._video_files(record, folders, parts, media))
        except DataError as error:
            return Refusal.of(number, name, error)
        payload = record.payload(parts, folders)
        size, sizes, stamps = member_size(len(payload)), [], []
        for length, stamp, _ in media:
            sizes.append(length)
            stamps.append(stamp)
            size += member_size(length)
        pictures = len(record.pictures)
        return TarSample(number, payload, tuple(parts), files, tuple(sizes), tuple(stamps), len(turns), pictures, len(videos), size)

    def _video_files(self, record: SourceRecord, folders: list[Frames | None], parts: list[str], media: list[CheckedFile]) -> list[str]:
        """Files of a record's videos; appends their names in the sample to `parts`, their checks to `media`. Raises DataError."""
        files: list[str] = []
        for name, frames, part in zip(record.videos, folders, record.video_parts(folders), strict=True):
            if frames is None:
                parts.append(part["part"])
                files.append(name)
                media.append(self._medium(name, "video"))
                continue
            parts += part["frames"]
            files += (f"{name}/{frame}" for frame in frames.names)
            checks = [self._medium(f"{name}/{frame}", "picture") for frame in frames.names]
            differing = next((place for place, medium in enumerate(checks) if medium.shape != checks[0].shape), None)
            if differing is not None:
                raise DataError("frames-differ", str(self.root / name), frame=frames.names[differing], first=frames.names[0])
            media += checks
        return files

    def _medium(self, name: str, kind: str) -> CheckedFile:
        """The result for a file. Raises DataError if it cannot be used."""
        result = self._media.get(name) or self._look(name, kind)
        if isinstance(result, DataError):
            raise result
        return result

    def _look(self, name: str, kind: str) -> CheckedFile | DataError:
        result: CheckedFile | DataError
        try:
            result = check_file(self._folder + name, self.how, kind)
        except DataError as error:
            result = error
        if len(self._media) >= _KEPT:
            self._media.clear()
        self._media[name] = result
        return result

    def _frames(self, name: str) -> Frames | None:
        """The frames of a video that is a folder; None for a file."""
        if name not in self._folders:
            try:
                path = self.root / name
                self._folders[name] = read_frames(path) if path.is_dir() else None
            except DataError as error:
                self._folders[name] = error
            except (OSError, ValueError) as error:
                self._folders[name] = DataError(
                    "video-missing", repr(str(self.root / name)), reason=getattr(error, "strerror", None) or str(error)
                )
        result = self._folders[name]
        if isinstance(result, DataError):
            raise result
        return result


def read_frames(folder: Path) -> Frames:
    """Names of the frames in a folder, sorted by the numbers in them, and frames per second. Raises DataError."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.rpartition(".")[2].lower() in FRAME_SUFFIXES and not e.name.startswith(".")]
    if not names:
        raise DataError("frames-missing", str(folder), endings=FRAME_SUFFIXES)
    if len(names) > MOST_FRAMES:
        raise DataError("frames-too-many", str(folder), frames=len(names), most=MOST_FRAMES)
    names.sort(key=lambda name: ([int(digits) for digits in re.findall(r"[0-9]{1,18}", name)], name))
    try:
        for name in names:
            name.encode()
    except UnicodeEncodeError:
        raise DataError("frames-name", repr(str(folder))) from None
    for file in (folder / "fps", folder / "fps.txt"):
        if file.is_file():
            try:
                with open(file, encoding="utf-8") as opened:
                    fps = float(opened.read(64))
            except ValueError:
                fps = 0.0
            if not 1e-3 <= fps <= 1e5:
                raise DataError("frames-fps", str(file))
            return Frames(tuple(names), fps)
    return Frames(tuple(names), llava.FRAMES_PER_SECOND)


def check_file(path: str | Path, how: str, kind: str = "picture") -> CheckedFile:
    """Check that a picture or video looks complete. Raises DataError."""
    path = os.fspath(path)
    try:
        # opening a named pipe would block until there is a writer
        file = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        reason = "no such file" if getattr(error, "errno", None) == errno.ENOENT else getattr(error, "strerror", None) or error
        shown = path if os.path.basename(path).isprintable() else repr(path)
        raise DataError(f"{kind}-missing", shown, reason=str(reason)) from error
    shape = None
    try:
        status = os.fstat(file)
        size, stamp = status.st_size, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{kind}-missing", path, reason="not a file")
        if not size:
            raise DataError(f"{kind}-empty", path)
        if how == "none":
            return CheckedFile(size, stamp, None)
        if kind == "video":
            return CheckedFile(size, stamp, _video(file, path, size, how))
        if how == "header":
            head = os.read(file, _FIRST)
            tail = head if size <= len(head) else os.pread(file, _TAIL, size - _TAIL)
            shape = plain_picture(head, tail)
            if shape is None and size > len(head):
                shape = plain_picture(os.pread(file, _HEAD, 0), tail)
    except OSError as error:
        raise DataError(f"{kind}-unreadable", path, reason=error.strerror) from error
    finally:
        os.close(file)
    if shape is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_picture(Path(path), how)
            with picture_errors(path), Image.open(path, formats=FORMATS) as image:
                shape = (image.height, image.width)
    return CheckedFile(size, stamp, shape)


def plain_picture(head: bytes, tail: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG or PNG with a valid header and an end marker; None for anything that needs a full check."""
    if head[:3] == b"\xff\xd8\xff" and tail[-2:] == _JPEG_END:
        shape = _jpeg_size(head)
    elif head[:8] == b"\x89PNG\r\n\x1a\n" and tail[-12:] == _PNG_END:
        shape = _png_size(head)
    else:
        return None
    if shape is None:
        return None
    height, width = shape
    if not (0 < height <= LARGEST_RATIO * width and 0 < width <= LARGEST_RATIO * height and height * width <= _PLAIN_PIXELS):
        return None
    return shape


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) from the segments before the pixels; None where a segment is unusual, which leaves the picture to Pillow."""
    global _last_jpeg
    before, after = _last_jpeg
    if head.startswith(before):
        # same encoder as the previous picture: its tables are known to be valid
        parsed = _jpeg_frame(head, len(before))
        if parsed is not None and head.startswith(after, parsed[1]):
            return parsed[0]
    at, length = 2, len(head)
    frame = None
    while at + 4 <= length and head[at] == 0xFF:
        marker, size = head[at + 1], head[at + 2] << 8 | head[at + 3]
        begin, at = at, at + 2 + size
        if size < 2 or at > length:
            return None
        if marker == 0xDB:
            begin += 4
            while begin < at:
                begin += 65 if head[begin] < 16 else 129
            if begin != at:
                return None
        elif marker in (0xC0, 0xC1, 0xC2):
            # a valid file has one frame header only
            parsed = _jpeg_frame(head, begin) if frame is None else None
            if parsed is None:
                return None
            frame = begin
        elif marker == 0xDA:
            if frame is None or parsed is None:
                return None
            _last_jpeg = head[:frame], head[parsed[1] : at]
            return parsed[0]
        elif not (0xE0 <= marker <= 0xEF or marker in (0xC4, 0xDD, 0xFE)):
            return None
    return None


def _jpeg_frame(head: bytes, at: int) -> tuple[tuple[int, int], int] | None:
    """((height, width), end of the segment) of the frame header at `at`; None for an unusual one."""
    fields = head[at : at + 10]
    if len(fields) < 10 or fields[0] != 0xFF or fields[1] not in (0xC0, 0xC1, 0xC2) or fields[4] != 8 or fields[9] not in (1, 3, 4):
        return None
    size = fields[2] << 8 | fields[3]
    if size != 8 + 3 * fields[9]:
        return None
    return (fields[5] << 8 | fields[6], fields[7] << 8 | fields[8]), at + 2 + size


def _png_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) from the chunks before the pixels, whose checksums are verified."""
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


def _video(file: int, path: str, size: int, how: str) -> tuple[int, int]:
    """(height, width). Raises DataError for what the loader could not read."""
    with open(file, "rb", closefd=False) as opened:
        data = opened.read()
    if data[4:8] == b"ftyp":
        _check_boxes(data, path)
    header = video_decode.header(data, path)
    if how == "decode":
        import numpy as np

        for begin in range(0, header.frames, 64):
            # in batches: all frames of a long video would not fit in memory
            video_decode.frames(data, np.arange(begin, min(begin + 64, header.frames)), path)
    return header.height, header.width


def _check_boxes(data: bytes, path: str) -> None:
    """Raises DataError when an MP4's top-level boxes reach beyond the end of the file: it was cut off."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _BOXES:
            # data appended by a camera: the video before it may be complete
            return
        if size == 1 and at + 16 <= len(data):
            size = int.from_bytes(data[at + 8 : at + 16])
        if size == 0:
            return
        if size < 8 or at + size > len(data):
            raise DataError("video-file-cut-off", path, box=kind.decode(), stated=size, left=len(data) - at)
        at += size
