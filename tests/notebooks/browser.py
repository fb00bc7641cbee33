"""A real JupyterLab in a real browser. Screenshots go to $QWEN3VL_SCREENSHOTS, else beside the test's files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MILLISECONDS = 240_000
PATHS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--mute-audio", "--disable-smooth-scrolling",
]  # fmt: skip
SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"
IMPATIENT = "const wait = AbortSignal.timeout; AbortSignal.timeout = ms => wait.call(AbortSignal, ms === 2000 ? 0 : ms)"
"""A page that is slow: anywidget drops every message to a widget that took more than two seconds to load. Here each one does."""
GIVEN_UP = "[anywidget] Failed to initialize model"
"""What it says each time."""
DRAWN = "[...document.querySelectorAll('.js-plotly-plot')].map(p => (p._fullData || []).map(t => t.x.length))"
"""Points of each trace of each figure, as the browser has them."""
GROUNDS = (
    "[...document.querySelectorAll('.js-plotly-plot')].filter(p => p.offsetWidth)"
    ".map(p => Number(p._fullLayout.paper_bgcolor.match(/\\d+/)[0]))"
)
"""How bright the ground of each figure in sight is, 0 to 255."""


def pages(**how: Any) -> Iterator[Browser]:
    """A browser with one page, until the iterator goes on; skips the test where there is none. how: of the page's context."""
    program = next(filter(None, map(shutil.which, PATHS)), None)
    if program is None:
        pytest.skip("no chromium: tests/notebooks/install_browser.sh installs Debian's")
    pytest.importorskip("jupyterlab", reason="no JupyterLab: pip install -e '.[test]'")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            page = chromium.new_page(viewport={"width": 1400, "height": 1100}, reduced_motion="reduce", **how)
            page.add_init_script(IMPATIENT)
            page.set_default_timeout(MILLISECONDS)
            sync_api.expect.set_options(timeout=MILLISECONDS)
            yield Browser(page, sync_api.expect)
        finally:
            chromium.close()


class Browser:
    """One page on one JupyterLab. `shows` waits until something is visible, and gives it."""

    def __init__(self, page, expect) -> None:
        self.page, self.expect = page, expect
        self.errors: list[str] = []
        page.on("pageerror", lambda error: GIVEN_UP in str(error) or self.errors.append(str(error)))

    def enter(self, address: str, token: str) -> None:
        """Open JupyterLab."""
        self.page.goto(f"{address}/lab?token={token}&reset")
        self.page.wait_for_selector(".jp-DirListing-item")
        toast = self.page.locator("button.jp-toast-button", has_text=re.compile("^No$"))
        if toast.count():
            toast.first.click()

    def show(self, name: str, heading: str) -> None:
        """Open a notebook from the list of files, and run nothing."""
        self.page.locator(".jp-DirListing-item", has_text=name).dblclick()
        self.expect(self.find("h1", has_text=heading)).to_be_visible()

    def close(self) -> None:
        """Save the notebook that is shown, close it, and end its kernel."""
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+s")
        self.expect(self.page.locator(".lm-TabBar-tab.jp-mod-current.jp-mod-dirty")).to_have_count(0)
        self.menu("File", "Close and Shut Down Notebook")
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()
        self.expect(self.page.locator(SHOWN)).to_have_count(0)

    def open(self, name: str, heading: str) -> None:
        """Open a notebook from the list of files, and run its first cell of code until the kernel answers: what is run before
        it is connected is lost, whatever its sign says."""
        self.show(name, heading)
        first = self.find(".jp-CodeCell").first
        answered, end = re.compile(r"^\[\d+\]:$"), time.monotonic() + MILLISECONDS / 1000
        while not answered.match(first.locator(".jp-InputPrompt").first.inner_text().strip()):
            assert time.monotonic() < end, f"{name}: its kernel does not answer"
            first.click()
            self.page.keyboard.press("Control+Enter")
            with contextlib.suppress(AssertionError):
                self.expect(first.locator(".jp-InputPrompt").first).to_have_text(answered, timeout=5000)

    def run_cells(self, number: int) -> None:
        """Shift+Enter from the first cell on; the status bar says which cell is next."""
        self.find(".jp-Cell").first.click()
        self.page.keyboard.press("Escape")
        for done in range(number):
            self.shows(re.compile(rf"^Cell {done + 1}/\d+$"))
            self.page.keyboard.press("Shift+Enter")

    def run_again(self, begin: str) -> None:
        """Run the cell that begins like this once more."""
        self.find(".jp-CodeCell", has_text=begin).first.locator(".jp-InputArea-editor").click()
        self.page.keyboard.press("Control+Enter")

    def find(self, selector: str, **how):
        """What is in the notebook that is shown."""
        return self.page.locator(f"{SHOWN} {selector}", **how)

    def shows(self, text: str | re.Pattern):
        found = self.page.get_by_text(text).first
        self.expect(found).to_be_visible()
        return found

    def button(self, text: str):
        return self.page.locator("button", has_text=text)

    def points(self) -> list[list[int]]:
        return self.page.evaluate(DRAWN)

    def until(self, expression: str) -> None:
        """Wait for JavaScript to be true."""
        self.page.wait_for_function(expression)

    def keep(self, home: Path, name: str, at=None, where: str = "center") -> Path:
        """A screenshot, with something brought to its `center`, `start` or `end`."""
        if at is not None:
            at.evaluate(f"element => element.scrollIntoView({{block: '{where}'}})")
        folder = Path(os.environ.get("QWEN3VL_SCREENSHOTS") or home)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.png"
        self.page.screenshot(path=file)
        return file

    def menu(self, bar: str, *path: str) -> None:
        """Choose from the menu bar; a label begins as its pattern says."""
        self.page.locator(".lm-MenuBar-item", has_text=bar).click()
        for item in path:
            self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}")).first.click()

    def theme(self, name: str) -> None:
        """JupyterLab in other colours, by its menu."""
        self.menu("Settings", "Theme", f"{name}$")
        self.until(f"document.body.dataset.jpThemeName === '{name}'")

    def keep_both(self, home: Path, name: str, at, where: str = "center") -> None:
        """Screenshots in JupyterLab's dark and light colours."""
        for theme, colours in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
            self.theme(theme)
            self.until(f"({GROUNDS}).every(g => (g < 128) === {str(colours == 'dark').lower()})")
            self.keep(home, f"{name}-{colours}", at, where)

    def download(self, act: Callable[[], None]) -> Path:
        """The file that an act gives the person."""
        with self.page.expect_download() as waiting:
            act()
        return Path(waiting.value.path())

    def zoom(self) -> None:
        """Drag over the middle of the curve."""
        area = self.page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
        y = area["y"] + area["height"] / 2
        self.page.mouse.move(area["x"] + area["width"] * 0.2, y)
        self.page.mouse.down()
        self.page.mouse.move(area["x"] + area["width"] * 0.7, y, steps=5)
        self.page.mouse.up()
        self.until("!document.querySelector('.js-plotly-plot')._fullLayout.xaxis.autorange")

    def window(self) -> list[float]:
        return self.page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout.xaxis.range.slice()")
