"""Live curves of runs: updated twice a second, at most two thousand points per trace, zoom kept."""

from __future__ import annotations

import base64
import difflib
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as W
import pandas as pd

from console.curves.lines import GrowingLine
from console.curves.smoothing import SHARE, average
from console.curves.thinning import MOST_POINTS
from console.curves.visible import Visible, visible
from console.notebook.data_frames import metrics
from console.notebook.figure import Figure
from console.notebook.html import box, escape, say
from console.notebook.live import Live
from console.notebook.metric_grid import HEIGHT, POINTS, WIDTH, MetricGrid
from console.notebook.run_status import left_out, status_row, status_table
from console.notebook.step_captions import StepCaptions
from console.notebook.stores import as_run, open_store
from console.notebook.svg import drawing
from console.notebook.traces import RunColours, Trace, scatter, svg_line
from console.notebook.waiting import wait_for
from console.notebook.written_files import write_file
from console.notebook.x_axis import HOURS, STEP, TITLES, TOKENS_SEEN, scale
from console.runs import launch
from console.runs.series import MetricSeries
from console.runs.store import Run, RunStore
from qwen3vl_core.errors import RequestError
from qwen3vl_core.run_metrics import LOSS, METRICS, is_noisy, key_of, label_of
from qwen3vl_core.run_record import ALIVE, EVAL

NO_POINTS = "no points yet"
STATIC_POINTS = 400
COLUMNS = 150
"""A figure is about as wide as so many columns of characters: with more points than that a line gets an average."""
WIDEST = 0.5
"""Largest share of what is seen that an average's window covers."""
READ_BYTES, READ_SECONDS, MANY_ROWS = 1 << 20, 0.25, 2_000
"""A long run is read in pieces: no look takes longer than this, so that the widget stays responsive."""


