"""A picture as part of a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

LONGEST_SIDE = 512
QUALITY = 85


def jpeg_data_uri(image: Image.Image) -> str:
    """A data URI: JPEG, at most `LONGEST_SIDE` pixels wide and high. Makes the image smaller in place."""
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def file_data_uri(path: str | Path) -> str:
    """The same of a file, upright; empty when it is not there any more or no picture."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                ground = Image.new("RGBA", upright.size, (255, 255, 255, 255))
                upright = Image.alpha_composite(ground, upright)
            return jpeg_data_uri(upright.convert("RGB"))
    except Exception:
        # Pillow raises whatever a damaged file makes it stumble over; the page then shows the picture's name
        return ""
