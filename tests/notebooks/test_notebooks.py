"""The example notebooks are valid and clean, run from top to bottom, and work in JupyterLab in a browser."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import nbformat
from PIL import Image

from console.notebook import metrics
from console.notebook.stored import VIEW
from console.runs import launch
from console.runs.captions import read_votes
from console.runs.store import RunStore
from qwen3vl_core.command_line import build_parser
from qwen3vl_core.run_record import SAMPLES
from tests.console.app.driving import Store
from tests.console.runs import jobs
from tests.console.runs.jobs import run_store
from tests.notebooks.browser import DRAWN, Browser, pages
from tests.notebooks.kernels import FOLDER, Kernel, running_lab, shown, with_parameters
from tests.notebooks.terminal import Terminal
from tests.shared import demo

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EVERY = os.environ.get("QWEN3VL_NOTEBOOKS") == "all"
"""The first notebook makes its own loop; else it finds the one that the demo's tests made."""
CLICKED = "document.addEventListener('click', () => { window.clicked = performance.now(); }, {capture: true, once: true})"
SHORT = {"2_": {"train_iters": 50_000}, "3_": {"train_iters": 4, "checkpoints": 2, "pictures": 2}}
"""Parameters by notebook, for a browser that stops what it starts, and for trainings of seconds."""


