"""Opens pictures in the formats that are read, and names the others with the way out."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

from qwen3vl_core import limits
from qwen3vl_core.data.errors import DataError

FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM",
    *(("JPEG2000",) if features.check("jpg_2000") else ()), *(("AVIF",) if features.check("avif") else ()),
)  # fmt: skip
"""Formats that are opened, HEIC besides where pillow-heif is installed. Pillow supports more, some of which start other programs."""
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_CONVERT = "convert it to JPEG or PNG"
_AGAIN = "download the picture again"
_OTHERS = (
    (b"%!PS", "PostScript (EPS)", _CONVERT), (b"%PDF", "a PDF", "convert its pages to JPEG or PNG"), (b"\0\0\1\0", "an ICO", _CONVERT),
    (b"8BPS", "a Photoshop file", _CONVERT), (b"II*\0\x10\0\0\0CR", "a camera's raw file", _CONVERT), (b"\xff\x0a", "JPEG XL", _CONVERT),
    (b"\0\0\0\x0cJXL ", "JPEG XL", _CONVERT),
    (b"version https://git-lfs", "a pointer of Git LFS, not the picture", "fetch it: git lfs pull"),
    (b"<svg", "an SVG drawing", "draw it as PNG"), (b"<?xml", "XML, perhaps an SVG drawing", "draw it as PNG"),
    (b"<!doctype", "a web page, not the picture", _AGAIN), (b"<html", "a web page, not the picture", _AGAIN),
    (b"{", "JSON, not the picture", _AGAIN), (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x1aE\xdf\xa3", "a video (Matroska, WebM)", "name it under videos"),
    (b"RIFF", "no WebP but another RIFF file (AVI, WAV)", "give a picture"),
)  # fmt: skip


def open_picture(file: BinaryIO) -> Image.Image:
    """The picture, opened and not decoded. Raises DataError for what is no picture that is read, or too large to decode, and what Pillow
    raises."""
    image = _open(file)
    place = file.tell()
    check_area(image.height, image.width, file.seek(0, os.SEEK_END))
    file.seek(place)
    return image


def check_area(height: int, width: int, size: int) -> None:
    """Raises DataError for a picture of `size` bytes that is too large to decode, or that its bytes cannot fill."""
    pixels = height * width
    if pixels > limits.PICTURE_PIXELS:
        raise DataError("picture-too-large", reason=f"{width}x{height} pixels, at most {limits.PICTURE_PIXELS:,}; make it smaller")
    if pixels > max(limits.DENSE_PIXELS, limits.PIXELS_PER_BYTE * size):
        reason = f"{width}x{height} pixels in {size:,} bytes: almost blank, or made to exhaust memory; make it smaller"
        raise DataError("picture-too-large", reason=reason)


def _open(file: BinaryIO) -> Image.Image:
    head = file.read(64)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS and (head[8:12] != b"mif1" or b"avif" not in head):
        return _open_heic(file)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        other = _other_format(head)
        if other is None:
            raise DataError("picture-format", formats=FORMATS) from error
        raise DataError("picture-other-format", found=other[0], way=other[1]) from error


def _open_heic(file: BinaryIO) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        way = "install pillow-heif (pip install pillow-heif), or convert it to JPEG"
        raise DataError("picture-other-format", found="HEIC, an iPhone's format", way=way) from None
    pillow_heif.register_heif_opener()
    try:
        return Image.open(file, formats=("HEIF",))
    except UnidentifiedImageError as error:
        raise DataError("picture-other-format", found="HEIC that cannot be decoded", way="convert it to JPEG") from error


def _other_format(head: bytes) -> tuple[str, str] | None:
    """(what it is, the way out) of a file that is no picture that is read; None where its first bytes say nothing."""
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"avif", b"avis"):
            return "AVIF, which this Pillow was built without", "install a Pillow with AVIF (pip install -U pillow), or convert it to JPEG"
        return "a video (MP4, MOV)", "name it under videos"
    start = head.lstrip().lower()
    return next(((name, way) for magic, name, way in _OTHERS if head.startswith(magic) or start.startswith(magic)), None)
