"""Screen 3: one run, live: curve, numbers, log."""

from __future__ import annotations

from typing import Any

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from console.actions import bindings_of
from console.curves.marks import Mark
from console.curves.smoothing import SHARES
from console.formatting import metric_label
from console.messages import RunRead, WorkFailed
from console.readers.monitor import MonitorFeed, RunView
from console.readers.run_rows import Snapshot
from console.runs.remedies import Remedy
from console.screens.dialogs import PickMetric, PickRuns
from console.screens.monitor_log import MonitorLog
from console.widgets.chart_grid import CHARTED, ChartGrid
from console.widgets.curve import Curve
from console.widgets.key_hints import Keyed
from console.widgets.log_pane import LogPane
from console.widgets.run_numbers import finetune_panel, plain_panel
from console.widgets.sample_captions import SamplePane
from qwen3vl_core.language import filled, tr
from qwen3vl_core.run_metrics import LOSS
from qwen3vl_core.run_record import QUEUED, TRAIN

OVERLAYS = 4
GRID_SIZE = (120, 36)
"""Columns and rows from which the other metrics have small charts."""
FINETUNE_ONLY = (
    "curve", "reset", "log_y", "smooth", "overlay", "metric", "metrics", "event", "captions", "save", "enlarge", "tensorboard",
)  # fmt: skip
"""Actions that a run without a curve does not have."""


