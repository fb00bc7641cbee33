"""Screen 1: all runs of the store, live."""

from __future__ import annotations

import importlib

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Static

from console.actions import bindings_of
from console.formatting import GLYPHS, cause_text, one_line, runs_text, short_path
from console.messages import ThreadAnswer, WorkFailed
from console.readers.run_rows import RunRow, Snapshot
from console.runs.filters import orders, select_runs
from console.screens.base import ConsoleScreen
from console.widgets.run_list import RunList
from console.widgets.steady_text import SteadyText
from qwen3vl_core.formats import span
from qwen3vl_core.language import filled, phrase, tr
from qwen3vl_core.run_record import QUEUED

BESIDE = 140
"""Width in columns from which the run under the cursor is shown beside the table."""
OFFERED = 4
"""Number of other stores that an empty table names."""


class RunsScreen(ConsoleScreen):
    """Table of runs with a filter; the run under the cursor is described below."""

    MODE = "runs"
    BINDINGS = bindings_of("runs")
    AUTO_FOCUS = ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[RunRow] = []
        self.marked: dict[str, None] = {}
        """Ids of the marked runs, in the order in which they were marked."""
        self.order, self.reverse = "newest", False
        self._described: Content | None = None
        self.preview_wanted: bool | None = None
        """Whether the run under the cursor is shown beside the table; None: where there is room."""
        self._previewed: RunRow | None = None
        self._reading = False

    def body(self) -> ComposeResult:
        yield Input(placeholder=tr("/ filter: words, status:running, size:8B, lr:1e-5"), id="filter", compact=True, select_on_focus=False)
        with Horizontal(id="runs-body"):
            yield RunList(id="table")
        yield SteadyText(id="empty")
        yield Static(id="detail", markup=False)

    # what is shown

    def show_snapshot(self, snapshot: Snapshot) -> None:
        query = self.query_one("#filter", Input).value
        self.rows = select_runs(snapshot.rows, query, self.order, self.reverse)
        present = {row.id for row in snapshot.rows}
        if not snapshot.unread:
            self.marked = {run_id: None for run_id in self.marked if run_id in present}
        table, empty = self.query_one(RunList), self.query_one("#empty", SteadyText)
        self.query_one("#runs-body").display = table.display = bool(self.rows)
        empty.display = not self.rows
        if not self.rows:
            empty.update(self._nothing(snapshot))
        table.show(self.rows, self.marked, self.order, self.reverse)
        if self.rows and self.focused is None and self.app.screen is self:
            table.focus()
        self._describe()
        self._preview()

    def _nothing(self, snapshot: Snapshot) -> Content:
        """Text instead of an empty table: why it is empty, and what to do next."""
        if snapshot.error:
            return Content("✗ " + one_line(phrase(snapshot.error))).stylize("$text-error")
        if snapshot.rows:
            return Content.assemble(
                tr("No run of {count} passes this filter.", count=len(snapshot.rows)) + "\n\n",
                ("esc", "bold"), tr(" takes it away, "), ("/", "bold"), tr(" changes it."),
            )  # fmt: skip
        stores = self.app.other_stores[:OFFERED]
        lines = [f"   {short_path(store.path, 36)}  {runs_text(store.runs)}\n" for store in stores]
        elsewhere = [
            (f"{self.app.key_of('app.stores')}", "bold $text-primary"),
            tr("  opens other runs:\n"),
            *((line, "$muted") for line in lines),
            "\n",
        ]
        return Content.assemble(
            (tr("No run yet.\n\n"), "bold"), ("2", "bold $text-primary"), tr("  starts one, and shows its exact command\n\n"),
            *(elsewhere if stores else ()), (tr("or from a shell: qwen3vl finetune --load … --train-data …\n"), "$muted"),
            (tr("runs are kept in {folder}", folder=one_line(self.app.store_root)), "$muted"),
        )  # fmt: skip

    def _describe(self) -> None:
        row = self.chosen
        detail = self.query_one("#detail", Static)
        # a preview below the table says the same, and more
        detail.display = row is not None and not (self.previews and self.size.width < BESIDE)
        if row is None:
            return
        text = self._description(row, max(self.size.width - 4, 20))
        if text != self._described:
            self._described = text
            detail.update(text)

    def _description(self, row: RunRow, room: int) -> Content:
        words = [f"{GLYPHS.get(row.status, '·')} {row.id}  {tr(row.status)}"]
        if row.exit_code and not row.alive:
            words[0] += tr(", exit code {code}", code=row.exit_code)
        if row.place:
            words[0] += tr(", held back") if row.place == "held" else tr(", place {place}", place=row.place)
            words.append(tr("{key} shows the queue", key=self.app.key_of("app.queue")))
        words += [row.layout] if row.layout else []
        if row.kind == "finetune":
            words.append(row.checkpoint_text)
        if row.eta is not None:
            words.append(tr("{time} to go", time=span(row.eta)))
        if check := self.app.checks.get(row.id):
            words.append(tr("checked {result}", result=check))
        if self.marked:
            words.append(tr("{count} marked", count=len(self.marked)))
        last = cause_text(row.error) or row.last_line
        bad = row.status in ("failed", "lost")
        if last:
            last = ("✗ " if bad else "› ") + last + (tr("  (enter: why, and what to try)") if bad else "")
        return Content("\n").join([
            Content(one_line(" · ".join(words), room)),
            Content(one_line(f"$ {row.command}", room)).stylize("$muted"),
            Content(one_line(last, room)).stylize("$text-error" if bad else "$muted"),
        ])  # fmt: skip

    # the run under the cursor, beside the table

    @property
    def previews(self) -> bool:
        """Whether the preview is shown."""
        return self.size.width >= BESIDE if self.preview_wanted is None else self.preview_wanted

    def _preview(self) -> None:
        """Read the run under the cursor if it is another one or has changed; after a read in progress, once more."""
        body, row = self.query_one("#runs-body"), self.chosen
        body.set_class(self.size.width < BESIDE, "-below")
        shown = self.previews and row is not None
        for widget in self.query("#preview"):
            widget.display = shown
        if not shown or row is None or self._reading or row == self._previewed:
            return
        self._reading, self._previewed = True, row
        run = row.run

        def look() -> None:
            try:
                self.post_message(ThreadAnswer("preview", importlib.import_module("console.readers.preview").read(run)))
            except Exception as error:
                # no content of a run's files may crash the console
                self.post_message(WorkFailed(filled("{}: cannot be read ({}: {})", run.id, type(error).__name__, error)))

        self.in_thread(look, "preview")

    @on(ThreadAnswer)
    async def _preview_read(self, event: ThreadAnswer) -> None:
        self._reading = False
        row = self._previewed
        if row is not None and row.id == event.value.run_id:
            found = self.query("#preview")
            if not found:
                # late: the first frame does not wait for a curve
                await self.query_one("#runs-body").mount(importlib.import_module("console.widgets.run_preview").RunPreview())
            self.query_one("#preview").show(event.value, row)  # type: ignore[attr-defined]  # its module is imported above
        self._preview()

    @on(WorkFailed)
    def _not_read(self) -> None:
        self._reading = False  # the app shows the error

    def action_preview(self) -> None:
        """Show the run under the cursor beside or below the table, or no longer."""
        self.preview_wanted = not self.previews
        self._previewed = None
        self._preview()
        self._describe()

    def workspace_opened(self) -> None:
        """The app uses another run store now."""
        self.marked, self._described = {}, None
        self.query_one(RunList).show((), {}, self.order, self.reverse)

    # the run under the cursor

    @property
    def chosen(self) -> RunRow | None:
        """The last snapshot of the run under the cursor."""
        return self.query_one(RunList).chosen if self.rows else None

    @property
    def chosen_id(self) -> str | None:
        """Its id."""
        return row.id if (row := self.chosen) is not None else None

    def _chosen_or_say(self) -> RunRow | None:
        row = self.chosen
        if row is None:
            self.notify(tr("there is no run here; 2 starts one"), severity="warning")
        return row

    def _marked_or_chosen(self) -> list[RunRow]:
        """The marked runs; if none is marked, the one under the cursor."""
        marked = [row for run_id in self.marked if (row := self.app.snapshot.get(run_id)) is not None]
        if marked:
            return marked
        row = self._chosen_or_say()
        return [row] if row is not None else []

    def useful(self, action: str) -> bool:
        row, marked = self.chosen, len(self.marked)
        if action == "runs.leave":
            field = self.query_one("#filter", Input)
            return bool(self.marked or field.value or (field.has_focus and self.rows))
        if action in ("runs.new", "runs.filter"):
            return True
        if row is None:
            return False
        if action == "runs.stop":
            return row.alive or row.status == "lost"
        if action == "runs.resume":
            return row.status in ("stopped", "failed", "lost")
        if action == "runs.save":
            return row.alive and row.status != QUEUED and row.kind == "finetune"
        if action == "runs.difference":
            return marked > 1 or (marked == 1 and row.id not in self.marked)
        if action == "runs.check":
            return row.kind == "convert" or bool(row.checkpoint)
        if action == "runs.tensorboard":
            return row.kind == "finetune"
        if action == "runs.delete":
            return not row.alive
        return action not in ("runs.sort", "runs.reverse") or len(self.rows) > 1

    @on(RunList.Moved)
    def _moved(self) -> None:
        self._describe()
        self._preview()
        self.keys_changed()

    @on(RunList.RunOpened)
    def _clicked(self) -> None:
        self.action_open()

    @on(RunList.SortAsked)
    def _head_clicked(self, event: RunList.SortAsked) -> None:
        self.reverse = not self.reverse if event.order == self.order else False
        self.order = event.order
        self._sorted()

    @on(Input.Changed, "#filter")
    def _filtered(self, event: Input.Changed) -> None:
        self.show_snapshot(self.app.snapshot)
        if event.value:
            self._did_list()

    @on(Input.Submitted, "#filter")
    def _submitted(self) -> None:
        self.query_one(RunList).focus()

    def on_resize(self, event: events.Resize) -> None:
        self._seen(self.app.snapshot)

    # actions

    def action_open(self) -> None:
        """Watch the run under the cursor."""
        if (row := self._chosen_or_say()) is not None:
            self.app.watch_run(row.id)

    def action_new(self) -> None:
        """The form of a new run."""
        self.app.action_show_screen("launch")

    def action_clone(self) -> None:
        """The form with the options of the run under the cursor."""
        if (row := self._chosen_or_say()) is not None:
            self.app.clone_run(row)

    def action_stop(self) -> None:
        """Stop the run under the cursor, after a question."""
        if (row := self._chosen_or_say()) is not None:
            self.ask_to_stop(row)

    def action_resume(self) -> None:
        """Resume the run under the cursor from its last checkpoint."""
        if (row := self._chosen_or_say()) is not None:
            self.app.ask_to_resume(row)

    def action_save(self) -> None:
        """Ask the run under the cursor for a checkpoint now."""
        if (row := self._chosen_or_say()) is not None:
            self.app.save_run(row.id)

    def action_check(self) -> None:
        """Compare the files of the run under the cursor with their digests."""
        if (row := self._chosen_or_say()) is not None:
            self.app.check_run(row.id)

    def action_captions(self) -> None:
        """Show the captions of the run under the cursor."""
        if (row := self._chosen_or_say()) is not None:
            self.app.show_captions(row)

    def action_copy(self) -> None:
        """Put the command of the run under the cursor on the clipboard."""
        if (row := self._chosen_or_say()) is not None:
            self.copy(row.command, tr("Command copied"))

    def action_filter(self) -> None:
        """To the filter."""
        self.query_one("#filter", Input).focus()

    def action_mark(self) -> None:
        """Mark or unmark the run under the cursor, and move to the next one."""
        if (row := self._chosen_or_say()) is not None:
            if row.id in self.marked:
                del self.marked[row.id]
            else:
                self.marked[row.id] = None
            self.query_one(RunList).action_move(1)
            self.show_snapshot(self.app.snapshot)
            self.keys_changed()

    def action_difference(self) -> None:
        """Diff of the last two marked runs, or of the marked one and the one under the cursor."""
        rows = [row for run_id in self.marked if (row := self.app.snapshot.get(run_id)) is not None][-2:]
        chosen = self.chosen
        if len(rows) == 1 and chosen is not None and chosen.id != rows[0].id:
            rows.append(chosen)
        if len(rows) < 2:
            self.notify(tr("mark one run with space, go to another, then d; or mark two"), severity="warning")
            return
        first, second = rows[-2:]
        self.app.show_difference(first, second)

    def action_sort(self) -> None:
        """The next order, not reversed."""
        names = list(orders())
        self.order, self.reverse = names[(names.index(self.order) + 1) % len(names)], False
        self._sorted()

    def action_reverse(self) -> None:
        """The same order, reversed."""
        self.reverse = not self.reverse
        self._sorted()

    def _sorted(self) -> None:
        self.show_snapshot(self.app.snapshot)
        self._did_list()
        self.notify(tr("by {order}, reversed" if self.reverse else "by {order}", order=tr(self.order)), timeout=1.5)

    def _did_list(self) -> None:
        query = self.query_one("#filter", Input).value
        self.app.remember_command(
            "runs", "list", *(["--filter", query] if query else []), *(["--sort", self.order] if self.order != "newest" else []),
            *(["--reverse"] if self.reverse else []),
        )  # fmt: skip

    def action_tensorboard(self) -> None:
        """Open TensorBoard with the marked runs, without any the one under the cursor."""
        if rows := self._marked_or_chosen():
            self.app.open_tensorboard(rows)

    def action_delete(self) -> None:
        """Delete the marked runs, without any the one under the cursor, after a question; a live run is not deleted."""
        rows = self._marked_or_chosen()
        alive = next((row for row in rows if row.alive), None)
        if alive is not None:
            self.notify(tr("{run}: {status}; stop it first (x)", run=alive.id, status=tr(alive.status)), severity="warning", markup=False)
        elif rows:
            from console.screens.dialogs import ConfirmDelete

            self.app.push_screen(ConfirmDelete(rows), lambda sure: self.app.delete_runs(rows) if sure else None)

    def action_leave(self) -> None:
        """Leave the filter; pressed again, clear the marks, then the filter."""
        field, table = self.query_one("#filter", Input), self.query_one(RunList)
        if field.has_focus and self.rows:
            table.focus()
        elif self.marked:
            self.marked = {}
            self.show_snapshot(self.app.snapshot)
        elif field.value:
            field.value = ""
            table.focus()
