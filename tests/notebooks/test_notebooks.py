"""The example notebooks are whole, clean, call what exists, and run top to bottom."""

from __future__ import annotations

import ast
import json
import os
import re

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from console.runs import launch
from console.runs.store import RunStore
from qwen3vl_core.cli import build_parser
from tests.console.runs.jobs import run_store
from tests.notebooks.kernels import FOLDER, execute, shown

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EVERY = os.environ.get("QWEN3VL_NOTEBOOKS") == "all"
"""The two that train longer run only when they are asked for."""
longer = pytest.mark.skipif(not EVERY, reason="minutes: set QWEN3VL_NOTEBOOKS=all")


def cells(notebook) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def test_there_are_four_in_the_order_of_the_work():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_hold_python_and_commands_that_parse(notebook):
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


@pytest.mark.slow
def test_finetune_and_watch_runs_and_leaves_one_updater_one_run_and_what_lives(tmp_path):
    """Its two widget cells run a second time; the kernel then ends while a run trains."""
    first = cells(FOLDER / "2_finetune_and_watch.ipynb")
    again = [next(c for c in first if c.startswith(start)) for start in ("launcher = Launcher(", "monitor = RunMonitor(", "run = launcher")]
    count = (
        "import threading\nmonitor.wait()\n"
        "looking = sum(t.name == 'qwen3vl-notebook' for t in threading.enumerate())\n"
        "looking, [r.id for r in launcher.store.list()], len(monitor.figure.data)"
    )
    lives = "launcher.fill(train_iters=100000, name='lives')\nlauncher.start().id"
    with run_store(tmp_path / "work" / "runs") as store:
        done = execute("2_finetune_and_watch.ipynb", tmp_path, [*again, count, lives], workspace=tmp_path / "work", train_iters=6)
        code = [c for c in done.cells if c.cell_type == "code"]
        # the monitor of the cell that ran twice and the table: two threads
        expected = "(2, ['0003-watched-lower-lr', '0002-watched', '0001-prepare'], 3)"
        assert shown(code[-2]).strip() == expected
        monitor = next(c for c in code if c.source.startswith("monitor = "))
        assert "application/vnd.jupyter.widget-view+json" in monitor.outputs[-1].data and "text/html" in monitor.outputs[-1].data
        run = store.get(shown(code[-1]).strip().strip("'"))
        assert run.alive and RunStore(store.root).get("watched").status == "done"
        launch.stop(run)
        assert launch.wait(run, 60) == "stopped"


@pytest.mark.slow
def test_prepare_and_inspect_runs(tmp_path):
    done = execute("4_prepare_and_inspect.ipynb", tmp_path, workspace=tmp_path / "work")
    text = "\n".join(shown(cell) for cell in done.cells if cell.cell_type == "code")
    assert "{'missing_picture': 1, 'broken_picture': 1}" in text
    (preview,) = [c for c in done.cells if c.source.startswith("preview = ")]
    assert "trained tokens" in shown(preview, "text/html")


@pytest.mark.slow
@longer
def test_compare_and_choose_runs(tmp_path):
    values = {"workspace": tmp_path / "work", "train_iters": 8, "checkpoints": 2, "pictures": 2}
    done = execute("3_compare_and_choose.ipynb", tmp_path, **values)
    (view,) = [c for c in done.cells if c.source.startswith("view = ")]
    page = shown(view, "text/html")
    assert page.count("data:image/jpeg") == 2 and "<b>base</b>" in page and "<b>tuned</b>" in page
    assert "model.safetensors" in shown(done.cells[-1])


@pytest.mark.slow
@longer
def test_quickstart_runs(tmp_path):
    done = execute("1_quickstart.ipynb", tmp_path, workspace=tmp_path / "work")
    pages = "\n".join(shown(c, "text/html") for c in done.cells if c.cell_type == "code")
    assert "<svg" in pages and pages.count("data:image/jpeg") == 8
    assert "accuracy" in "\n".join(shown(c) for c in done.cells if c.cell_type == "code")
