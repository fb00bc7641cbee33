"""The live curve: several runs, raw and smoothed, with axes, legend, crosshair, zoom and pan."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.color import Color
from textual.strip import Strip
from textual.widget import Widget

from console.curves.columns import search
from console.curves.layers import LineReducer, layers_of, on_log_axis, span
from console.curves.lines import SLOTS, CurveLine
from console.curves.marks import MARKS, Mark
from console.curves.smoothing import SHARE, Average
from console.curves.ticks import value_range, wants_log
from console.formatting import cut, one_line
from console.widgets.axes import x_axis, y_axis
from console.widgets.braille import rasterize
from qwen3vl_core.cells import padded
from qwen3vl_core.cells import width as width_of
from qwen3vl_core.formats import number
from qwen3vl_core.language import tr

FADE = 0.55
"""How far a raw line fades into the background under its average, 0 to 1."""
FEW_POINTS = 20_000
"""Points up to which a curve is compared with what is drawn."""
NARROWEST = 4
"""Number of steps in view at the largest zoom."""


class Curve(Widget, can_focus=True):
    """Draws curves. `show` sets the data; `share`, `log_wanted` and the actions `zoom`, `pan`, `reset`, `cross` set the view."""

    HELP = (
        "Wheel zooms, dragging pans, the pointer shows values. On the axis: ◆ checkpoint, ✗ NaN, ▲ spike, ↻ resume, ■ stop. "
        "With more points than columns the dim dots are the values and the bright line is the average of a window, which the title names."
    )
    COMPONENT_CLASSES: ClassVar = {
        "curve--axis", "curve--text", "curve--cross", "curve--mark", "curve--problem", *(f"curve--line-{i}" for i in range(SLOTS)),
    }  # fmt: skip

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lines: list[CurveLine] = []
        self.title = ""
        self.note = ""
        """Text at the end of the title."""
        self.empty = ""
        """Text instead of a curve without points."""
        self.share = SHARE
        """Width of the averages' window as a share of the steps in view; 0: no average."""
        self.log_wanted: bool | None = None
        """Whether the axis of values is logarithmic; None: if what is in view asks for it."""
        self.log_y = False
        """Whether it is."""
        self.view: tuple[float, float] | None = None
        """Steps in view; None: all steps, including future ones."""
        self.crosshair: float | None = None
        """Step at the crosshair."""
        self.marks: tuple[Mark, ...] = ()
        self._reducer = LineReducer()
        self._averages: list[Average | None] = []
        """Of each line, for the current view."""
        self._strips: list[Strip] = []
        self._styles_now: tuple[Style, Style, Style, list[Style], list[Style]] | None = None
        self._drawn: tuple[object, ...] | None = None
        """What the strips were made of."""
        self._plot = (0, 0, 0, 0)  # left, top, width, height of the dots, in cells
        self._drag: tuple[int, tuple[float, float]] | None = None

    # data

    def show(self, lines: list[CurveLine], title: str, note: str = "", empty: str = "", marks: Iterable[Mark] = ()) -> None:
        """Show these lines. A zoomed view that ends at the newest step follows it."""
        before = self.extent
        following = self.view is not None and before is not None and self.view[1] >= before[1]
        self.lines, self.title, self.note, self.empty = lines, title, note, empty
        self.marks = tuple(mark for mark in marks if mark.kind in MARKS)
        after = self.extent
        if self.view is not None and before and after:
            if after[1] < self.view[0] or after[0] > self.view[1]:
                self.view = None  # another run: its steps are not in the old view
            elif following and after[1] > before[1]:
                width = self.view[1] - self.view[0]
                self.view = (after[1] - width, after[1])
        if self._drawn is None or self._drawn != self._picture():
            self.rebuild()

    def _picture(self) -> tuple[object, ...] | None:
        """What the drawing depends on, but for colours; None for more points than are worth looking at."""
        if sum(len(line.x) for line in self.lines) > FEW_POINTS:
            return None
        lines = tuple((line.label, line.slot, line.noisy, line.x.tobytes(), line.y.tobytes()) for line in self.lines)
        return (self.size, self.title, self.note, self.empty, self.marks, self.share, self.log_wanted, self.view, lines)

    @property
    def extent(self) -> tuple[float, float] | None:
        """First and last step of all lines."""
        filled = [line for line in self.lines if len(line.x)]
        if not filled:
            return None
        return float(min(line.x[0] for line in filled)), float(max(line.x[-1] for line in filled))

    @property
    def shown(self) -> tuple[float, float]:
        """First and last step in view."""
        x0, x1 = self.view or self.extent or (0.0, 1.0)
        return (x0, x1) if x1 > x0 else (x0 - 1, x0 + 1)

    # actions

    def action_zoom(self, factor: float, center: float | None = None) -> None:
        """Show `factor` times as many steps, centered at `center`, the crosshair, or the newest step."""
        extent = self.extent
        if extent is None:
            return
        x0, x1 = self.shown
        if center is None:
            center = self.crosshair if self.crosshair is not None and x0 <= self.crosshair <= x1 else x1
        width = max((x1 - x0) * factor, NARROWEST)
        share = (center - x0) / (x1 - x0)
        self._look_at(center - share * width, width)

    def action_pan(self, share: float) -> None:
        """Move the view by a fraction of its width."""
        x0, x1 = self.shown
        self._look_at(x0 + share * (x1 - x0), x1 - x0)

    def action_reset(self) -> None:
        """Show all steps."""
        self.view = None
        self.rebuild()

    def action_cross(self, direction: int) -> None:
        """Move the crosshair by one column; the first time it appears at the newest step in view."""
        if self.extent is None or not self._plot[2]:
            return
        x0, x1 = self.shown
        if self.crosshair is None or not x0 <= self.crosshair <= x1:
            self.crosshair = min(x1, self.extent[1])
        else:
            self.crosshair = min(max(self.crosshair + direction * (x1 - x0) / self._plot[2], x0), x1)
        self.refresh()

    def action_event(self, direction: int) -> None:
        """Move the crosshair to the next (1) or the previous (-1) mark; if it is not in view, move the view to it."""
        extent = self.extent
        if extent is None:
            return
        steps = sorted({mark.step for mark in self.marks if extent[0] <= mark.step <= extent[1]})
        if not steps:
            return
        at = self.crosshair
        if direction > 0:
            step = steps[0] if at is None else next((s for s in steps if s > at + 1e-9), steps[-1])
        else:
            step = steps[-1] if at is None else next((s for s in reversed(steps) if s < at - 1e-9), steps[0])
        self.crosshair = float(step)
        x0, x1 = self.shown
        if not x0 <= step <= x1:
            self._look_at(step - (x1 - x0) / 2, x1 - x0)
        self.refresh()

    def _mark_near(self, step: float) -> Mark | None:
        """The mark in the column of the crosshair."""
        x0, x1 = self.shown
        reach = (x1 - x0) / max(self._plot[2] - 1, 1) * 0.5001
        near = [mark for mark in self.marks if abs(mark.step - step) <= reach]
        return min(near, key=lambda mark: (MARKS[mark.kind][1] != "problem", abs(mark.step - step)), default=None)

    def hide_crosshair(self) -> bool:
        """Hide the crosshair. Returns whether it was visible."""
        was_shown, self.crosshair = self.crosshair is not None, None
        self.refresh()
        return was_shown

    def _look_at(self, x0: float, width: float) -> None:
        extent = self.extent
        if extent is None:
            return
        if width >= extent[1] - extent[0]:
            self.view = None
        else:
            x0 = min(max(x0, extent[0]), extent[1] - width)
            self.view = (x0, x0 + width)
        self.rebuild()

    # mouse

    def _step_at(self, x: int) -> float | None:
        left, _, width, _ = self._plot
        if not left <= x < left + width or width < 2:
            return None
        x0, x1 = self.shown
        return x0 + (x - left) / (width - 1) * (x1 - x0)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._drag is not None:
            start, (x0, x1) = self._drag
            self._look_at(x0 - (event.x - start) / max(self._plot[2], 1) * (x1 - x0), x1 - x0)
        else:
            self.crosshair = self._step_at(event.x) if self.extent else None
            self.refresh()

    def on_leave(self) -> None:
        if self._drag is None:
            self.hide_crosshair()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._drag = (event.x, self.shown)
        self.capture_mouse()

    def on_mouse_up(self) -> None:
        self._drag = None
        self.release_mouse()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_zoom(1.5, self._step_at(event.x))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_zoom(1 / 1.5, self._step_at(event.x))

    # drawing

    def on_resize(self) -> None:
        self.rebuild()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles_now = None
        self.rebuild()

    def _styles(self) -> tuple[Style, Style, Style, list[Style], list[Style]]:
        """(background, axis, text, lines, faded lines), cached until the colours change."""
        if self._styles_now is not None:
            return self._styles_now
        base = self.rich_style
        ground = self.background_colors[1]

        def pen(name: str, fade: float = 0.0) -> Style:
            styles = self.get_component_styles(name)
            color: Color = ground + styles.color
            return base + Style(color=color.blend(ground, fade).rich_color, bold=styles.text_style.bold)

        names = [f"curve--line-{i}" for i in range(SLOTS)]
        self._styles_now = base, pen("curve--axis"), pen("curve--text"), [pen(n) for n in names], [pen(n, FADE) for n in names]
        return self._styles_now

    def rebuild(self) -> None:
        """Draw everything into strips; the crosshair is drawn over them when they are rendered."""
        self._drawn = self._picture()
        width, height = self.size
        self._strips, self._averages = [], [None] * len(self.lines)
        if width < 12 or height < 4 or not self.is_attached:
            self.refresh()
            return
        x0, x1 = self.shown
        bottom = 2 if height >= 7 else 0
        rows = height - 1 - bottom
        # the labels depend on the drawn range, which depends on their width: start with the last width
        gutter = self._plot[0] or 5
        noisy = [line.slot for line in self.lines if line.noisy]
        attempt = 0
        while True:
            columns = width - gutter
            self._averages = self._reducer.averages(self.lines, self.shown, columns, self.share)
            layers = layers_of(self.lines, self._averages)
            drawn = [self._reducer.columns(layer, self.shown, 2 * columns) for layer in layers]
            of_noisy = [one for one, layer in zip(drawn, layers, strict=True) if layer.key in noisy]
            self.log_y = wants_log(of_noisy) if self.log_wanted is None else self.log_wanted
            if self.log_y:
                drawn = [on_log_axis(layer, one, self.shown, 2 * columns) for layer, one in zip(layers, drawn, strict=True)]
            ends = span(drawn)
            y0, y1 = self._y_range(ends, rows)
            marks = y_axis(y0, y1, rows, self.log_y, ends) if self.lines else []
            needed = max((len(label) for _, label in marks), default=0) + 1
            if needed <= gutter <= needed + 2 or attempt == 3:
                break  # one spare column is kept: the curve does not jump when a label gets shorter
            gutter = max(gutter, needed) if attempt == 2 else needed
            attempt += 1
        self._plot = (gutter, 1, columns, rows)
        code = np.zeros((rows, columns), np.uint16)
        owner = np.zeros((rows, columns), np.int16)
        for layer, one in zip(layers, drawn, strict=True):
            bits = rasterize(one, columns, rows, y0, y1)
            mine = bits > 0
            code[mine] = bits[mine]
            owner[mine] = 1 + layer.slot + (SLOTS if layer.faded else 0)

        base, axis, text, pens, faded_pens = self._styles()
        styles = [base, *pens, *faded_pens]
        labels = {row: label for row, label in marks}
        for row in range(rows):
            label = labels.get(row, "")
            head = [Segment(label.rjust(gutter - 1), text), Segment("┤" if label else "│", axis)]
            cuts = [0, *(np.flatnonzero(np.diff(owner[row])) + 1).tolist(), columns]
            chars = "".join(map(chr, (code[row] + 0x2800).tolist())).replace("\u2800", " ")
            body = [Segment(chars[a:z], styles[owner[row, a]]) for a, z in pairwise(cuts)]
            self._strips.append(Strip([*head, *body], width))
        if bottom:
            self._strips += self._x_axis(x0, x1, gutter, columns, base, axis, text)
        self.refresh()

    def _y_range(self, ends: tuple[float, float] | None, rows: int) -> tuple[float, float]:
        if ends is None:
            return (0.0, 1.0)
        low, high = ends
        room = (high - low) / (4 * rows)  # a dot: the ends are in the first and the last row, which say their values
        return (low - room, high + room) if room else value_range(low, high, self.log_y)

    def _x_axis(self, x0: float, x1: float, gutter: int, columns: int, base: Style, axis: Style, text: Style) -> list[Strip]:
        line, below = x_axis(x0, x1, gutter, columns, filled=self.extent is not None)
        rule = Strip([Segment(" " * (gutter - 1), base), *self._rule("└" + line, x0, x1, columns, axis)], gutter + columns)
        return [rule, Strip([Segment(below, text)], gutter + columns)]

    def _rule(self, line: str, x0: float, x1: float, columns: int, axis: Style) -> list[Segment]:
        """The axis with its marks; problems are drawn over planned events."""
        placed: dict[int, tuple[str, str]] = {}
        for mark in self.marks:
            if x0 <= mark.step <= x1:
                column = 1 + round((mark.step - x0) / (x1 - x0) * (columns - 1))
                if placed.get(column, ("", ""))[1] != "problem":
                    placed[column] = MARKS[mark.kind]
        parts, at = [], 0
        for column, (glyph, name) in sorted(placed.items()):
            color = self.background_colors[1] + self.get_component_styles(f"curve--{name}").color
            parts += [Segment(line[at:column], axis), Segment(glyph, self.rich_style + Style(color=color.rich_color, bold=True))]
            at = column + 1
        return [part for part in [*parts, Segment(line[at:], axis)] if part.text]

    def values_at(self, step: float) -> list[tuple[CurveLine, int, float, float | None]]:
        """(line, its nearest step, value, average if one is drawn) of each line with points in view."""
        values = []
        x0, x1 = self.shown
        for line, mean in zip(self.lines, self._averages, strict=True):
            begin, end = search(line.x, x0), search(line.x, x1, "right")
            if begin == end:
                continue
            i = int(search(line.x[begin:end], step)) + begin
            if i == end or (i > begin and step - line.x[i - 1] <= line.x[i] - step):
                i -= 1
            values.append((line, int(line.x[i]), float(line.y[i]), None if mean is None else mean.at(step)))
        return values

    @property
    def words(self) -> str:
        """What the title says about the drawing: the axis, the average, the note."""
        means = [mean for mean in self._averages if mean is not None]
        words = [tr("log-y")] if self.log_y else []
        if any(line.noisy for line in self.lines):
            words.append(means[0].name if means else tr("raw"))
        return " · ".join([*words, *([self.note] if self.note else [])])

    def _legend(self, width: int) -> Strip:
        base, axis, text, pens, _ = self._styles()
        bold = text + Style(bold=True)
        parts = [Segment(" ", base), Segment(self.title, bold)]
        if words := self.words:
            parts.append(Segment(f" · {words}", axis))
        if self.crosshair is not None and self.lines:
            values = self.values_at(self.crosshair)
            if values:
                parts = [Segment(" ", base), Segment(self.title, bold), Segment("  " + tr("step {step:,}", step=values[0][1]), text)]
                if (mark := self._mark_near(self.crosshair)) is not None:
                    glyph, name = MARKS[mark.kind]
                    color = self.background_colors[1] + self.get_component_styles(f"curve--{name}").color
                    parts.append(Segment(f"  {glyph} {one_line(mark.text, 60)}", base + Style(color=color.rich_color)))
                for line, _, value, smooth in values:
                    average = "" if smooth is None else f" ({tr('avg')} {number(smooth)})"
                    name = f"{one_line(line.label, 12)} " if len(values) > 1 else ""
                    parts += [Segment("  ━━ ", pens[line.slot % SLOTS]), Segment(f"{name}{number(value)}{average}", text)]
        else:
            room = (width - sum(part.cell_length for part in parts)) // max(len(self.lines), 1) - 5
            for line in self.lines:
                # without room for the name of a run its number is enough
                label = line.label if len(line.label) <= room else line.label.partition("-")[0] if room < 12 else line.label
                parts += [Segment("  ━━ ", pens[line.slot % SLOTS]), Segment(one_line(label, max(room, 4)), text)]
        return Strip(parts).adjust_cell_length(width, base)

    def render_line(self, y: int) -> Strip:
        width, _ = self.size
        if y == 0:
            return self._legend(width)
        if y - 1 >= len(self._strips):
            return Strip.blank(width, self.rich_style)
        strip = self._strips[y - 1]
        left, top, columns, rows = self._plot
        inside = top <= y < top + rows
        if self.extent is None and self.empty and inside and y == top + rows // 2:
            text = cut(self.empty, columns - 2)
            text = padded(" " * ((columns - width_of(text)) // 2) + text, columns)
            return Strip([*strip.crop(0, left), Segment(text, self._styles()[2])], width)
        if self.crosshair is not None and inside and self.extent is not None:
            x0, x1 = self.shown
            if x0 <= self.crosshair <= x1:
                column = left + round((self.crosshair - x0) / (x1 - x0) * (columns - 1))
                under, base = strip.crop(column, column + 1), self.rich_style
                cross = self.get_component_rich_style("curve--cross")
                if under.text == " ":
                    under = Strip([Segment("┊", base + Style(color=cross.color))], 1)
                else:
                    under = Strip([Segment(s.text, (s.style or base) + Style(bgcolor=cross.bgcolor)) for s in under], 1)
                return Strip.join([strip.crop(0, column), under, strip.crop(column + 1, width)])
        return strip
