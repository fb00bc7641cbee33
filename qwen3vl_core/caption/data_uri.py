"""Pictures as data URIs, to embed in HTML."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from qwen3vl_core import limits
from qwen3vl_core.files import open_regular

LONGEST_SIDE = 512
QUALITY = 85
PAGE_BYTES = 6_000_000
"""All pictures of a page together, so that it can be sent and opens at once."""
STEPS = ((LONGEST_SIDE, QUALITY), (448, 80), (384, 75), (320, 70), (256, 60), (192, 50))
"""Longest side and quality of pictures, from the first on until they fit."""


LEAST = 0.08
"""Bytes a pixel that a photograph takes at least; larger steps than the room has by that are not tried."""


class PageFit:
    """Sizes of the pictures of one page, so that all of them fit into PAGE_BYTES."""

    def __init__(self, pictures: int) -> None:
        """pictures: how many the page has."""
        self._left, self._bytes = pictures, PAGE_BYTES

    @property
    def _steps(self) -> tuple[float, list[tuple[int, int]]]:
        """Bytes that the next picture may take, before base64, and what is tried for it."""
        room = self._bytes / max(self._left, 1) * 3 / 4
        return room, [step for step in STEPS if step == STEPS[-1] or step[0] ** 2 * LEAST <= room]

    @property
    def side(self) -> int:
        """The longest side of the next picture."""
        return self._steps[1][0][0]

    def uri(self, image: Image.Image | None) -> str:
        """A data URI: JPEG, as large as the page has room for; of None an empty one. Resizes `image` in place."""
        room, steps = self._steps
        self._left -= 1
        if image is None:
            return ""
        data = b""
        for side, quality in steps:
            data = _jpeg(image, side, quality)
            if len(data) <= room:
                break
        text = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
        self._bytes -= len(text)
        return text


def _jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def file_picture(path: str | Path, side: int = LONGEST_SIDE) -> Image.Image | None:
    """A picture file as RGB, its EXIF orientation applied, not much larger than `side`; None when it is missing or no picture."""
    try:
        with open_regular(path, links=True) as opened, Image.open(opened) as image:
            if image.width * image.height > limits.PICTURE_PIXELS:
                return None
            image.draft("RGB", (side, side))
            if image.mode != "P":
                image.thumbnail((2 * side, 2 * side), Image.Resampling.BOX)
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                background = Image.new("RGBA", upright.size, (255, 255, 255, 255))
                upright = Image.alpha_composite(background, upright)
            return upright.convert("RGB")
    except Exception:
        # Pillow raises errors of many types for damaged files; the page then shows the picture's name
        return None
