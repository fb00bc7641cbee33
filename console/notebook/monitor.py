"""Live curves of runs: updated twice a second, at most two thousand points per trace, zoom kept."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from console.curves.lines import GrowingLine
from console.curves.smoothing import SHARE, average
from console.curves.thinning import MOST_POINTS
from console.formatting import GLYPHS
from console.notebook.data_frames import metrics
from console.notebook.figure import Figure
from console.notebook.html import COLOURS, box, escape, say, table
from console.notebook.live import Live
from console.notebook.stores import as_run, open_store
from console.notebook.svg import SvgLine, drawing
from console.notebook.waiting import wait_for
from console.runs import launch
from console.runs.series import MetricSeries
from console.runs.store import Run, RunStore
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import number, span
from qwen3vl_core.run_metrics import LOSS, METRICS, STEP_SECONDS, TOKENS_PER_SECOND, is_noisy, key_of, label_of, title_of
from qwen3vl_core.run_record import ALIVE, EVAL, TRAIN

NO_POINTS = "no points yet"
IN_TABLE = (LOSS, TOKENS_PER_SECOND)
"""Metrics in the table of runs under the curves."""
DIM = 0.45
"""Opacity of the raw values under the smoothed line."""
STATIC_POINTS = 400
COLUMNS = 150
"""A figure is about as wide as so many columns of characters: with more points than that a line gets an average."""
WIDEST = 0.5
"""Largest share of what is seen that an average's window covers."""
READ_BYTES, READ_SECONDS, MANY_ROWS = 1 << 20, 0.25, 2_000
"""A long run is read in pieces: no look takes longer than this, so that the widget stays responsive."""


@dataclass(frozen=True)
class Trace:
    """One line of the figure."""

    key: tuple[str, str]
    """(id of the run, `raw`, `smooth` or `eval`)."""
    x: np.ndarray
    y: np.ndarray
    slot: int
    """Index of the run among the shown runs, which selects its colour."""


