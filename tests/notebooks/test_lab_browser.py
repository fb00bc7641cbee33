"""A real JupyterLab in a real browser: click, watch the curve grow, read two captions. QWEN3VL_BROWSER=1 asks for it.

Needs `pip install playwright jupyterlab` and Debian's `chromium`. Screenshots go to $QWEN3VL_SCREENSHOTS, else beside the test's files.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

if os.environ.get("QWEN3VL_BROWSER") != "1":
    pytest.skip("a browser: set QWEN3VL_BROWSER=1", allow_module_level=True)

from playwright.sync_api import Page, expect, sync_playwright

from console.runs import launch
from console.runs.store import RunStore
from tests.console.runs.jobs import run_store
from tests.notebooks.kernels import FOLDER, running_lab, with_parameters

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MILLISECONDS = 120_000
DRAWN = "[...document.querySelectorAll('.js-plotly-plot')].map(p => (p._fullData || []).map(t => t.x.length))"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """(address, token, folder of the notebooks): all four with a workspace of their own and short trainings."""
    home = tmp_path_factory.mktemp("lab")
    folder, work = home / "notebooks", home / "work"
    folder.mkdir()
    values = {"2_": {"train_iters": 3000}, "3_": {"train_iters": 8, "checkpoints": 2, "pictures": 2}}
    for path in FOLDER.glob("*.ipynb"):
        notebook = with_parameters(nbformat.read(path, 4), {"workspace": work, **values.get(path.name[:2], {})})
        nbformat.write(notebook, folder / path.name)
    with run_store(work / "runs"), running_lab(home, folder, QWEN3VL_GRACE="5") as (address, token, _):
        yield address, token, home


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 1150})
        page.set_default_timeout(MILLISECONDS)
        expect.set_options(timeout=MILLISECONDS)
        yield page
        browser.close()


def keep(page: Page, home: Path, name: str) -> None:
    folder = Path(os.environ.get("QWEN3VL_SCREENSHOTS") or home)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def open_notebook(page: Page, address: str, token: str, name: str) -> None:
    page.goto(f"{address}/lab/tree/{name}?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    # cells that run before the kernel answers are lost
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    toast = page.locator("button.jp-toast-button", has_text=re.compile("^No$"))
    if toast.count():
        toast.first.click()


def run_cells(page: Page, number: int) -> None:
    """Shift+Enter from the first cell on; the status bar says which cell is next."""
    page.locator(".jp-Cell").first.click()
    page.keyboard.press("Escape")
    for done in range(number):
        expect(page.get_by_text(re.compile(rf"^Cell {done + 1}/\d+$"))).to_be_visible()
        page.keyboard.press("Shift+Enter")


def test_a_run_is_started_by_a_click_its_curve_grows_and_it_is_stopped(lab, page):
    address, token, home = lab
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_notebook(page, address, token, "2_finetune_and_watch.ipynb")
    run_cells(page, 8)
    start = page.locator("button", has_text="Start finetune")
    start.scroll_into_view_if_needed()
    expect(page.get_by_text("TP 1 · PP 1 · CP 1 · DP 1 = 1 process")).to_be_visible()
    keep(page, home, "2-form")
    page.wait_for_selector(".js-plotly-plot", state="attached")
    start.click()
    expect(page.get_by_text(re.compile("run 0002-watched started"))).to_be_visible()
    page.wait_for_function(f"({DRAWN})[0]?.[0] >= 3")
    before = page.evaluate(DRAWN)[0][0]
    page.wait_for_function(f"({DRAWN})[0][0] > {before + 2}")
    page.locator(".js-plotly-plot").scroll_into_view_if_needed()
    zoom(page)
    keep(page, home, "2-curve")
    stop = page.locator("button", has_text="Stop run")
    stop.click()
    (run,) = [r for r in RunStore(home / "work" / "runs").list() if r.kind == "finetune"]
    assert launch.wait(run, 120) == "stopped"
    expect(page.get_by_text("■ stopped")).to_be_visible()
    keep(page, home, "2-stopped")
    last = page.evaluate("document.querySelector('.js-plotly-plot')._fullData[0].x.slice(-1)[0]")
    assert last > before
    assert not errors


def zoom(page: Page) -> None:
    """Drag over the middle of the plot: new points arrive, the window stays."""
    area = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    y = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] * 0.2, y)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.7, y, steps=5)
    page.mouse.up()
    ask = "document.querySelector('.js-plotly-plot')._fullLayout.xaxis.range.slice()"
    page.wait_for_function("!document.querySelector('.js-plotly-plot')._fullLayout.xaxis.autorange")
    window = page.evaluate(ask)
    step = page.locator(".jp-OutputArea-output td", has_text=re.compile(r"^\d+/3000$")).first
    shown = step.inner_text()
    expect(step).not_to_have_text(shown)
    assert page.evaluate(ask) == window
    page.locator(".js-plotly-plot .nsewdrag").first.dblclick()
    page.wait_for_function("document.querySelector('.js-plotly-plot')._fullLayout.xaxis.autorange")


def test_two_captions_are_shown_side_by_side_and_voted_on(lab, page):
    address, token, home = lab
    open_notebook(page, address, token, "3_compare_and_choose.ipynb")
    run_cells(page, 11)
    expect(page.locator(".qwen3vl b", has_text=re.compile("^tuned$"))).to_be_visible()
    page.locator(".qwen3vl b", has_text=re.compile("^tuned$")).scroll_into_view_if_needed()
    picture = page.locator(".jp-OutputArea-output img.widget-image").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 0
    page.locator("button", has_text="tuned is better").click()
    keep(page, home, "3-captions")
    runs = [r for r in RunStore(home / "work" / "runs").list() if r.kind == "compare"]
    expect(page.locator("button.mod-active", has_text="tuned is better")).to_be_visible()
    assert len(runs) == 2


def test_samples_are_shown_with_what_is_trained(lab, page):
    address, token, home = lab
    open_notebook(page, address, token, "4_prepare_and_inspect.ipynb")
    run_cells(page, 14)
    expect(page.get_by_text(re.compile("trained tokens")).first).to_be_visible()
    page.locator(".qwen3vl mark").first.scroll_into_view_if_needed()
    keep(page, home, "4-preview")
