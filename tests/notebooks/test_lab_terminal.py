"""The console in the terminal of a real JupyterLab, in a real browser: a picture in its own colours, and a vote by key."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from console.runs import launch
from console.runs.captions import read_votes
from console.runs.state import SAMPLES
from tests.console.app.driving import Store
from tests.notebooks.browser import Browser, pages
from tests.notebooks.kernels import running_lab

pytestmark = pytest.mark.slow
RED, BLUE = (200, 30, 40), (30, 60, 210)
ACTIVE = (1, 120, 212)
"""Ground of the name of the screen that is shown, in the console's dark theme."""
PATIENCE = 240.0
BASE = "Of course. Here is a detailed description of the image: a red field under a wide sky, calm and quiet."
TUNED = "a red field"


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


@pytest.fixture
def comparison(tmp_path):
    """A compare run that is done: two pictures, each of one colour."""
    store = Store(tmp_path / "runs")
    run = store.other("compare")
    assert launch.wait(run, 240) == "done"
    rows = []
    for name, colour in (("red", RED), ("blue", BLUE)):
        Image.new("RGB", (96, 96), colour).save(tmp_path / f"{name}.png")
        for model, text in (("base", BASE), ("tuned", TUNED)):
            rows.append({"v": 1, "image": str(tmp_path / f"{name}.png"), "prompt": "What?", "model": model, "text": text, "done": True})
    (run.path / SAMPLES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield run
    store.tidy()


@pytest.fixture
def browser():
    yield from pages()


def test_the_console_works_in_jupyterlabs_terminal(comparison, browser, tmp_path):
    with running_lab(tmp_path, tmp_path, QWEN3VL_RUNS=str(comparison.path.parent)) as (address, token, _):
        page, terminal = browser.page, Terminal(browser, tmp_path)
        page.goto(f"{address}/lab?token={token}&reset")
        page.locator(".jp-LauncherCard", has_text="Terminal").first.click()
        page.wait_for_selector(".jp-Terminal .xterm-screen")
        page.locator(".jp-Terminal .xterm-screen").click()
        page.keyboard.type(f"{sys.executable} -m qwen3vl_core.cli console")
        page.keyboard.press("Enter")
        terminal.until(lambda: terminal.shows(ACTIVE, 100), "the console's bar, a screen's name in it marked")
        page.keyboard.press("4")
        terminal.until(lambda: terminal.shows(RED, 4000), "the red picture")
        page.keyboard.press("]")
        terminal.until(lambda: list(read_votes(comparison).choices.values()) == ["tuned"], "the vote")
        browser.keep(tmp_path, "terminal-compare")
        page.keyboard.press("ArrowRight")
        terminal.until(lambda: terminal.shows(BLUE, 4000), "the blue picture")
        assert not terminal.shows(RED, 200)
        page.keyboard.press("1")
        terminal.until(lambda: not terminal.shows(BLUE, 200), "the runs")
        browser.keep(tmp_path, "terminal-runs")
        assert not browser.errors
        page.keyboard.press("Control+q")