class RunMonitor(Live):
    """Curves and status of one or several runs.

    runs: numbers, ids, names, `Run`s or a `Launcher`; by default the newest finetune of the store, even if it is
    started later, here or in the console. metric: as in metrics.jsonl. smoothing: width of the averages' window as a share of what is
    seen, 0 (none) to 0.5; a line with few points is drawn as it is, as in the console.
    """

    def __init__(
        self, *runs: Any, store: RunStore | Path | str | None = None, metric: str = LOSS, smoothing: float = SHARE, log_y: bool = False
    ) -> None:
        super().__init__()
        stores = [run.store for run in runs if hasattr(run, "start_button")]
        self.store = stores[0] if stores else open_store(store)
        self._launchers = [run for run in runs if hasattr(run, "start_button")]
        chosen = [as_run(run, self.store) for run in runs if run not in self._launchers]
        if not 0 <= smoothing <= WIDEST:
            raise RequestError(f"smoothing {smoothing}: must be from 0 to {WIDEST:g}, a share of what is seen; use {SHARE:g}")
        self._series: dict[str, MetricSeries] = {}
        self._growing: dict[tuple[str, str], GrowingLine] = {}
        self._runs: dict[str, Run] = {}
        self._drawn: Any = None
        self._quiet = False
        self._pinned = bool(chosen)
        wide = {"layout": W.Layout(width="230px"), "style": {"description_width": "70px"}}
        self.run_select = W.SelectMultiple(options=[], rows=4, description="runs", layout=W.Layout(width="420px"))
        names = [*METRICS, *([] if metric in METRICS else [metric])]
        self.metric_menu = W.Dropdown(options=[(label_of(n), n) for n in names], value=metric, description="metric", **wide)
        self.smoothing_slider = W.FloatSlider(
            value=smoothing, min=0.0, max=WIDEST, step=0.01, description="average", continuous_update=False, readout_format=".0%", **wide
        )
        self.log_box = W.Checkbox(value=log_y, description="log y", indent=False, layout=W.Layout(width="80px"))
        self.csv_button = W.Button(description="CSV", icon="download", tooltip="Write the metrics of these runs as a CSV file here")
        self.image_button = W.Button(description="Picture", icon="image", tooltip="Write these curves as an SVG file here")
        self.stop_button = W.Button(description="Stop run", icon="stop", tooltip="Ask the runs to save a checkpoint and stop")
        self.status = W.HTML()
        camera = {"format": "png", "scale": 2, "filename": "qwen3vl"}
        self.figure = Figure(layout={
            "uirevision": "keep", "height": 380, "autosize": True,
            "margin": {"l": 60, "r": 20, "t": 20, "b": 40}, "template": "plotly_white",
            "xaxis": {"title": {"text": "step"}}, "yaxis": {"type": "log" if log_y else "linear", "hoverformat": ".4~g"},
            "legend": {"orientation": "h"}, "showlegend": True, "hovermode": "x unified",
        }, config={"displaylogo": False, "displayModeBar": True, "showSendToCloud": False, "toImageButtonOptions": camera})  # fmt: skip
        self.image_button.on_click(self._image_clicked)
        self.csv_button.on_click(self._csv_clicked)
        self.stop_button.on_click(self._stop_clicked)
        self.run_select.observe(self._chosen, names="value")
        for control in (self.metric_menu, self.smoothing_slider, self.log_box):
            control.observe(lambda change: self._look(), names="value")
        self.children = [
            W.HBox([self.run_select, W.VBox([self.metric_menu, self.smoothing_slider]),
                    W.VBox([self.log_box, self.stop_button]), W.VBox([self.csv_button, self.image_button])]),
            W.VBox([self.figure], layout=W.Layout(width="100%")), self.status, self.message,
        ]  # fmt: skip
        self._list(chosen)
        self._read(self.runs)
        self._check_metric(metric)
        self.begin()

    def __repr__(self) -> str:
        return f"RunMonitor({', '.join([*(run.id for run in self.runs), f'metric={self.metric_menu.value!r}'])})"

    def _check_metric(self, metric: str) -> None:
        """Raises RequestError for a metric that no run records, with those that there are."""
        recorded = dict.fromkeys(key for run in self.runs for key in self._series[run.id].keys if "/" not in key)
        if metric in METRICS or metric in recorded:
            return
        known = [*recorded] or [*METRICS]
        close = difflib.get_close_matches(metric, [*recorded, *METRICS], 1, 0.6)
        advice = f"did you mean {close[0]}? " if close else ""
        raise RequestError(f"metric {metric}: no such metric; {advice}choose from {', '.join(known)}")

    # selection

    @property
    def runs(self) -> list[Run]:
        """The shown runs, newest first."""
        return [self._runs[id] for id in self.run_select.value if id in self._runs]

    def show(self, *runs: Any) -> None:
        """Show these runs. Raises RequestError for a run that does not exist."""
        chosen = [as_run(run, self.store) for run in runs]
        with self.lock:
            self._pinned = bool(chosen)
            self._list(chosen)
        self._look()

    def _chosen(self, change: Any) -> None:
        if not self._quiet:
            self._pinned = bool(self.run_select.value)
            self._look()

    def _list(self, chosen: Iterable[Run] = ()) -> None:
        """Update the menu. A monitor without chosen runs follows the newest run."""
        for launcher in self._launchers:
            if launcher.run is not None and not self._pinned:
                chosen = [launcher.run]
        chosen = list(chosen)
        listed = [run for run in self.store.list() if run.kind == "finetune"]
        listed += [run for run in chosen if run not in listed]
        self._runs = {run.id: self._runs.get(run.id, run) for run in listed}
        wanted = [run.id for run in chosen] or [id for id in self.run_select.value if id in self._runs]
        if not self._pinned and not chosen and not self._launchers:
            wanted = [listed[0].id] if listed else []
        if tuple(self._runs) != self.run_select.options or tuple(wanted) != self.run_select.value:
            self._quiet = True
            try:
                with self.run_select.hold_sync():
                    self.run_select.options = tuple(self._runs)
                    self.run_select.value = tuple(id for id in self._runs if id in wanted)
            finally:
                self._quiet = False

    # display

    def look(self) -> bool:
        """Read what is new in the shown runs, and update what has changed. Returns whether there may be more."""
        self._list()
        shown = self.runs
        more = self._read(shown)
        self._offer_metrics(shown)
        self._draw(shown)
        statuses = [(run, run.status) for run in shown]
        text = self._status(statuses)
        if text != self.status.value:
            self.status.value = text
        self.stop_button.disabled = not any(status in ALIVE for _, status in statuses)
        return more

    def _read(self, shown: list[Run]) -> bool:
        """Read new rows for at most READ_SECONDS. Returns whether there may be more."""
        until, more = time.monotonic() + READ_SECONDS, True
        while more and time.monotonic() < until:
            more = False
            for run in shown:
                series = self._series.setdefault(run.id, MetricSeries(run.metrics))
                more |= series.update(READ_BYTES) >= MANY_ROWS
        return more

    def _offer_metrics(self, shown: list[Run]) -> None:
        known = {name for _, name in self.metric_menu.options}
        new = [key for run in shown for key in self._series[run.id].keys if "/" not in key and key not in known]
        if new:
            self.metric_menu.options = [*self.metric_menu.options, *((label_of(key), key) for key in dict.fromkeys(new))]

    @property
    def window(self) -> tuple[float, float] | None:
        """The range of steps of the zoom; None: not zoomed."""
        return self.figure.window

    def traces(self, shown: list[Run], most: int = MOST_POINTS, window: tuple[float, float] | None = None) -> list[Trace]:
        """The lines of these runs, each with at most `most` points."""
        metric, share = self.metric_menu.value, self.smoothing_slider.value if is_noisy(self.metric_menu.value) else 0.0
        traces = []
        view = window or self._extent(shown, metric)
        for slot, run in enumerate(shown):
            for role, key in (("raw", metric), ("smooth", metric), ("eval", key_of(EVAL, metric))):
                x, y = self._series[run.id].xy(key)
                if role == "smooth":
                    mean = average(x, y, view, COLUMNS, share)
                    if mean is not None:
                        traces.append(Trace((run.id, role), mean.x, mean.y, slot))
                elif len(x) or role == "raw":
                    traces.append(Trace((run.id, role), *self._line_of(run, key)(x, y, window, most), slot))
        return traces

    def _extent(self, shown: list[Run], metric: str) -> tuple[float, float]:
        """First and last step of the shown runs."""
        steps = [x for run in shown if len(x := self._series[run.id].xy(metric)[0])]
        return (float(min(x[0] for x in steps)), float(max(x[-1] for x in steps))) if steps else (0.0, 0.0)

    def _line_of(self, run: Run, key: str) -> GrowingLine:
        version = self._series[run.id].version
        known = self._growing.get((run.id, key))
        if known is None or known.version != version:
            known = self._growing[run.id, key] = GrowingLine(version)
        return known

    def _draw(self, shown: list[Run]) -> None:
        metric, window = self.metric_menu.value, self.window
        read = [self._series[run.id] for run in shown]
        sizes = [(series.version, *(len(series.xy(key)[0]) for key in (metric, key_of(EVAL, metric)))) for series in read]
        now = (metric, self.smoothing_slider.value, self.log_box.value, window, [run.id for run in shown], sizes)
        if now == self._drawn:
            return
        traces = self.traces(shown, window=window)
        figure = self.figure
        with figure.batched_updates():
            kind, title = "log" if self.log_box.value else "linear", label_of(metric)
            if (figure.layout.yaxis.type, figure.layout.yaxis.title.text) != (kind, title):
                # a zoom of the y axis does not apply to another metric or scale
                figure.update_layout(yaxis={"type": kind, "title": {"text": title}, "autorange": True, "uirevision": f"{metric} {kind}"})
            self._say_empty(not any(len(trace.x) for trace in traces))
            same = [trace.key for trace in traces] == [tuple(data.meta) for data in figure.data]
            for data, trace in zip(figure.data, traces, strict=True) if same else ():
                data.x, data.y = trace.x, trace.y
            if not same:
                figure.data = ()
                figure.add_traces([self._line(trace, traces) for trace in traces])
        self._drawn = now

    def _say_empty(self, empty: bool) -> None:
        """Without points, show a note and hide the axis labels, which would mean nothing."""
        others = [note for note in self.figure.layout.annotations if note.text != NO_POINTS]
        if empty != (len(others) < len(self.figure.layout.annotations)):
            position = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
            note = {"text": NO_POINTS, "showarrow": False, "opacity": 0.65, **position}
            self.figure.layout.annotations = [*others, note] if empty else others
            axis = {"showticklabels": not empty}
            self.figure.update_layout(xaxis=axis, yaxis=axis)

    def _line(self, trace: Trace, traces: list[Trace]) -> go.Scatter:
        run, role = trace.key
        colour = _colour(trace.slot)
        smoothed = any(other.key == (run, "smooth") for other in traces)
        looks: dict[str, dict[str, Any]] = {
            "raw": {
                "line": {"color": colour, "width": 1 if smoothed else 1.8}, "opacity": DIM if smoothed else 1.0,
                "showlegend": not smoothed,
            },
            "smooth": {"line": {"color": colour, "width": 2.2}},
            "eval": {
                "line": {"color": colour, "width": 1.5, "dash": "dot"}, "mode": "lines+markers",
                "marker": {"size": 7, "symbol": "diamond"},
            },
        }  # fmt: skip
        name = {"raw": f"{run} as measured" if smoothed else run, "smooth": run, "eval": f"{run} val"}[role]
        fixed = {"name": name, "meta": list(trace.key), "mode": "lines", "connectgaps": False}
        return go.Scatter(x=trace.x, y=trace.y, **{**fixed, **looks[role]})

    def _status(self, statuses: list[tuple[Run, str]]) -> str:
        if not statuses:
            if self._runs:
                return say("no run selected; choose one in the list, or start one", "dim")
            return say(f"no finetune in {self.store.root} yet; one that starts, here or in the console, appears", "dim")
        rows = []
        for slot, (run, status) in enumerate(statuses):
            series = self._series[run.id]
            row, total = series.latest.get(TRAIN, {}), series.train_iters
            step = row.get("step")
            dot = f'<span style="color:{_colour(slot)}">●</span>'
            left = "–"
            if status in ALIVE and isinstance(step, int) and total and isinstance(seconds := row.get(STEP_SECONDS), int | float):
                left = span((total - step) * seconds)
            shown = f"{step}/{total}" if step is not None and total else "–" if step is None else str(step)
            cells = [shown, *(number(row.get(key)) for key in IN_TABLE), left]
            rows.append([f"{dot} {escape(run.id)}", f"{GLYPHS[status]} {escape(status)}", *map(escape, cells)])
        return box(table(("run", "status", "step", *map(title_of, IN_TABLE), "left"), rows))

    # buttons

    def frame(self) -> pd.DataFrame:
        """The metrics of the shown runs, indexed by run and step."""
        frames = {run.id: metrics(run) for run in self.runs}
        return pd.concat(frames, names=["run", "step"]) if frames else pd.DataFrame()

    def to_csv(self, path: Path | str | None = None) -> Path:
        """Write `frame` as CSV, by default beside the notebook, named after the runs. Raises RequestError."""
        return self._write("CSV", path, "csv", lambda file: self.frame().to_csv(file))

    def drawing(self, most: int = MOST_POINTS, **looks: Any) -> str:
        """The shown curves as an SVG element, with the same lines, zoom and axes."""
        with self.lock:
            traces = self.traces(self.runs, most, self.window)
            smoothed = {trace.key[0] for trace in traces if trace.key[1] == "smooth"}
            metric = self.metric_menu.value
            lines = []
            for trace in traces:
                run, role = trace.key
                dim = role == "raw" and run in smoothed
                name = "" if dim else f"{run} val" if role == "eval" else run
                lines.append(SvgLine(name, trace.x, trace.y, _colour(trace.slot), 1.0 if dim else 1.8, DIM if dim else 1.0, role == "eval"))
            return drawing(lines, y_title=label_of(metric), log_y=self.log_box.value, **looks)

    def to_svg(self, path: Path | str | None = None) -> Path:
        """Write the curves as an SVG file, by default beside the notebook, named after the runs. Raises RequestError."""
        return self._write("SVG", path, "svg", lambda file: file.write_text(self.drawing(width=960, height=420, paper="white"), "utf-8"))

    def _write(self, what: str, path: Path | str | None, ending: str, write: Callable[[Path], Any]) -> Path:
        if not self.runs:
            raise RequestError(f"{what}: no run selected; choose one")
        target = Path(path or f"runs-{'-'.join(f'{run.number:04d}' for run in self.runs)}.{ending}").expanduser().absolute()
        temporary = target.with_name(target.name + ".tmp")
        try:
            write(temporary)
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise RequestError(f"{target}: {error.strerror or error}; choose another path") from None
        return target

    def _image_clicked(self, button: W.Button) -> None:
        with self.telling():
            self.message.value = say(f"wrote {self.to_svg()}", "good")

    def _csv_clicked(self, button: W.Button) -> None:
        with self.telling():
            self.message.value = say(f"wrote {self.to_csv()}", "good")

    def _stop_clicked(self, button: W.Button) -> None:
        with self.telling():
            asked = [run for run in self.runs if run.alive]
            for run in asked:
                launch.stop(run)
            names = ", ".join(run.id for run in asked) or "no run is alive"
            self.message.value = say(f"asked to stop: {names}; a checkpoint is saved first")
        self._look()

    def wait(self, timeout: float | None = None) -> list[str]:
        """Wait until the shown runs have ended. Returns their statuses. The curves are updated meanwhile, and every widget answers.

        An interrupt ends the wait with WaitInterrupted; the runs continue.
        """
        statuses = wait_for(self.runs, timeout=timeout)
        self._look()
        return statuses

    def _repr_html_(self) -> str:
        with self.lock:
            return self.status.value + box(self.drawing(STATIC_POINTS))


def _colour(slot: int) -> str:
    return COLOURS[slot % len(COLOURS)]