class RunMonitor(Live):
    """Curves and status of one or several runs.

    runs: numbers, ids, names, `Run`s or a `Launcher`; by default the newest finetune of the store, even if it is
    started later, here or in the console. metric: as in metrics.jsonl. smoothing: width of the averages' window as a share of what is
    seen, 0 (none) to 0.5; a line with few points is drawn as it is, as in the console. over: what x is, `step`, `tokens` or `hours`.
    cut_spikes: whether y leaves out a few values that are far from all others. grid: also small curves of every recorded metric.

    The captions that the first run wrote as it learned are beside the curve, at any step.
    `figure` is a plotly FigureWidget: traces, shapes and layout that you add stay.
    """

    def __init__(
        self,
        *runs: Any,
        store: RunStore | Path | str | None = None,
        metric: str = LOSS,
        smoothing: float = SHARE,
        log_y: bool = False,
        over: str = STEP,
        cut_spikes: bool = True,
        grid: bool = False,
    ) -> None:
        super().__init__()
        stores = [run.store for run in runs if hasattr(run, "start_button")]
        self.store = stores[0] if stores else open_store(store)
        self._launchers = [run for run in runs if hasattr(run, "start_button")]
        chosen = [as_run(run, self.store) for run in runs if run not in self._launchers]
        if store is None and not stores and chosen:
            self.store = open_store(chosen[0].path.parent)  # the one that a given folder is in
        if not 0 <= smoothing <= WIDEST:
            raise RequestError(f"smoothing {smoothing}: must be from 0 to {WIDEST:g}, a share of what is seen; use {SHARE:g}")
        if over not in TITLES:
            raise RequestError(f"over {over}: must be one of {', '.join(TITLES)}")
        self._ours: list[Any] = []
        """The traces of the figure that are not the user's."""
        self._colours = RunColours()
        self._axes: tuple[str, str, str] | None = None
        self._cut: Visible | None = None
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
        self.x_menu = W.Dropdown(options=[("step", STEP), ("tokens", TOKENS_SEEN), ("time", HOURS)], value=over, description="over", **wide)
        self.log_box = W.Checkbox(value=log_y, description="log y", indent=False, layout=W.Layout(width="110px"))
        self.spike_box = W.Checkbox(
            value=cut_spikes, description="cut spikes", indent=False, tooltip="Leave out of y a few values that are far from all others",
            layout=W.Layout(width="110px"),
        )  # fmt: skip
        self.grid_box = W.Checkbox(
            value=grid, description="all metrics", indent=False, tooltip="Small curves of every metric that these runs record",
            layout=W.Layout(width="110px"),
        )  # fmt: skip
        self.grid, self.captions = MetricGrid(), StepCaptions()
        self.csv_button = W.Button(description="CSV", icon="download", tooltip="Write the metrics of these runs as a CSV file here")
        self.image_button = W.Button(description="Picture", icon="image", tooltip="Write these curves as an SVG file here")
        self.stop_button = W.Button(description="Stop run", icon="stop", tooltip="Ask the runs to save a checkpoint and stop")
        self.status = W.HTML()
        camera = {"format": "png", "scale": 2, "filename": "qwen3vl"}
        self.figure = Figure(layout={
            "uirevision": "keep", "height": 380, "autosize": True,
            "margin": {"l": 60, "r": 20, "t": 20, "b": 40}, "template": "plotly_white", "yaxis": {"hoverformat": ".4~g"},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}, "showlegend": True, "hovermode": "x unified",
            "hoverlabel": {"namelength": -1},
        }, config={"displaylogo": False, "displayModeBar": True, "showSendToCloud": False, "toImageButtonOptions": camera})  # fmt: skip
        self.image_button.on_click(self._image_clicked)
        self.csv_button.on_click(self._csv_clicked)
        self.stop_button.on_click(self._stop_clicked)
        self.run_select.observe(self._chosen, names="value")
        for control in (self.metric_menu, self.smoothing_slider, self.x_menu, self.log_box, self.spike_box, self.grid_box):
            control.observe(lambda change: self._look(), names="value")
        self.children = [
            W.HBox([self.run_select, W.VBox([self.metric_menu, self.x_menu, self.smoothing_slider]),
                    W.VBox([self.log_box, self.spike_box, self.grid_box, self.stop_button]), W.VBox([self.csv_button, self.image_button])]),
            W.HBox([W.VBox([self.figure], layout=W.Layout(flex="3 1 420px", min_width="0")), self.captions],
                   layout=W.Layout(width="100%", flex_flow="row wrap")),
            self.grid, self.status, self.message,
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
        self._draw_grid(shown)
        self.captions.show(shown[0] if shown else None)
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
                series = self._series.setdefault(run.id, MetricSeries(run.metrics, times=True))
                more |= series.update(READ_BYTES) >= MANY_ROWS
        return more

    def _offer_metrics(self, shown: list[Run]) -> None:
        known = {name for _, name in self.metric_menu.options}
        new = [key for run in shown for key in self._series[run.id].keys if "/" not in key and key not in known]
        if new:
            self.metric_menu.options = [*self.metric_menu.options, *((label_of(key), key) for key in dict.fromkeys(new))]

    @property
    def window(self) -> tuple[float, float] | None:
        """The range of x of the zoom, in steps, tokens or hours; None: not zoomed."""
        return self.figure.window

    def traces(
        self, shown: list[Run], most: int = MOST_POINTS, window: tuple[float, float] | None = None, metric: str | None = None
    ) -> list[Trace]:
        """The lines of these runs, each with at most `most` points. window: of x. metric: by default the chosen one."""
        metric = metric or self.metric_menu.value
        share = self.smoothing_slider.value if is_noisy(metric) else 0.0
        traces = []
        everything = self._extent(shown, metric)
        for run in shown:
            over = scale(self._series[run.id], self.x_menu.value)
            if over is None and self.x_menu.value != STEP:
                continue  # nothing recorded to count, which the line below says
            steps = over.steps_at(window) if over is not None and window else window
            colour = self._colours.of(run, shown)
            for role, key in (("raw", metric), ("smooth", metric), ("eval", key_of(EVAL, metric))):
                x, y = self._series[run.id].xy(key)
                if role == "smooth":
                    mean = average(x, y, steps or everything, COLUMNS, share)
                    if mean is None:
                        continue
                    x, y = mean.x, mean.y
                elif len(x) or role == "raw":
                    x, y = self._line_of(run, key)(x, y, steps, most)
                else:
                    continue
                traces.append(Trace((run.id, role), x if over is None else over.of(x), y, colour))
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
        looks = (metric, self.smoothing_slider.value, self.x_menu.value, self.log_box.value, self.spike_box.value)
        now = (looks, window, [run.id for run in shown], sizes)
        if now == self._drawn:
            return
        if self._axes is not None and self._axes[2] != self.x_menu.value:
            self.figure.shown.set_trait("window", None)  # the zoom of another axis
            window = None
        traces = self.traces(shown, window=window)
        smoothed = {trace.key[0] for trace in traces if trace.key[1] == "smooth"}
        figure = self.figure
        with figure.batched_updates():
            self._say_empty(not any(len(trace.x) for trace in traces))
            self._set_axes(traces)
            # what else the figure holds is the user's
            ours = [data for data in figure.data if any(data is each for each in self._ours)]
            same = [(*trace.key, trace.colour) for trace in traces] == [(*data.meta, data.line.color) for data in ours]
            for data, trace in zip(ours, traces, strict=True) if same else ():
                data.x, data.y = trace.x, trace.y
            if not same:
                theirs = tuple(data for data in figure.data if not any(data is each for each in ours))
                figure.data = theirs
                figure.add_traces([scatter(trace, trace.key[0] in smoothed) for trace in traces])
                self._ours = list(figure.data[len(theirs) :])
                figure.data = (*self._ours, *theirs)
        self._drawn = now

    def _draw_grid(self, shown: list[Run]) -> None:
        """Small curves of all metrics that the runs record, each with its own range of y."""

        def draw(metric: str) -> str:
            traces = self.traces(shown, POINTS, metric=metric)
            smoothed = {trace.key[0] for trace in traces if trace.key[1] == "smooth"}
            lines = [replace(svg_line(trace, trace.key[0] in smoothed), name="") for trace in traces]
            values = [trace.y for trace in traces if trace.key[1] != "smooth"]
            cut = visible(values) if self.spike_box.value else None
            y_range = (cut.low, cut.high) if cut is not None else None
            return drawing(lines, y_title=label_of(metric), x_title="", width=WIDTH, height=HEIGHT, y_range=y_range)

        recorded = dict.fromkeys(key for run in shown for key in self._series[run.id].keys if "/" not in key)
        metrics = [name for name in METRICS if name in recorded] + [name for name in recorded if name not in METRICS]
        self.grid.show(metrics if self.grid_box.value else [], self._drawn, draw)

    def _set_axes(self, traces: list[Trace]) -> None:
        """Set titles and scales when they change, so that the user's own stay, and the range of y."""
        metric, kind, over = self.metric_menu.value, "log" if self.log_box.value else "linear", self.x_menu.value
        now, before = (metric, kind, over), self._axes
        figure, self._axes = self.figure, now
        if before is None or before[:2] != now[:2]:
            # a zoom of the y axis does not apply to another metric or scale
            title = {"text": label_of(metric)}
            figure.update_layout(yaxis={"type": kind, "title": title, "autorange": True, "uirevision": f"{metric} {kind}"})
            self._cut = None
        if before is None or before[2] != over:
            figure.update_layout(xaxis={"title": {"text": TITLES[over]}, "autorange": True, "uirevision": over})
        # the average of a spike is as wide as its window
        values = [trace.y for trace in traces if trace.key[1] != "smooth"]
        cut = visible(values) if self.spike_box.value and kind == "linear" else None
        if cut != self._cut:
            y = {"range": [cut.low, cut.high], "autorange": False} if cut is not None else {"autorange": True}
            figure.update_layout(yaxis=y)
        self._cut = cut

    def _say_empty(self, empty: bool) -> None:
        """Without points, show a note and hide the axis labels, which would mean nothing."""
        others = [note for note in self.figure.layout.annotations if note.text != NO_POINTS]
        if empty != (len(others) < len(self.figure.layout.annotations)):
            position = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
            note = {"text": NO_POINTS, "showarrow": False, "opacity": 0.65, **position}
            self.figure.layout.annotations = [*others, note] if empty else others
            axis = {"showticklabels": not empty}
            self.figure.update_layout(xaxis=axis, yaxis=axis)

    def _status(self, statuses: list[tuple[Run, str]]) -> str:
        if not statuses:
            if self._runs:
                return say("no run selected; choose one in the list, or start one", "dim")
            return say(f"no finetune in {self.store.root} yet; one that starts, here or in the console, appears", "dim")
        shown = [run for run, _ in statuses]
        rows = [status_row(run, status, self._series[run.id], self._colours.of(run, shown)) for run, status in statuses]
        lacking = [run.id for run in shown if scale(self._series[run.id], self.x_menu.value) is None]
        return box(status_table(rows) + left_out(self._cut, self.x_menu.label, lacking if self.x_menu.value != STEP else []))

    # buttons

    def frame(self) -> pd.DataFrame:
        """The metrics of the shown runs, indexed by run and step; those of evaluations are called `val_loss` and so on."""
        frames = {}
        for run in self.runs:
            evaluated = metrics(run, EVAL).drop(columns="time", errors="ignore").add_prefix("val_")
            frames[run.id] = metrics(run).join(evaluated, how="outer")
        return pd.concat(frames, names=["run", "step"]) if frames else pd.DataFrame()

    def to_csv(self, path: Path | str | None = None) -> Path:
        """Write `frame` as CSV, by default beside the notebook, named after the runs. Raises RequestError."""
        return write_file("CSV", self.runs, path, lambda file: self.frame().to_csv(file))

    def drawing(self, most: int = MOST_POINTS, **looks: Any) -> str:
        """The shown curves as an SVG element, with the same lines, zoom and axes."""
        with self.lock:
            traces = self.traces(self.runs, most, self.window)
            smoothed = {trace.key[0] for trace in traces if trace.key[1] == "smooth"}
            metric = self.metric_menu.value
            lines = [svg_line(trace, trace.key[0] in smoothed) for trace in traces]
            titles: dict[str, Any] = {"x_title": TITLES[self.x_menu.value], "y_title": label_of(metric)}
            cut = (self._cut.low, self._cut.high) if self._cut is not None else None
            return drawing(lines, **titles, log_y=self.log_box.value, y_range=cut, **looks)

    def to_svg(self, path: Path | str | None = None) -> Path:
        """Write the curves as an SVG file, by default beside the notebook, named after the runs. Raises RequestError."""
        return write_file("SVG", self.runs, path, lambda file: file.write_text(self.drawing(width=960, height=420, paper="white"), "utf-8"))

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
            picture = self.drawing(STATIC_POINTS, width=840, height=340, paper="white")
            if picture.startswith("<svg"):
                # as a picture: viewers that show no widgets take an SVG out of the page, too
                data = base64.b64encode(picture.encode()).decode()
                names = ", ".join(run.id for run in self.runs)
                label = escape(f"{label_of(self.metric_menu.value)} of {names}")
                picture = f'<img alt="{label}" style="max-width:100%" src="data:image/svg+xml;base64,{data}">'
            return self.status.value + box(picture) + self.captions.html() + self.grid.value
