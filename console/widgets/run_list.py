"""The table of runs. Draws only the rows in view, so that thousands of rows are as fast as fifty."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from console.formatting import COLOURS, GLYPHS, cause_text, cut, one_line
from qwen3vl_core.formats import number, span
from qwen3vl_core.language import tr
from qwen3vl_core.run_metrics import listed_keys, title_of

if TYPE_CHECKING:
    from console.console_base import ConsoleBase
    from console.readers.run_rows import RunRow

# (column, width below WIDE columns, width from WIDE columns); 0: not shown
COLUMNS = (
    ("run", 20, 30), ("status", 0, 11), ("kind", 8, 9), ("layout", 0, 18), ("step", 9, 15), ("curve", 10, 12),
    ("age", 9, 9), ("last line", 0, 10),
)  # fmt: skip
GIVE_WAY = ("layout", "kind", "curve", "status", "last line")
"""Columns that are left out, in this order, before the name of a run is cut."""
LEAST_RUN = 12
"""Cells that the column of names has at least, even if all names are shorter."""
WIDE = 110
METRIC_WIDTHS = (6, 8)
"""Width of the column of a metric; these come before the curve."""
RIGHT = ("step", "age")
SORTED_BY = {"run": "newest", "status": "status", "kind": "kind", "step": "step", "age": "newest"}
"""The order that a click on a column header selects."""
GAP = 2
BEFORE = 5
"""Cells before the first column: cursor, mark, glyph and spaces."""


def _metric_columns() -> dict[str, str]:
    """Keys of the listed metrics by column header."""
    return {title_of(key): key for key in listed_keys()}


def _fitting(value: float, width: int) -> str:
    """A number with as many digits as fit: rounded, not cut off."""
    texts = [number(value, digits) for digits in (4, 3, 2)]
    return next((text for text in texts if len(text) <= width), texts[-1])


class RunList(ScrollView, can_focus=True):
    """Shows rows, with a cursor, marks, and sortable column headers."""

    app: ConsoleBase
    HELP = "Arrows or j and k move, a click selects, a second click opens. A click on a column header sorts by it, again: in reverse."

    COMPONENT_CLASSES: ClassVar = {"runs--cursor", "runs--head", "runs--muted", "runs--mark", "runs--curve"}
    BINDINGS: ClassVar = [
        Binding("up,k", "move(-1)", show=False), Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False), Binding("pagedown", "page(1)", show=False),
        Binding("home", "move(-1000000)", show=False), Binding("end", "move(1000000)", show=False),
    ]  # fmt: skip

    class Moved(Message):
        """The cursor is on another run."""

    class RunOpened(Message):
        """A run was double-clicked, or clicked while under the cursor."""

    class SortAsked(Message):
        """A column header was clicked."""

        def __init__(self, order: str) -> None:
            self.order = order
            super().__init__()

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.rows: Sequence[RunRow] = ()
        self.marked: Collection[str] = ()
        self.order, self.reverse = "newest", False
        self.cursor = 0
        self._columns: tuple[tuple[int, int], list[tuple[str, int]]] | None = None
        self._drawn: list[Strip] = []
        """The lines as they were last shown."""

    # what is shown

    def show(self, rows: Sequence[RunRow], marked: Collection[str], order: str, reverse: bool) -> None:
        """Show these rows. The cursor stays on its run, or on its line if the run is gone."""
        self._columns = None
        before = self.chosen
        at_top = self.cursor == 0 and self.scroll_offset.y == 0
        self.rows, self.marked, self.order, self.reverse = rows, marked, order, reverse
        if before is not None and (self.cursor >= len(rows) or rows[self.cursor].id != before.id):
            index = next((i for i, row in enumerate(rows) if row.id == before.id), None)
            moved = None if index is None else index - self.cursor
            self.cursor = min(self.cursor, max(len(rows) - 1, 0)) if index is None else index
            if moved and not at_top:
                self.scroll_to(y=self.scroll_offset.y + moved, animate=False, force=True)
        size = Size(0, len(rows) + 1)
        if size != self.virtual_size:
            self.virtual_size = size
        self._keep_in_view()
        self._draw_changed()

    def _draw_changed(self) -> None:
        """Draw the lines that are not as they were: rows are read twice a second, and most stay the same."""
        before, self._drawn = self._drawn, [self.render_line(y) for y in range(self.size.height)]
        if len(before) != len(self._drawn):
            self.refresh()
            return
        for y, (old, new) in enumerate(zip(before, self._drawn, strict=True)):
            if old != new:
                self.refresh(Region(0, y, self.size.width, 1))

    @property
    def chosen(self) -> RunRow | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    def _keep_in_view(self) -> None:
        room = max(self.size.height - 1, 1)
        top = self.scroll_offset.y
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, force=True)
        elif self.cursor >= top + room:
            self.scroll_to(y=self.cursor - room + 1, animate=False, force=True)

    # moving

    def action_move(self, step: int) -> None:
        """Move the cursor by this many rows."""
        at = min(max(self.cursor + step, 0), max(len(self.rows) - 1, 0))
        if at != self.cursor:
            self.cursor = at
            self._keep_in_view()
            self.refresh()
            self.post_message(self.Moved())

    def action_page(self, direction: int) -> None:
        self.action_move(direction * max(self.size.height - 2, 1))

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            if (order := event.style.meta.get("order")) is not None:
                self.post_message(self.SortAsked(order))
            return
        index = event.y - 1 + self.scroll_offset.y
        if index >= len(self.rows):
            return
        again = index == self.cursor
        self.action_move(index - self.cursor)
        if again or event.chain == 2:
            self.post_message(self.RunOpened())

    def on_resize(self) -> None:
        self._keep_in_view()

    # drawing

    def columns(self) -> list[tuple[str, int]]:
        """(name, width) of the columns that fit; the name of the run and the last line share the remaining width."""
        known = (self.size.width, id(self.rows))
        if self._columns is None or self._columns[0] != known:
            self._columns = (known, self._measure())
        return self._columns[1]

    def _measure(self) -> list[tuple[str, int]]:
        wide = self.size.width >= WIDE
        at = [name for name, *_ in COLUMNS].index("curve")
        metrics = ((title_of(key), *METRIC_WIDTHS) for key in listed_keys())
        every = (*COLUMNS[:at], *metrics, *COLUMNS[at:])
        widths = {name: broad if wide else narrow for name, narrow, broad in every if (broad if wide else narrow)}
        if "layout" in widths:
            widths["layout"] = min(max((cell_len(row.layout) for row in self.rows), default=0), widths["layout"])
        longest = max((cell_len(row.id) for row in self.rows), default=0)
        widths["run"] = max(min(longest, widths["run"]), LEAST_RUN)

        def room() -> int:
            return self.size.width - BEFORE - 1 - sum(width + GAP for width in widths.values() if width) + GAP

        for name in GIVE_WAY:
            if room() < 0:
                widths.pop(name, None)
        widths["run"] = max(widths["run"] + min(room(), 0), 8)
        more = max(min(longest - widths["run"], room()), 0)
        widths["run"] += more
        if "last line" in widths:
            widths["last line"] += max(room(), 0)
        return [(name, width) for name, width in widths.items() if width > 0]

    def render_line(self, y: int) -> Strip:
        width, base = self.size.width, self.rich_style
        if y == 0:
            return self._head().adjust_cell_length(width, base)
        index = y - 1 + self.scroll_offset.y
        if index >= len(self.rows):
            return Strip.blank(width, base)
        return self._row(self.rows[index], index == self.cursor).adjust_cell_length(width, base)

    def _head(self) -> Strip:
        style = self.get_component_rich_style("runs--head")
        parts = [Segment(" " * BEFORE, style)]
        for name, width in self.columns():
            order = SORTED_BY.get(name, name if name in _metric_columns() else None)
            sorts = order == self.order and not (name == "age" and order == "newest")
            text = cut(tr(name) + (" ▴" if self.reverse else " ▾") * sorts, width)
            pad = " " * (width - cell_len(text))
            text = pad + text if name in RIGHT or name in _metric_columns() else text + pad
            meta = Style.from_meta({"order": order}) if order else Style()
            parts.append(Segment(text + " " * GAP, style + meta + Style(bold=sorts)))
        return Strip(parts)

    def _row(self, row: RunRow, under: bool) -> Strip:
        base = self.rich_style
        if under:
            cursor = self.get_component_styles("runs--cursor")
            base += Style(bgcolor=(self.background_colors[1] + cursor.background).rich_color)

        def pen(colour: str, bold: bool = False) -> Style:
            return base + Style(color=colour, bold=bold or None)

        muted = pen(self.app.colour("muted"))
        state = pen(self.app.colour(COLOURS.get(row.status, "muted")))
        marked = row.id in self.marked
        has_focus = under and self.has_focus
        parts = [
            Segment("▌" if under else " ", pen(self.app.colour("text-primary") if has_focus else self.app.colour("muted"))),
            Segment("●" if marked else " ", pen(self.app.colour("text-accent"), bold=True)), Segment(" ", base),
            Segment(GLYPHS.get(row.status, "·"), state + Style(bold=True)), Segment(" ", base),
        ]  # fmt: skip
        now = time.time()
        for name, width in self.columns():
            text, style = self._cell(row, name, width, now, muted, state, base + Style(bold=under or marked or None))
            if name == "curve":
                style = pen(self.app.colour("text-primary" if row.alive else "muted"))
            text = one_line(text, 400) if name != "curve" else text
            if cell_len(text) > width:
                text = set_cell_size(text, width - 1) + "…"
            pad = " " * (width - cell_len(text))
            parts += [Segment(pad + text if name in RIGHT or name in _metric_columns() else text + pad, style), Segment(" " * GAP, base)]
        return Strip(parts)

    def _cell(self, row: RunRow, name: str, width: int, now: float, muted: Style, state: Style, plain: Style) -> tuple[str, Style]:
        if name == "run":
            return row.id, plain
        if name == "status":
            if row.place:
                return (tr("held") if row.place == "held" else f"{tr(row.status)} {row.place}"), state
            return tr(row.status) + (f" {row.exit_code}" if row.status == "failed" and row.exit_code else ""), state
        if name == "kind":
            return row.kind, muted
        if name == "layout":
            return row.layout, muted
        if name == "step":
            count = "{:,}".format if self.size.width >= WIDE else partial(number, digits=3)
            total = f"/{count(row.total)}" if row.total else ""
            if row.step is not None:
                return f"{count(row.step)}{total}", plain
            return (f"{row.percent:.0%}" if row.percent is not None else f"–{total}" if total else ""), plain
        if (key := _metric_columns().get(name)) is not None:
            value = row.metrics.get(key)
            return (_fitting(value, width) if value is not None else ""), plain
        if name == "curve":
            return row.spark, plain
        if name == "age":
            if row.place:
                return (tr("held") if row.place == "held" else tr("queue {place}", place=row.place)), muted
            return (f"ETA {span(row.eta)}" if row.eta is not None else span(row.age(now))), muted
        return cause_text(row.error) or row.last_line, (state if row.error else muted)
