"""What is left of a widget without its kernel: the present picture, in the notebook's file and in a page made of it."""

from __future__ import annotations

import re
from base64 import b64decode

import nbformat
import pytest

pytest.importorskip("nbclient")
pytest.importorskip("nbconvert")

from nbclient import NotebookClient
from nbconvert import HTMLExporter

from console.notebook import CompareCaptions, DatasetPreview, Launcher, RunMonitor, RunsTable
from console.notebook.stored import VIEW
from tests.console.runs import jobs
from tests.notebooks.conftest import recorded
from tests.notebooks.kernels import Kernel

TRAINS = (
    "import json\nfile = open(here / 'metrics.jsonl', 'a')\n"
    "for n in range(1, 31): file.write(json.dumps({'kind': 'train', 'step': n, 'time': 1e9, 'loss': 3 / n}) + '\\n')\nfile.flush()"
)


@pytest.mark.slow
def test_the_file_keeps_the_curve_as_it_is_at_the_end_and_a_page_of_it_is_small_and_needs_no_network(store, tmp_path, trained):
    """As `nbconvert --execute` does it: nobody watches, and the run starts after its monitor is shown."""
    run = recorded(store, program=TRAINS, train_iters=30)
    cells = [
        f"from console.notebook import RunMonitor, RunsTable, wait\nmonitor = RunMonitor({run.number}, store={str(store.root)!r})\nmonitor",
        f"from console.runs import launch\nlaunch.start(monitor.runs[0])\nwait(monitor.runs[0])\nRunsTable({str(store.root)!r})",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with Kernel(tmp_path) as kernel:
        NotebookClient(notebook, timeout=300, km=kernel.manager).execute()
    picture, view = (output.data for output in notebook.cells[0].outputs)
    assert VIEW in view and "text/html" not in view and VIEW not in picture
    (svg,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', picture["text/html"])
    assert b64decode(svg).count(b"L") == 29 and "done" in picture["text/html"], "of the end, not of the beginning"
    assert run.id in notebook.cells[1].outputs[-2].data["text/html"]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    bare, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook())
    (tmp_path / "page.html").write_text(page)
    assert svg in page and len(page) - len(bare) < 150_000 and "plotly.js v" not in page
    assert len(nbformat.writes(notebook)) < 200_000


def test_every_widget_stores_its_picture_and_renews_it(store, dataset, monkeypatch):
    shown, updates = [], []

    class Handle:
        def update(self, bundle, raw):
            updates.append(bundle["text/html"])

    def display(bundle, raw, display_id=None):
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    widgets = [Launcher(store=store), RunMonitor(store=store), CompareCaptions(store=store), RunsTable(store), DatasetPreview(dataset)]
    for widget in widgets:
        widget._ipython_display_()
        html, view = shown[-2:]
        mark = widget.children[-1].shown.stored[0]
        assert (
            f'<div class="{mark}">' in html["text/html"] and view[VIEW]["model_id"] == widget.model_id and "script" not in html["text/html"]
        )
    table = widgets[3]
    run = recorded(store, program=jobs.SLEEPS, name="later")
    table.look()
    table.renew()
    assert not updates, "not more often than every ten seconds"
    table.close()
    assert [run.id in update for update in updates] == [True], "at its end it has what there is"
