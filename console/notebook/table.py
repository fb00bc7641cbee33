"""A live table of all runs of a store, with stop and resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W
import pandas as pd

from console.formatting import GLYPHS
from console.notebook import data_frames
from console.notebook.html import STYLE, box, code, escape, say, table
from console.notebook.live import Live
from console.notebook.stores import open_store
from console.runs import launch, run_text
from console.runs.store import Run, RunStore
from console.runs.tail import LogTail
from qwen3vl_core.formats import number
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.run_metrics import listed_keys, title_of
from qwen3vl_core.run_record import ALIVE

WIDTH = 110
LOG_LINES = 30
SECONDS = 1.0


class RunsTable(Live):
    """The runs of a store, newest first: choose one, see its details and its log, stop or resume it.

    Runs that the console or a command starts appear automatically. `frame()` returns the table as a data frame.
    """

    def __init__(self, store: RunStore | Path | str | None = None, *, rows: int = 8) -> None:
        super().__init__()
        self.store = open_store(store)
        self._runs: dict[str, Run] = {}
        self._log: tuple[str, LogTail] | None = None
        self._quiet = False
        self.head = W.HTML()
        self.select = W.Select(options=[], rows=rows, layout=W.Layout(width="960px")).add_class("qwen3vl-lines")
        self.stop_button = W.Button(description="Stop", icon="stop", tooltip="Ask the run to save a checkpoint and stop")
        self.resume_button = W.Button(description="Resume", icon="play", tooltip="Resume a failed, stopped or lost run")
        self.log_box = W.Checkbox(value=False, description="show log", indent=False)
        self.detail = W.HTML()
        self.stop_button.on_click(lambda button: self._act(launch.stop, "asked to stop; a checkpoint is saved first"))
        self.resume_button.on_click(lambda button: self._act(launch.resume, "resumed"))
        self.select.observe(self._chosen, names="value")
        self.log_box.observe(lambda change: self._look(), names="value")
        buttons = W.HBox([self.stop_button, self.resume_button, self.log_box])
        self.children = [self.head, self.select, buttons, self.message, self.detail]
        self.begin(SECONDS)

    def __repr__(self) -> str:
        return f"RunsTable({str(self.store.root)!r}, {len(self._runs)} runs)"

    @property
    def run(self) -> Run | None:
        """The chosen run."""
        return self._runs.get(self.select.value)

    def choose(self, run: Any) -> None:
        """Choose a run by number, id or name. Raises RequestError."""
        self._look()
        self.select.value = self.store.get(run.id if isinstance(run, Run) else run).id

    def _chosen(self, change: Any) -> None:
        if not self._quiet:
            self.message.value = ""
            self._look()

    def look(self) -> None:
        """Read the store, and update what has changed."""
        runs = self.store.list()
        self._runs = {run.id: self._runs.get(run.id, run) for run in runs}
        if not runs:
            self.head.value = say(f"no runs in {self.store.root} yet; one that starts, here or in the console, appears", "dim")
            self.select.options = ()
        else:
            head, *lines = run_text.table(list(self._runs.values()), WIDTH)
            # browsers collapse several spaces in a menu into one
            options = tuple((line.replace(" ", "\u00a0"), id) for line, id in zip(lines, self._runs, strict=True))
            if options != self.select.options:
                chosen = self.select.value
                self._quiet = True
                try:
                    with self.select.hold_sync():
                        self.select.options = options
                        self.select.value = chosen if chosen in self._runs else runs[0].id
                finally:
                    self._quiet = False
            title = f'{STYLE}<pre style="margin:0 0 0 4px;font-size:13px">{escape(head)}</pre>'
            if self.head.value != title:
                self.head.value = title
        self._show_chosen()

    def _show_chosen(self) -> None:
        run = self.run
        status = run.status if run is not None else ""
        self.stop_button.disabled = status not in (*ALIVE, "lost")
        self.resume_button.disabled = status not in ("failed", "stopped", "lost")
        if run is None:
            shown = ""
        elif self.log_box.value:
            if self._log is None or self._log[0] != run.id:
                self._log = (run.id, LogTail(run.log, lines=LOG_LINES, width=400))
            tail = self._log[1]
            tail.read()
            shown = code("\n".join(map(untagged, [*tail.lines, *filter(None, [tail.partial])])) or "nothing printed yet")
        else:
            shown = code("\n".join(run_text.describe(run)))
        if self.detail.value != shown:
            self.detail.value = shown

    def _act(self, act: Callable[[Run], None], done: str) -> None:
        run = self.run
        if run is None:
            return
        with self.telling():
            act(run)
            self.message.value = say(f"run {run.id}: {done}", "good")
        self._look()

    def stop(self, run: Any = None) -> None:
        """Ask a run to stop, by default the chosen one. Raises RequestError."""
        launch.stop(self._named(run))

    def resume(self, run: Any = None) -> None:
        """Resume a failed, stopped or lost run, by default the chosen one. Raises RequestError and WorkError."""
        launch.resume(self._named(run))

    def _named(self, run: Any) -> Run:
        return self.store.get(self.select.value if run is None else run.id if isinstance(run, Run) else run)

    def frame(self) -> pd.DataFrame:
        """`runs` of this store."""
        return data_frames.runs(self.store)

    def _repr_html_(self) -> str:
        rows = []
        for run in self.store.list():
            last, status = run_text.last_of(run), run.status
            state = f"{GLYPHS[status]} {status}"
            cells = (run.id, run.kind, state, run_text.step_of(run, last), *(number(last.get(key)) for key in listed_keys()))
            rows.append([escape(cell) for cell in cells])
        return box(table(("run", "kind", "status", "step", *map(title_of, listed_keys())), rows))