class MonitorScreen(MonitorLog):
    """Shows `run_id`; without one, the newest live run, else the newest."""

    MODE = "monitor"
    CSS_PATH = "monitor.tcss"
    BINDINGS = bindings_of("monitor")
    AUTO_FOCUS = "Curve"

    def __init__(self) -> None:
        super().__init__()
        self.metric = LOSS
        self.others: list[str] = []
        self.feed = MonitorFeed(self.app.watcher)
        self._busy = self._again = False
        self._panel: Content | None = None

    def body(self) -> ComposeResult:
        with Horizontal(id="top"):
            with Vertical(id="curves"):
                yield Curve(id="curve")
                yield ChartGrid(id="grid")
            with VerticalScroll(id="numbers", can_focus=False):
                yield Static(id="figures")
        with Horizontal(id="loghead"):
            yield Static(id="logstate")
            yield Input(placeholder=tr("search, then enter"), id="find", compact=True, select_on_focus=False)
        yield Keyed(id="diagnosis", markup=False)
        yield LogPane(id="log")
        yield SamplePane(id="samples")
        yield Static(
            tr("[b]No run to watch yet.[/b]\n\n[b]2[/b]  start one\n[b]1[/b]  all runs; enter opens the one under the cursor"),
            id="nothing",
        )

    def on_mount(self) -> None:
        self.query_one("#find").display = False
        self.query_one("#diagnosis").display = False

    # which run

    def workspace_opened(self) -> None:
        """The app uses another run store now."""
        self.feed = MonitorFeed(self.app.watcher)
        self.run_id, self.row, self.view, self.others = None, None, None, []

    def open(self, run_id: str) -> None:
        """Watch this run from now on."""
        if run_id != self.run_id:
            self.run_id, self.row, self.view = run_id, None, None
            self.others = [other for other in self.others if other != run_id]
            curve, pane = self.query_one(Curve), self.query_one(LogPane)
            curve.view = curve.crosshair = None
            curve.show([], "", empty=tr("reading …"))
            pane.clear(tr("nothing printed yet"))
            pane.find("")
            self.remove_class("-captions")
            self._explained = None
            self.query_one("#diagnosis").display = False
            self.query_one("#find", Input).value = ""
            self._close_find()
        self.show_snapshot(self.app.snapshot)

    def show_snapshot(self, snapshot: Snapshot) -> None:
        if self.run_id is None and snapshot.rows:
            newest = next((row for row in snapshot.rows if row.alive), snapshot.rows[0])
            self.open(newest.id)
            return
        current = snapshot.get(self.run_id)
        self.gone = self.row is not None and current is None and not snapshot.unread and not snapshot.error
        self.row = current or self.row
        plain = self.row is not None and self.row.kind != "finetune"
        self.set_class(self.run_id is None, "-nothing")
        self.set_class(plain, "-plain")
        curve_hidden = plain and self.query_one(Curve).has_focus
        if self.app.screen is self and self.row is not None and (self.focused is None or curve_hidden):
            self.query_one(LogPane if plain else Curve).focus()
        # the run is read with every snapshot of the store, so that both are painted at once
        if not self.read() or self.view is None:
            self._figures()
        if self.gone:
            self._log_state()

    # reading

    def read(self) -> bool:
        """Read the run's files; if a read is in progress, once more after it. Returns whether `_read` will be called."""
        if self.row is None or self.gone or self.app.current_mode != self.MODE:
            return False
        if self._busy:
            self._again = True
            return True
        self._busy, self._again = True, False
        run, metric = self.row.run, self.metric
        charted = CHARTED if self.has_grid else ()
        others = [row.run for other in self.others if (row := self.app.snapshot.get(other)) is not None]

        def look() -> None:
            try:
                self.post_message(RunRead(self.feed.read(run, others, metric, charted)))
            except Exception as error:
                # no content of a run's files may crash the console
                self.post_message(WorkFailed(filled("{}: cannot be read ({}: {})", run.id, type(error).__name__, error)))

        self.in_thread(look, "monitor")
        return True

    @on(RunRead)
    def _read(self, event: RunRead) -> None:
        self._busy = False
        view: RunView = event.view
        if view.run_id == self.run_id and view.metric == self.metric:
            self.view = view
            self.query_one(LogPane).show(view.log)
            self.query_one(SamplePane).show(view.stories)
            self._draw()
            self._figures()
            self._log_state()
            self._explain()
        if self._again or view.reading:
            self.read()

    @on(WorkFailed)
    def _failed(self, event: WorkFailed) -> None:
        self._busy = False  # the app shows the error
        self._figures()

    def _draw(self) -> None:
        view, curve = self.view, self.query_one(Curve)
        if view is None:
            return
        waiting = self.row is not None and self.row.alive
        empty = tr("waiting for the first step") if waiting else tr("no metrics: the log says why")
        if self.row is not None and self.row.status == QUEUED:
            empty = tr("it waits for GPUs: the log says which")
        marks = [
            Mark(event["step"], str(event.get("event")), str(event.get("text") or event.get("event")))
            for event in view.events if isinstance(event.get("step"), int) and not isinstance(event["step"], bool)
        ]  # fmt: skip
        curve.show(list(view.lines), metric_label(view.metric), tr("reading …") if view.reading else "", empty, marks)
        shown = self.has_grid and not self.has_class("-curve-only")
        self.query_one(ChartGrid).show(view.charts if shown else {}, self.query_one("#curves").size.width)

    @property
    def has_grid(self) -> bool:
        """Whether there is room for small charts of the other metrics."""
        return self.size.width >= GRID_SIZE[0] and self.size.height >= GRID_SIZE[1]

    @on(ChartGrid.Chosen)
    def _chart_chosen(self, event: ChartGrid.Chosen) -> None:
        self._set_metric(event.metric)

    def _figures(self) -> None:
        if self.row is None:
            return
        width = max(self.query_one("#figures").size.width, 16)
        panel = plain_panel(self.row, width) if self.has_class("-plain") else finetune_panel(self.row, self.view, width)
        if panel != self._panel:
            # a new layout repaints the screen; mostly only the text of the same lines changes
            same = self._panel is not None and panel.plain.count("\n") == self._panel.plain.count("\n")
            self._panel = panel
            self.query_one("#figures", Static).update(panel, layout=not same)

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._figures)
        self.call_after_refresh(self._explain)
        self.call_after_refresh(self.read)

    # curve

    def action_curve(self, what: str, amount: float) -> None:
        """Act on the curve, whichever pane has the focus: `zoom` by a factor, `pan` by a share of its width, `cross` by columns."""
        curve = self.query_one(Curve)
        if what == "zoom":
            curve.action_zoom(amount)
        elif what == "pan":
            curve.action_pan(amount)
        elif what == "cross":
            curve.action_cross(int(amount))

    def action_event(self, direction: int) -> None:
        """To the next event on the curve (1), or the previous (-1)."""
        curve = self.query_one(Curve)
        if not curve.marks:
            self.notify("no events yet: no checkpoint, loss spike, NaN or resume", severity="warning")
        curve.action_event(direction)

    def action_reset(self) -> None:
        """Show all steps."""
        self.query_one(Curve).action_reset()

    def action_log_y(self) -> None:
        """A logarithmic axis of values, or a linear one; until then what is in view decides."""
        curve = self.query_one(Curve)
        curve.log_wanted = not curve.log_y
        curve.rebuild()

    def action_smooth(self) -> None:
        """The next width of the averages' window."""
        curve = self.query_one(Curve)
        curve.share = SHARES[(SHARES.index(curve.share) + 1) % len(SHARES)]
        curve.rebuild()
        words = (
            tr("average over {share:.0%} of what is seen, where there are more points than columns", share=curve.share)
            if curve.share
            else tr("no average")
        )
        self.notify(words, timeout=2)

    def action_metric(self) -> None:
        """Show the next metric; in other panes: focus the next pane."""
        if not self.query_one(Curve).has_focus:
            self.focus_next()
        elif self.view is not None and self.view.metrics:
            names = self.view.metrics
            index = names.index(self.metric) + 1 if self.metric in names else 0
            self._set_metric(names[index % len(names)])

    def action_metrics(self) -> None:
        """Choose a metric of the run from a list with their last values."""
        view, row = self.view, self.row
        if view is None or row is None or not view.metrics:
            self.notify("no metrics yet", severity="warning")
            return
        latest = row.latest.get(TRAIN, {})
        choices = [(name, metric_label(name), latest.get(name)) for name in view.metrics]

        def chosen(name: str | None) -> None:
            if name is not None:
                self._set_metric(name)

        self.app.push_screen(PickMetric(choices, self.metric), chosen)

    def _set_metric(self, name: str) -> None:
        self.metric = name
        self.query_one(Curve).log_wanted = None
        if self.row is not None:
            self.app.remember_command("runs", "metrics", str(self.row.run.number), "--metric", name)
        self.read()

    def action_enlarge(self) -> None:
        """Show the focused pane alone, or all panes again."""
        big = next((name for name in ("-curve-only", "-log-only") if self.has_class(name)), None)
        if big is not None:
            self.remove_class(big)
        elif not self.has_class("-plain"):
            self.add_class("-curve-only" if self.query_one(Curve).has_focus else "-log-only")
        self._draw()

    def show_captions(self) -> None:
        """Show the captions, if they are not shown."""
        if not self.has_class("-captions"):
            self.action_captions()

    def action_captions(self) -> None:
        """Show the captions that the run wrote instead of the log, or the log again."""
        self.toggle_class("-captions")
        shown = self.has_class("-captions")
        if shown and self.row is not None:
            self.app.remember_command("runs", "samples", str(self.row.run.number))
        if shown or self.query_one(SamplePane).has_focus:
            self.query_one(SamplePane if shown else LogPane).focus()
        self._log_state()

    def action_overlay(self) -> None:
        """Choose other finetunes to draw in the same curve."""
        rows = [row for row in self.app.snapshot.rows if row.kind == "finetune" and row.id != self.run_id and row.step is not None]
        if not rows or self.has_class("-plain"):
            self.notify("no other finetune with metrics to overlay on this run", severity="warning")
            return

        def chosen(ids: list[str] | None) -> None:
            if ids is not None:
                self.others = ids[:OVERLAYS]
                if len(ids) > OVERLAYS:
                    self.notify(
                        tr("the first {count} are shown: more lines could not be distinguished", count=OVERLAYS), severity="warning"
                    )
                self.read()

        self.app.push_screen(PickRuns(rows, self.others), chosen)

    def action_leave(self) -> None:
        """Out of the search; else hide the crosshair; else end the search."""
        if self.query_one("#find").has_focus:
            self._close_find()
            self.query_one(LogPane).focus()
        elif not self.query_one(Curve).hide_crosshair():
            self.query_one(LogPane).find("")

    # run

    def action_stop(self) -> None:
        """Stop the run, after a question."""
        self.ask_to_stop(self.row)

    def action_save(self) -> None:
        """Ask the run for a checkpoint now."""
        if self.row is None:
            self.notify("no run selected; 1 shows all runs", severity="warning")
        else:
            self.app.save_run(self.row.id)

    def action_resume(self) -> None:
        """Resume the run from its last checkpoint."""
        if self.row is None:
            self.notify("no run selected; 1 shows all runs", severity="warning")
        else:
            self.app.ask_to_resume(self.row)

    def action_clone(self) -> None:
        """The form with the options of this run."""
        if self.row is None:
            self.notify("no run selected; 1 shows all runs", severity="warning")
        else:
            self.app.clone_run(self.row)

    def _remedy(self) -> Remedy | None:
        """The change that gets the run to work; says so if there is none."""
        found = self.view.remedy if self.view is not None else None
        if found is None:
            self.notify("no change of options is known that gets it to work; the card above the log says what is known", severity="warning")
        return found

    def action_fix(self) -> None:
        """The form of a new run with the change that gets this one to work."""
        if self.row is None or (found := self._remedy()) is None:
            return
        if found.changes:
            self.app.clone_run(self.row, found.changes)
        else:
            self.notify(
                tr("no option needs another value; {key} resumes it", key=self.app.key_of("monitor.start_fixed")), severity="warning"
            )

    def action_start_fixed(self) -> None:
        """Start a new run with that change, or resume this one with it, after a question."""
        if self.row is not None and (found := self._remedy()) is not None:
            self.app.ask_to_start_fixed(self.row, found)

    def action_difference(self) -> None:
        """Diff of this run and the first one over it, else the next older one of its kind."""
        row, rows = self.row, self.app.snapshot.rows
        if row is None:
            self.notify("no run selected; 1 shows all runs", severity="warning")
            return
        older = [each.id for each in rows if each.kind == row.kind and each.run.number < row.run.number]
        other = next((found for name in (*self.others, *older) if (found := self.app.snapshot.get(name)) is not None), None)
        if other is None:
            self.notify(
                tr("there is no other {kind} to compare it with; o puts one over it", kind=row.kind), severity="warning", markup=False
            )
        else:
            self.app.show_difference(other, row)

    def useful(self, action: str) -> bool:
        row, view = self.row, self.view
        if row is None:
            return False
        if action == "monitor.stop":
            return row.alive or row.status == "lost"
        if action in ("monitor.resume", "monitor.clone"):
            return row.status in ("stopped", "failed", "lost") or (action == "monitor.clone" and row.status == "done")
        if action in ("monitor.fix", "monitor.start_fixed"):
            found = view.remedy if view is not None else None
            return found is not None and (action == "monitor.start_fixed" or bool(found.changes))
        if action == "monitor.save":
            return row.alive and row.status != QUEUED and row.kind == "finetune"
        if action == "monitor.overlay":
            return any(each.kind == "finetune" and each.id != row.id and each.step is not None for each in self.app.snapshot.rows)
        if action == "monitor.captions":
            return view is not None and bool(view.stories)
        if action in ("monitor.metric", "monitor.zoom_in", "monitor.log_y", "monitor.smooth"):
            return view is not None and bool(view.metrics)
        return True

    def action_tensorboard(self) -> None:
        """Open TensorBoard with the runs on screen."""
        if self.row is not None:
            rows = [row for other in self.others if (row := self.app.snapshot.get(other)) is not None]
            self.app.open_tensorboard([self.row, *rows])

    def action_neighbour(self, step: int) -> None:
        """Show the run below (1: older) or above (-1: newer) this one."""
        rows = self.app.snapshot.rows
        index = next((i for i, row in enumerate(rows) if row.id == self.run_id), None)
        if index is not None and 0 <= index + step < len(rows):
            self.app.watch_run(rows[index + step].id)
        elif rows:
            self.notify("this is the oldest run" if step > 0 else "this is the newest run", severity="warning", timeout=2)

    def action_copy(self) -> None:
        """Put the run's command on the clipboard."""
        if self.row is not None:
            self.copy(self.row.command, tr("Command copied"))

    def check_action(self, action: str, parameters: tuple[Any, ...]) -> bool | None:
        return not (action in FINETUNE_ONLY and self.has_class("-plain"))
