"""Screen 1: every run of the store, live."""

from __future__ import annotations

import time
from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import DataTable, Input, Static

from console.actions import bindings_of
from console.screens.base import WIDE, ConsoleScreen
from console.screens.watch import RunRow, Snapshot
from console.widgets.words import COLOURS, GLYPHS, number, one_line, span

# (column, its width when narrow, when wide); 0: left out
COLUMNS = (
    ("", 1, 1), ("run", 22, 36), ("status", 0, 10), ("kind", 8, 8), ("step", 11, 15), ("loss", 7, 8), ("curve", 12, 12), ("age", 4, 4),
    ("last line", 0, 16),
)  # fmt: skip
RIGHT = ("step", "loss", "age")


def matches(row: RunRow, query: str) -> bool:
    """Whether a run passes the filter: every word must. `status:`, `kind:` and `name:` look at that field alone."""
    for word in query.lower().split():
        field, colon, wanted = word.partition(":")
        if colon and field in ("status", "kind", "name"):
            text = {"status": row.status, "kind": row.kind, "name": row.id}[field]
            if wanted not in text.lower():
                return False
        elif not any(word in text.lower() for text in (row.id, row.kind, row.status)):
            return False
    return True


class RunTable(DataTable[Text], inherit_bindings=False):
    """A DataTable that leaves enter to the screen."""

    BINDINGS: ClassVar = [binding for binding in DataTable.BINDINGS if binding.key != "enter"]