def cells(notebook) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def test_there_are_four_notebooks_in_order():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_contain_valid_python_and_commands(notebook):
    for cell in cells(notebook):
        for command in re.findall(r"^!qwen3vl (.*)$", cell, re.MULTILINE):
            build_parser().parse_args(command.replace("{workspace}", "folder").split())
        ast.parse(re.sub(r"^[!%].*$", "pass", cell, flags=re.MULTILINE))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_outputs_and_has_one_cell_of_parameters(notebook):
    whole = json.loads(notebook.read_text())
    for cell in whole["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
    assert sum("parameters" in c["metadata"].get("tags", []) for c in whole["cells"]) == 1
    assert whole["cells"][0]["cell_type"] == "markdown" and "widgets" not in whole["metadata"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Iterator[Path]:
    """A folder with a workspace in which all but the first notebook work, with the demo's pictures."""
    folder = tmp_path_factory.mktemp("notebooks")
    made, _ = demo(tmp_path_factory)
    for name in ("train", "held-out", "base-hf"):
        shutil.copytree(made / name, folder / "work" / name)
    with run_store(folder / "work" / "runs"):
        yield folder


@pytest.fixture(scope="module")
def kernel(work) -> Iterator[Kernel]:
    """One kernel for all notebooks: starting one, and importing in it, is most of what a notebook costs here."""
    with Kernel(work) as made:
        yield made


@pytest.mark.slow
def test_quickstart_runs(tmp_path_factory, tmp_path, kernel):
    """On the workspace of the demo, which has made its loop: the command says so, stage by stage."""
    workspace = tmp_path / "new" if EVERY else demo(tmp_path_factory)[0]
    done = kernel.execute("1_quickstart.ipynb", workspace=workspace)
    code = [c for c in done.cells if c.cell_type == "code"]
    pages, printed = ("\n".join(shown(c, kind) for c in code) for kind in ("text/html", "text/plain"))
    assert printed.count("done before") == (0 if EVERY else 5)
    assert "data:image/svg+xml" in pages and pages.count("data:image/jpeg") == 8
    assert "accuracy" in printed and all(f"{n:04d}-" in pages for n in (3, 5))


@pytest.mark.slow
def test_compare_and_choose_runs(work, kernel):
    done = kernel.execute("3_compare_and_choose.ipynb", workspace=work / "work", **SHORT["3_"])
    (view,) = [c for c in done.cells if c.source.startswith("view = ")]
    page = shown(view, "text/html")
    assert page.count("data:image/jpeg") == 2 and all(f"<b>{name}</b>" in page for name in ("base", "step 2", "step 4"))
    assert "ROUGE-L" in page and "ROUGE-L" in shown(next(c for c in done.cells if c.source.startswith("scores(")))
    assert "model.safetensors" in shown(done.cells[-1])


@pytest.mark.slow
def test_prepare_and_inspect_runs(work, kernel):
    done = kernel.execute("4_prepare_and_inspect.ipynb", workspace=work / "work")
    text = "\n".join(shown(cell) for cell in done.cells if cell.cell_type == "code")
    assert "{'missing_picture': 1, 'broken_picture': 1}" in text
    (preview,) = [c for c in done.cells if c.source.startswith("preview = ")]
    assert "trained tokens" in shown(preview, "text/html")


@pytest.mark.slow
def test_finetune_and_watch_runs_leaves_one_updater_and_one_run_and_a_training_outlives_its_kernel(work, kernel):
    """Its widget cells run a second time; the kernel is then shut down while a training that it started goes on to its end."""
    first = cells(FOLDER / "2_finetune_and_watch.ipynb")
    again = [next(c for c in first if c.startswith(start)) for start in ("launcher = Launcher(", "monitor = RunMonitor(", "run = launcher")]
    count = (
        "import threading\nmonitor.wait()\n"
        "looking = sum(t.name == 'qwen3vl-notebook' for t in threading.enumerate())\n"
        "names = [r.name for r in launcher.store.list()]\n"
        "looking, [names.count(name) for name in ('watched', 'watched-lower-lr')], len(monitor.figure.data)"
    )
    lives = "launcher.fill(name='outlives', train_iters=10, eval_interval=10)\nlauncher.start()"
    store = RunStore(work / "work" / "runs")
    done = kernel.execute("2_finetune_and_watch.ipynb", [*again, count, lives], workspace=work / "work", train_iters=3)
    code = [c for c in done.cells if c.cell_type == "code"]
    # the monitor of the cell that ran twice and the table: two threads
    expected = "(2, [1, 1], 2)"
    assert shown(code[-2]).strip() == expected
    monitor = next(c for c in code if c.source.startswith("monitor = "))
    assert [sorted(output.data) for output in monitor.outputs] == [["text/html", "text/plain"], [VIEW, "text/plain"]]
    (run,) = [r for r in store.list() if r.alive]
    process = kernel.manager.provisioner.pid
    assert run.name == "outlives" and jobs.is_running(process)
    kernel.end()
    assert run.alive and not jobs.is_running(process)
    assert launch.wait(run, 240) == "done"
    assert metrics(run).index.tolist() == list(range(1, 11))
    assert store.get("watched").status == "done"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from pages()


@pytest.fixture(scope="module")
def entered(browser, lab) -> Browser:
    """The browser, in JupyterLab."""
    browser.enter(*lab[:2])
    return browser


@pytest.fixture(scope="module")
def lab(work) -> Iterator[tuple[str, str, str]]:
    """(address, token, what it said) of `qwen3vl notebook`, with copies of the notebooks that work in the folder of the others."""
    pytest.importorskip("jupyterlab", reason="no JupyterLab: pip install -e '.[test]'")
    folder = work / "copies"
    folder.mkdir()
    for path in NOTEBOOKS:
        notebook = with_parameters(nbformat.read(path, 4), {"workspace": work / "work", **SHORT.get(path.name[:2], {})})
        nbformat.write(notebook, folder / path.name)
    with running_lab(work, folder, QWEN3VL_GRACE="5") as running:
        yield running


@pytest.mark.slow
def test_jupyterlab_requires_its_token(lab):
    address, token, said = lab
    assert all(path.name in said for path in NOTEBOOKS)
    with urllib.request.urlopen(f"{address}/api/contents?token={token}", timeout=240) as answer:
        content = answer.read(1 << 20)
    assert all(path.name.encode() in content for path in NOTEBOOKS)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/api/contents", timeout=240)


@pytest.mark.slow
def test_in_a_browser_a_click_starts_a_run_whose_curve_grows_and_stops(entered, work):
    browser, page, store = entered, entered.page, RunStore(work / "work" / "runs")
    before = {run.id for run in store.list()}
    browser.open("2_finetune_and_watch.ipynb", "Finetune, and watch it")
    browser.run_cells(8)
    browser.shows("TP 1 · PP 1 · CP 1 · DP 1 = 1 process")
    start = browser.button("Start finetune")
    browser.shows(re.compile("on each GPU, an estimate"))
    start.click()
    browser.shows(re.compile(r"run \d{4}-watched started"))
    browser.until(f"({DRAWN})[0]?.[0] >= 3")
    some = browser.points()[0][0]
    browser.until(f"({DRAWN})[0][0] > {some + 2}")
    curve = page.locator(".js-plotly-plot").first
    curve.scroll_into_view_if_needed()
    # new points arrive, and the zoom stays
    browser.zoom()
    window, last = browser.window(), browser.points()[0][-1]
    step = page.locator(".jp-OutputArea-output td", has_text=re.compile(r"^\d+/50000$")).first
    shown_step = step.inner_text()
    browser.expect(step).not_to_have_text(shown_step)
    assert browser.window() == window and last
    browser.keep(work, "2-zoom", curve)
    page.locator(".js-plotly-plot .nsewdrag").first.dblclick()
    browser.until("document.querySelector('.js-plotly-plot')._fullLayout.xaxis.autorange")
    picture = browser.download(lambda: page.locator(".modebar-btn[data-title*='Download']").first.click())
    assert picture.read_bytes().startswith(b"\x89PNG")
    (run,) = [r for r in store.list() if r.id not in before and r.kind == "finetune"]
    assert run.alive
    # the cell that waits for the run: what is clicked meanwhile is answered before it ends
    browser.run_again("run = launcher.start()")
    waiting = browser.find(".jp-CodeCell", has_text="run = launcher.start()").first.locator(".jp-InputPrompt").first
    browser.expect(waiting).to_have_text("[*]:")
    took = []
    for scale in ("log", "linear"):
        page.evaluate(CLICKED)
        page.get_by_label("log y").click()
        browser.until(f"document.querySelector('.js-plotly-plot')._fullLayout.yaxis.type === '{scale}'")
        took.append(page.evaluate("performance.now() - window.clicked"))
    assert waiting.inner_text().strip() == "[*]:" and run.alive
    assert min(took) < 3000, f"milliseconds from click to curve on a busy machine: {took}"
    browser.button("Stop run").click()
    assert launch.wait(run, 240) == "stopped"
    browser.expect(waiting).to_have_text(re.compile(r"\[\d+\]:"))
    # in the widget; the picture that the file keeps says it, too, and is hidden
    browser.expect(browser.find(".qwen3vl-box td", has_text="■ stopped").first).to_be_visible()
    steps = [row["step"] for row in map(json.loads, run.metrics.read_text().splitlines()) if row["kind"] == "train"]
    browser.until(f"document.querySelector('.js-plotly-plot')._fullData[0].x.slice(-1)[0] === {steps[-1]}")
    # the cell once more: its figure is of a run that sends nothing any more, and takes the place of the one before
    curve.evaluate("plot => plot.dataset.before = 'yes'")
    browser.run_again("monitor = RunMonitor")
    browser.until("document.querySelectorAll('.js-plotly-plot').length === 1 && !document.querySelector('[data-before]')")
    browser.until(f"document.querySelector('.js-plotly-plot')._fullData?.[0]?.x.slice(-1)[0] === {steps[-1]}")
    browser.keep_both(work, "2-form", start)
    browser.keep_both(work, "2-stopped", page.locator(".js-plotly-plot").first)
    assert not browser.errors


@pytest.mark.slow
def test_in_a_browser_two_captions_are_compared_and_voted_on(entered, work):
    """The notebook's own picture of the widget comes before it, and is hidden; with all notebooks, it is what is there the next day."""
    browser, store = entered, RunStore(work / "work" / "runs")
    before = store.list()
    browser.open("3_compare_and_choose.ipynb", "Compare captions")
    browser.run_cells(11)
    view = browser.find(".jp-CodeCell", has_text="view = CompareCaptions")
    widget, stored = view.locator(".qwen3vl-box"), view.locator("[class^=qwen3vl-stored]")
    for name in ("base", "step 4"):
        browser.expect(widget.locator(".qwen3vl b", has_text=re.compile(f"^{name}$")).first).to_be_visible()
    picture = widget.locator("img.widget-image")
    browser.expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 0
    assert all(button.is_visible() for button in widget.locator("button").all()) and not stored.is_visible()
    widget.locator("button", has_text="step 4 is best").click()
    browser.expect(widget.locator("button.mod-active", has_text="step 4 is best")).to_be_visible()
    browser.expect(widget.locator(".qwen3vl b", has_text=re.compile("^step 4 ★$"))).to_be_visible()
    if any(run.kind == "compare" for run in before):  # the notebook has run in here: its runs are taken, none is started again
        assert store.list() == before
    if EVERY:
        browser.keep_both(work, "3-captions", widget.locator("select"), "start")
        browser.close()
        browser.show("3_compare_and_choose.ipynb", "Compare captions")
        browser.expect(stored.locator("b", has_text=re.compile("^step 4 ★$"))).to_be_visible()
        browser.expect(view.get_by_text("model not found")).to_be_hidden()
        browser.keep(work, "3-next-day", view, "start")
    assert not browser.errors


@pytest.mark.slow
@pytest.mark.skipif(not EVERY, reason="a page that its own tests read: set QWEN3VL_NOTEBOOKS=all")
def test_in_a_browser_a_sample_shows_what_is_trained(entered, work):
    entered.open("4_prepare_and_inspect.ipynb", "Prepare data")
    entered.run_cells(14)
    entered.shows(re.compile("trained tokens"))
    entered.keep_both(work, "4-preview", entered.find(".qwen3vl mark").first)
    assert not entered.errors


RED, BLUE = (200, 30, 40), (30, 60, 210)
ACTIVE = (1, 120, 212)
"""Ground of the name of the screen that is shown, in the console's dark theme."""


@pytest.fixture
def comparison(tmp_path):
    """A compare run that is done: two pictures, each of one colour."""
    store = Store(tmp_path / "runs")
    run = store.other("compare")
    assert launch.wait(run, 240) == "done"
    rows = []
    for name, colour in (("red", RED), ("blue", BLUE)):
        Image.new("RGB", (96, 96), colour).save(tmp_path / f"{name}.png")
        for model, text in (("base", "Of course. Here is a detailed description: a red field, calm and quiet."), ("tuned", "a red field")):
            rows.append({"v": 1, "image": str(tmp_path / f"{name}.png"), "prompt": "What?", "model": model, "text": text, "done": True})
    (run.path / SAMPLES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield run
    store.tidy()


@pytest.mark.slow
def test_the_console_works_in_jupyterlabs_terminal(comparison, entered, work):
    """A picture in its own colours, and a vote by key."""
    page, terminal = entered.page, Terminal(entered, work)
    page.locator("li.lm-TabBar-tab", has_text="Launcher").first.click()
    page.locator(".jp-LauncherCard", has_text="Terminal").first.click()
    page.wait_for_selector(".jp-Terminal .xterm-screen")
    page.locator(".jp-Terminal .xterm-screen").click()
    page.keyboard.type(f"{sys.executable} -m qwen3vl_core.cli console --runs {comparison.path.parent}")
    page.keyboard.press("Enter")
    terminal.until(lambda: terminal.shows(ACTIVE, 100), "the console's bar, a screen's name in it marked")
    page.keyboard.press("4")
    terminal.until(lambda: terminal.shows(RED, 4000), "the red picture")
    page.keyboard.press("]")
    terminal.until(lambda: list(read_votes(comparison).choices.values()) == ["tuned"], "the vote")
    entered.keep(work, "terminal-compare")
    page.keyboard.press("ArrowRight")
    terminal.until(lambda: terminal.shows(BLUE, 4000) and not terminal.shows(RED, 200), "the blue picture, nothing left of the red one")
    page.keyboard.press("1")
    terminal.until(lambda: not terminal.shows(BLUE, 200), "the runs")
    entered.keep(work, "terminal-runs")
    page.keyboard.press("Control+q")
    assert not entered.errors
