"""A picture in the terminal, by the best method that the terminal supports."""

from __future__ import annotations

from PIL import Image, ImageOps

from console import terminal
from qwen3vl_core import limits
from qwen3vl_core.files import open_regular
from qwen3vl_core.language import filled

with terminal.without_queries():
    from textual_image.widget import HalfcellImage, SixelImage, TGPImage

LONGEST_SIDE = 1024
"""Largest width and height in pixels; a terminal shows no more, and scaling a large photograph at every repaint would be slow."""

PictureWidget = {"sixel": SixelImage, "kitty": TGPImage, "cells": HalfcellImage}[terminal.picture_support.protocol]


def read_picture(path: str) -> Image.Image:
    """Read a picture: upright, RGB, scaled down to LONGEST_SIDE. Blocking. Raises ValueError with a one-line message."""
    try:
        with open_regular(path, links=True) as file, Image.open(file) as image:
            if image.width * image.height > limits.PICTURE_PIXELS:
                raise ValueError(filled("{}: {}x{} pixels, too large to show", path, image.width, image.height))
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise ValueError(filled("{}: does not exist any more", path)) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(filled("{}: cannot be shown ({})", path, error)) from None
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return small
