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


def jpeg_data_uri(image: Image.Image) -> str:
    """A data URI: JPEG, at most `LONGEST_SIDE` pixels wide and high. Resizes `image` in place."""
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def file_data_uri(path: str | Path) -> str:
    """The data URI of a picture file, its EXIF orientation applied; empty when the file is missing or not a picture."""
    try:
        with open_regular(path, links=True) as opened, Image.open(opened) as image:
            if image.width * image.height > limits.PICTURE_PIXELS:
                return ""
            image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                background = Image.new("RGBA", upright.size, (255, 255, 255, 255))
                upright = Image.alpha_composite(background, upright)
            return jpeg_data_uri(upright.convert("RGB"))
    except Exception:
        # Pillow raises errors of many types for damaged files; the page then shows the picture's name
        return ""
