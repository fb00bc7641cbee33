"""The end of a run's log: follow, scroll, search."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from console.runs.tail import LogView

if TYPE_CHECKING:
    from console.runs.log_file import WholeLog

WIDEST = 400
"""How many columns a whole log can be scrolled to the right, since its longest line is not known."""
_PROBLEM_WORDS = re.compile(r"\b(error|traceback|exception|failed|killed|out of memory)\b", re.IGNORECASE)
_WARNING = re.compile(r"\b(warning|nan|skipped)\b", re.IGNORECASE)


def _cells(line: str) -> int:
    """Width of a line in columns. Fast for ASCII: thousands of lines are measured at each update."""
    return len(line) if line.isascii() else cell_len(line)


class LogPane(ScrollView, can_focus=True):
    """Shows a LogView. Scrolling up stops following, `follow` resumes it."""

    HELP = (
        "Arrows, page keys, home and end scroll; home reads a long log whole. Scrolling up stops following, F resumes it. "
        "Lines that are cut end in ›: right scrolls, W wraps. / searches, n and N go to the next and previous match."
    )
    COMPONENT_CLASSES: ClassVar = {"log--problem", "log--warning", "log--hit", "log--current", "log--empty", "log--cut"}

    class Changed(Message):
        """`following` or the matches have changed."""

    class AllAsked(Message):
        """The user went to the top while only the end of the log is shown."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.shown = LogView()
        self.lines: Sequence[str] = []
        self.all: WholeLog | None = None
        """The whole log, while it is shown."""
        self.follow = True
        self.needle = ""
        self.hits: list[int] = []
        """Indices of lines that contain the needle."""
        self.hit = 0
        self.empty = ""
        self.wrap = False
        """Whether long lines are broken at the edge; a whole log's are not, whose rows would have to be counted."""
        self._widest = self._measured = 0
        self._starts: list[int] = []
        """While lines wrap: the row at which each line starts, and the number of rows."""
        self._styles_now: tuple[Style, dict[str, Style]] | None = None

    def show(self, view: LogView) -> None:
        """Show a newer view of the same log, or (if `resets` differs) of another one."""
        if view == self.shown and self.lines:
            return
        if self.all is not None:
            if view.resets == self.shown.resets:
                self.shown = view  # newer lines are shown again with the end of the log
                return
            self._drop_all()
        before = self._starts
        moved = view.dropped - self.shown.dropped if view.resets == self.shown.resets else 0
        if view.resets != self.shown.resets or moved < 0:
            self._measured = 0
        self.shown = view
        self.lines = [*view.lines, *([view.partial] if view.partial else [])]
        # only new lines are measured
        new = len(view.lines) + view.dropped - self._measured if moved >= 0 and self._measured else len(view.lines)
        fresh = view.lines[max(len(view.lines) - max(new, 0), 0) :]
        self._widest = max(self._widest if self._measured else 0, max(map(_cells, (*fresh, view.partial)), default=0))
        self._measured = len(view.lines) + view.dropped
        self._count_rows()
        self._search(keep=True)
        if self.follow:
            self._to_end()
        elif moved > 0:
            gone = before[min(moved, len(before) - 1)] if before else moved
            self.scroll_to(y=max(self.scroll_offset.y - gone, 0), animate=False, force=True)
        self.refresh()

    # rows

    def _count_rows(self) -> None:
        """Which rows the lines take; one each unless they wrap."""
        width = self.columns
        wraps = self.wrap and self.all is None and width > 0
        self._starts = [0, *accumulate(-(-max(_cells(line), 1) // width) for line in self.lines)] if wraps else []
        columns = width if wraps else WIDEST if self.all is not None else self._widest
        size = Size(columns, self.rows)
        if size != self.virtual_size:
            self.virtual_size = size

    @property
    def columns(self) -> int:
        """Columns beside the scroll bar."""
        return self.scrollable_content_region.width

    def watch_show_vertical_scrollbar(self) -> None:
        if self.wrap:
            self.call_after_refresh(self._count_rows)

    @property
    def rows(self) -> int:
        """Number of rows of all lines."""
        return self._starts[-1] if self._starts else len(self.lines)

    def _row_of(self, index: int) -> int:
        """The first row of a line."""
        return self._starts[index] if self._starts else index

    def _line_at(self, row: int) -> tuple[int, int]:
        """(index of the line in a row, which of the line's rows it is)."""
        if not self._starts:
            return row, 0
        index = bisect_right(self._starts, row) - 1
        return index, row - self._starts[index]

    @property
    def cuts(self) -> bool:
        """Whether lines are longer than the pane is wide, and do not wrap."""
        return not self._starts and self._widest > self.columns > 0

    def set_wrap(self, wrap: bool) -> None:
        """Break long lines, or cut them. The line at the top stays there."""
        at, _ = self._line_at(self.scroll_offset.y)
        self.wrap = wrap
        self._count_rows()
        if self.follow:
            self._to_end()
        elif at < len(self.lines):
            self.scroll_to(x=0, y=self._row_of(at), animate=False, force=True)
        self.refresh()
        self.post_message(self.Changed())

    def show_all(self, log: WholeLog, hits: list[int] | None = None) -> None:
        """Show the whole log from the top, or at the last of the hits (indices of lines that contain the needle)."""
        self.all, self.lines, self.follow = log, log, False
        self._count_rows()
        self.hits, self.hit = hits or [], max(len(hits or []) - 1, 0)
        if self.hits:
            self._show_hit()
        else:
            self.scroll_to(y=0, animate=False, force=True)
        self.refresh()
        self.post_message(self.Changed())

    def _drop_all(self) -> None:
        self.all, self.hits, self.hit = None, [], 0
        view, self.shown = self.shown, LogView(resets=self.shown.resets)
        self.lines = []
        self.show(view)

    def action_scroll_home(self) -> None:
        """Go to the top. If only the end of a long log is shown, request the whole log."""
        if self.all is None and not (self.shown.whole and not self.shown.dropped):
            self.post_message(self.AllAsked())
        super().action_scroll_home()

    def action_scroll_end(self) -> None:
        if self.all is not None:
            self._drop_all()
        super().action_scroll_end()

    def clear(self, empty: str = "") -> None:
        """Clear the pane, before another run's log."""
        self.all = None
        self.empty, self.follow, self.hit = empty, True, 0
        self.show(LogView(resets=self.shown.resets + 1))

    def set_follow(self, follow: bool) -> None:
        """Keep the end in view, or leave the view where it is."""
        self.follow = follow
        if follow and self.all is not None:
            self._drop_all()
        if follow:
            self._to_end()
        self.post_message(self.Changed())

    def _to_end(self) -> None:
        # immediately: scrolling after the next paint would need another paint
        self.scroll_to(y=max(self.rows - self.size.height, 0), animate=False, force=True, immediate=True)
        # the scroll bar is created after the first lines, and is only notified of changes
        self.vertical_scrollbar.position = self.scroll_y

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        at_end = round(new_value) >= self.rows - self.size.height
        if self.follow and new_value < old_value and not at_end:
            self.follow = False
            self.post_message(self.Changed())

    def on_resize(self) -> None:
        if self.wrap:
            self._count_rows()
        if self.follow:
            self._to_end()

    # find

    def find(self, needle: str) -> None:
        """Highlight all shown lines that contain the text, ignoring case, and go to the last one."""
        if self.all is not None and not needle:
            self._drop_all()
        self.needle = needle
        self._search(keep=False)
        if self.hits:
            self.hit = len(self.hits) - 1
            self._show_hit()
        self.refresh()
        self.post_message(self.Changed())

    def find_step(self, step: int) -> None:
        """Go to the next (1) or the previous (-1) match, wrapping around."""
        if self.hits:
            self.hit = (self.hit + step) % len(self.hits)
            self._show_hit()
            self.refresh()
            self.post_message(self.Changed())

    def go_to(self, line: str) -> None:
        """Mark the last line with this text, and scroll to it."""
        if self.all is not None:
            self._drop_all()
        index = next((i for i in range(len(self.lines) - 1, -1, -1) if self.lines[i] == line), None)
        if index is None:
            return
        self.needle, self.hits, self.hit = line.strip(), [index], 0
        self._show_hit()
        self.refresh()
        self.post_message(self.Changed())

    def _search(self, keep: bool) -> None:
        current = self.hits[self.hit] + self.shown.dropped if keep and self.hit < len(self.hits) else None
        if self.all is not None:
            return  # searched in a thread
        needle = self.needle.lower()
        self.hits = [i for i, line in enumerate(self.lines) if needle in line.lower()] if needle else []
        if current is not None and self.hits:
            self.hit = min(range(len(self.hits)), key=lambda i: abs(self.hits[i] + self.shown.dropped - current))
        else:
            self.hit = 0

    def _show_hit(self) -> None:
        if self.follow:
            self.follow = False
        self.scroll_to(y=max(self._row_of(self.hits[self.hit]) - self.size.height // 2, 0), animate=False, force=True)

    # drawing

    def _pens(self) -> tuple[Style, dict[str, Style]]:
        """(background, component styles), cached: looked up once per paint, not per line."""
        if self._styles_now is None:
            names = ("log--problem", "log--warning", "log--hit", "log--current", "log--empty", "log--cut")
            self._styles_now = (self.rich_style, {name: self.get_component_rich_style(name, partial=True) for name in names})
        return self._styles_now

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles_now = None

    def render_line(self, y: int) -> Strip:
        width = self.columns
        offset_x, offset_y = self.scroll_offset
        base, pens = self._pens()
        if offset_y + y >= self.rows:
            if not self.lines and y == 0 and self.empty:
                dim = pens["log--empty"]
                return Strip([Segment(self.empty, base + dim)]).adjust_cell_length(width, base)
            return Strip.blank(width, base)
        index, part = self._line_at(offset_y + y)
        line = self.lines[index]
        style = base
        if _PROBLEM_WORDS.search(line):
            style = base + pens["log--problem"]
        elif _WARNING.search(line):
            style = base + pens["log--warning"]
        strip = Strip(self._segments(line, index, style))
        if self._starts:
            return strip.crop(part * width, (part + 1) * width).extend_cell_length(width, base)
        cut = strip.crop(offset_x, offset_x + width)
        edge = base + pens["log--cut"]
        if offset_x and strip.cell_length:
            cut = Strip.join([Strip([Segment("‹", edge)]), cut.crop(1)])
        if strip.cell_length > offset_x + width > 1:
            cut = Strip.join([cut.crop(0, width - 1), Strip([Segment("›", edge)])])
        return cut.extend_cell_length(width, base)

    def _segments(self, line: str, index: int, style: Style) -> list[Segment]:
        needle, lower = self.needle.lower(), line.lower()
        if not needle or needle not in lower or len(lower) != len(line):
            return [Segment(line, style)]
        current = self.hits and self.hits[self.hit] == index
        mark = style + self._pens()[1]["log--current" if current else "log--hit"]
        parts, at = [], 0
        while (hit_at := lower.find(needle, at)) >= 0:
            parts += [Segment(line[at:hit_at], style), Segment(line[hit_at : hit_at + len(needle)], mark)]
            at = hit_at + len(needle)
        return [part for part in [*parts, Segment(line[at:], style)] if part.text]