class RunsScreen(ConsoleScreen):
    """Table of runs with a filter; the run under the cursor is described below."""

    MODE = "runs"
    BINDINGS = bindings_of("runs")
    AUTO_FOCUS = ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[RunRow] = []
        self._cells: dict[str, tuple[Text, ...]] = {}
        self._shape: tuple = ()
        self._described = ""

    def body(self) -> ComposeResult:
        yield Input(placeholder="/ filter: words, status:running, kind:finetune", id="filter", compact=True, select_on_focus=False)
        yield RunTable(id="table", cursor_type="row", zebra_stripes=False)
        yield Static(id="empty")
        yield Static(id="detail", markup=False)

    # what is shown

    def show_snapshot(self, snapshot: Snapshot) -> None:
        query = self.query_one("#filter", Input).value
        self.rows = [row for row in snapshot.rows if matches(row, query)]
        table, empty = self.query_one(RunTable), self.query_one("#empty", Static)
        table.display = bool(self.rows)
        empty.display = not self.rows
        if not self.rows:
            empty.update(self._nothing(snapshot))
        self._fill(table)
        self._describe()

    def _nothing(self, snapshot: Snapshot) -> Content:
        """What is said in place of an empty table: why, and what to do next."""
        if snapshot.error:
            return Content("✗ " + one_line(snapshot.error)).stylize("$text-error")
        if snapshot.rows:
            return Content.assemble(
                f"No run of {len(snapshot.rows)} passes this filter.\n\n",
                ("esc", "bold"), " takes it away, ", ("/", "bold"), " changes it.",
            )  # fmt: skip
        return Content.assemble(
            ("No run yet.\n\n", "bold"), ("2", "bold $text-primary"), "  choose what to do, see its exact command, start it\n\n",
            ("or from a shell: qwen3vl finetune --load … --train-data …\n", "$muted"),
            (f"runs are kept in {one_line(self.app.store_root)}", "$muted"),
        )  # fmt: skip

    def _fill(self, table: RunTable) -> None:
        wide = self.size.width >= WIDE
        now = time.time()
        dark = self.app.current_theme.dark
        rows = {row.id: self._row_cells(row, now, wide) for row in self.rows}
        shape = (wide, self.size.width, dark)
        if shape == self._shape and list(rows) == list(self._cells):
            for run_id, cells in rows.items():
                for index, (new, old) in enumerate(zip(cells, self._cells[run_id], strict=True)):
                    if new != old:
                        table.update_cell(run_id, str(index), new)
        else:
            chosen = self.chosen_id
            # the rows on screen stay where they are while others come and go
            top = table.scroll_y
            table.clear(columns=True)
            columns = [(name, broad if wide else narrow) for name, narrow, broad in COLUMNS if (broad if wide else narrow)]
            room = self.size.width - 3 - sum(width + 2 for _, width in columns)
            for index, (name, width) in enumerate(columns):
                justify = "right" if name in RIGHT else "left"
                table.add_column(Text(name, justify=justify), key=str(index), width=width + (room if name == "last line" else 0))
            for run_id, cells in rows.items():
                table.add_row(*cells, key=run_id)
            ids = list(rows)
            if chosen in rows:
                table.move_cursor(row=ids.index(chosen), animate=False, scroll=False)
                table.scroll_to(y=top, animate=False)
        self._shape, self._cells = shape, rows
        if self.focused is None and self.app.screen is self:
            table.focus()

    def _row_cells(self, row: RunRow, now: float, wide: bool) -> tuple[Text, ...]:
        colour = self.app.colour(COLOURS.get(row.status, "muted"))
        muted = self.app.colour("muted")
        status = row.status if row.status != "failed" or not row.exit_code else f"failed {row.exit_code}"
        total = f"/{row.total:,}" if row.total else ""
        if row.step is not None:
            step = f"{row.step:,}{total}"
        else:
            step = f"{row.percent:.0%}" if row.percent is not None else f"–{total}" if total else ""
        cells = {
            "": Text(GLYPHS.get(row.status, "?"), style=colour),
            "run": Text(row.id, no_wrap=True, overflow="ellipsis"),
            "status": Text(status, style=colour),
            "kind": Text(row.kind, style=muted),
            "step": Text(step, justify="right"),
            "loss": Text(number(row.loss) if row.loss is not None else "", justify="right"),
            "curve": Text(row.spark, style=self.app.colour("text-primary")),
            "age": Text(span(row.age(now)), style=muted, justify="right"),
            "last line": Text(one_line(row.error or row.last_line, 200), style=muted, no_wrap=True, overflow="ellipsis"),
        }
        return tuple(cells[name] for name, narrow, broad in COLUMNS if (broad if wide else narrow))

    def _describe(self) -> None:
        row = self.chosen
        detail = self.query_one("#detail", Static)
        detail.display = row is not None
        if row is None:
            return
        words = f"{GLYPHS.get(row.status, '?')} {row.id}  {row.status}"
        if row.exit_code and not row.alive:
            words += f", exit code {row.exit_code}"
        if row.kind == "finetune":
            words += f" · {row.checkpoint}"
        if row.eta is not None:
            words += f" · {span(row.eta)} to go"
        last = row.error or row.last_line
        room = max(self.size.width - 4, 20)
        lines = [words, f"$ {row.command}", ("✗ " if row.status in ("failed", "lost") else "› ") + last if last else ""]
        text = "\n".join(one_line(line, room) for line in lines)
        if text != self._described:
            self._described = text
            detail.update(text)

    # the run under the cursor

    @property
    def chosen_id(self) -> str | None:
        """Id of the run under the cursor."""
        table = self.query_one(RunTable)
        ids = list(self._cells)
        return ids[table.cursor_row] if 0 <= table.cursor_row < len(ids) else None

    @property
    def chosen(self) -> RunRow | None:
        """The run under the cursor, as last seen."""
        return next((row for row in self.rows if row.id == self.chosen_id), None)

    def _chosen_or_say(self) -> RunRow | None:
        row = self.chosen
        if row is None:
            self.notify("there is no run here; 2 starts one", severity="warning")
        return row

    @on(DataTable.RowHighlighted)
    def _moved(self) -> None:
        self._describe()

    @on(DataTable.RowSelected)
    def _clicked(self) -> None:
        self.action_open()

    @on(Input.Changed, "#filter")
    def _filtered(self) -> None:
        self.show_snapshot(self.app.snapshot)

    @on(Input.Submitted, "#filter")
    def _submitted(self) -> None:
        self.query_one(RunTable).focus()

    def on_resize(self, event: events.Resize) -> None:
        self.show_snapshot(self.app.snapshot)

    # actions

    def action_open(self) -> None:
        if (row := self._chosen_or_say()) is not None:
            self.app.watch_run(row.id)

    def action_new(self) -> None:
        self.app.action_show_screen("launch")

    def action_clone(self) -> None:
        if (row := self._chosen_or_say()) is not None:
            self.app.clone_run(row)

    def action_stop(self) -> None:
        if (row := self._chosen_or_say()) is not None:
            self.ask_to_stop(row)

    def action_resume(self) -> None:
        if (row := self._chosen_or_say()) is not None:
            self.app.resume_run(row.id)

    def action_copy(self) -> None:
        if (row := self._chosen_or_say()) is not None:
            self.copy(row.command, "Command")

    def action_filter(self) -> None:
        self.query_one("#filter", Input).focus()

    def action_leave(self) -> None:
        """Out of the filter; once out, the filter goes too."""
        field, table = self.query_one("#filter", Input), self.query_one(RunTable)
        if field.has_focus and self.rows:
            table.focus()
        elif field.value:
            field.value = ""
            table.focus()
