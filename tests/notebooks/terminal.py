"""JupyterLab's terminal in a browser, and what its pixels show."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.notebooks.browser import Browser

PATIENCE = 240.0


def screenshot(browser: Browser) -> Image.Image:
    """The browser's page."""
    return Image.open(io.BytesIO(browser.page.screenshot())).convert("RGB")


def pixels_like(image: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many have about this colour."""
    found = image.getcolors(image.width * image.height) or []
    return sum(number for number, pixel in found if max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= 12)


class Terminal:
    """JupyterLab's terminal on a page that is open."""

    def __init__(self, browser: Browser, home: Path) -> None:
        self.browser, self.home = browser, home

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"did not come: {what}; see {self.browser.keep(self.home, 'terminal-failed')}")
            time.sleep(0.5)

    def shows(self, colour: tuple[int, int, int], more_than: int) -> bool:
        return pixels_like(screenshot(self.browser), colour) > more_than
