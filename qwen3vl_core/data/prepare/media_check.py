"""Checks of one picture or video: is it there, does it look complete, what size is it? Imports no torch.

JPEG and PNG headers are parsed here, in a tenth of the time that Pillow takes to open a file. A file that is not plainly
valid goes to Pillow, which decides.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import stat
import struct
import unicodedata
import warnings
import zlib
from typing import NamedTuple
from urllib.parse import unquote

from qwen3vl_core import limits
from qwen3vl_core.data import video_decode
from qwen3vl_core.data.errors import DataError, picture_errors
from qwen3vl_core.data.pictures import LARGEST_RATIO, check_content

_FIRST, _HEAD, _TAIL = 1 << 12, 1 << 16, 64
"""Bytes read of a picture: from its start, from its start if those do not reach the pixels, and from its end."""
_PLAIN_PIXELS = limits.DENSE_PIXELS
"""Larger pictures are opened, which compares their area with the limits."""
_last_jpeg = b"\0", b"\0"
"""The bytes before and after the frame header, up to the pixels, of the last JPEG whose segments were parsed."""
_JPEG_END, _PNG_END = b"\xff\xd9", b"\0\0\0\0IEND\xaeB\x60\x82"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp", b"meta", b"pdin", b"udta")


class CheckedFile(NamedTuple):
    """A file that looks complete."""

    size: int
    stamp: int
    """Its modification time in ns; of bytes in a record, a digest."""
    shape: tuple[int, int] | None
    """(height, width); None where it was not read."""


def check_bytes(data: bytes, stamp: int, how: str, kind: str, what: str) -> CheckedFile:
    """Check a picture or video that is no file of its own. Raises DataError that names it `what`."""
    if not data:
        raise DataError(f"{kind}-empty", what)
    if how == "none":
        return CheckedFile(len(data), stamp, None)
    if kind == "video":
        return CheckedFile(len(data), stamp, _check_video(data, what, how))
    shape = plain_picture(data, data[-_TAIL:]) if how == "header" else None
    if shape is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape = check_content(io.BytesIO(data), len(data), what, how)
    return CheckedFile(len(data), stamp, shape)


def check_range(file: int, offset: int, size: int, stamp: int, how: str, kind: str, what: str) -> CheckedFile:
    """Check a picture or video that is a stretch of an open file. Raises DataError that names it `what`, OSError."""
    if how == "header" and kind == "picture" and size > _FIRST:
        # most pictures need no more than their ends
        shape = plain_picture(os.pread(file, _FIRST, offset), os.pread(file, _TAIL, offset + size - _TAIL))
        if shape is not None:
            return CheckedFile(size, stamp, shape)
    data, at = b"", offset
    while len(data) < size and (piece := os.pread(file, size - len(data), at)):
        data += piece
        at += len(piece)
    return check_bytes(data, stamp, how, kind, what)


def _similar(path: str) -> str:
    """What is there instead of a missing file: the same name in other letters, in another form of Unicode, or with an ending."""
    folder, name = os.path.split(path)
    names = _names(folder)
    for what, form in _DIFFERENCES:
        similar = names.get(form(name))
        if similar is not None and similar != name and (form is _stem or _folded(similar) == form(name)):
            return f"; {similar!r} is there: {what}"
    return ""


@functools.lru_cache(maxsize=32)
def _names(folder: str) -> dict[str, str]:
    """Folded names of a folder's files, and those without their endings -> the names."""
    try:
        with os.scandir(folder or ".") as entries:
            names = sorted(entry.name for entry in entries)
    except OSError:
        return {}
    return {_stem(name): name for name in names} | {_folded(name): name for name in names}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _unquoted(name: str) -> str:
    return _folded(unquote(name))


def _stem(name: str) -> str:
    return _folded(name.rpartition(".")[0] or name)


_DIFFERENCES = (
    ("its letters differ in case or in their Unicode form", _folded),
    ("it is written with %", _unquoted),
    ("an ending is missing", _stem),
)


def check_file(path: str | os.PathLike[str], how: str, kind: str = "picture") -> CheckedFile:
    """Check that a picture or video looks complete. Raises DataError."""
    path = os.fspath(path)
    try:
        # opening a named pipe would block until there is a writer
        file = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.ENOENT:
            reason = f"no such file{_similar(path)}"
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
            return CheckedFile(size, stamp, _video(file, path, how))
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
            with picture_errors(path), open(path, "rb") as opened:
                shape = check_content(opened, size, path, how)
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
    frame = parsed = None
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


def _video(file: int, path: str, how: str) -> tuple[int, int]:
    """(height, width). Raises DataError for what the loader could not read."""
    with open(file, "rb", closefd=False) as opened:
        return _check_video(opened.read(), path, how)


def _check_video(data: bytes, path: str, how: str) -> tuple[int, int]:
    if data[4:8] == b"ftyp":
        _check_boxes(data, path)
    header = video_decode.header(data, path)
    video_decode.check_length(data, path)
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
