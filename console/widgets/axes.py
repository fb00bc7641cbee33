"""What stands at the axes of a curve: round numbers and where they go. No screen."""

from __future__ import annotations

import math

from console.formatting import number, tick
from console.widgets.braille import log_ticks, ticks


def y_axis(y0: float, y1: float, rows: int, log: bool) -> list[tuple[int, str]]:
    """[(row from the top, label)] of values between y0 (below) and y1; log: these are decimal logarithms."""
    count = max(3, rows // 3)
    if log:
        placed = [(math.log10(v), number(v, 3)) for v in log_ticks(y0, y1, count) if v > 0]
    else:
        values = ticks(y0, y1, count)
        placed = [(v, tick(v, values[1] - values[0]) if len(values) > 1 else number(v, 3)) for v in values]
    marks: dict[int, str] = {}
    for value, label in placed:
        row = round((rows * 4 - 1) * (1 - (value - y0) / (y1 - y0))) // 4
        if 0 <= row < rows:
            marks.setdefault(row, label)
    return sorted(marks.items())


def x_axis(x0: float, x1: float, gutter: int, columns: int, filled: bool) -> tuple[str, str]:
    """(the line with its ticks, `columns` wide; the steps under it, with the gutter). filled: whether there are steps."""
    line, below = list("─" * columns), [" "] * (columns + gutter)
    free = 0
    for value in (v for v in ticks(x0, x1, max(2, columns // 12)) if v == int(v)) if filled else ():
        column = round((value - x0) / (x1 - x0) * (columns - 1))
        label = f"{int(value):,}"
        start = min(max(gutter + column - len(label) // 2, 0), len(below) - len(label))
        if start < free:
            continue
        line[column] = "┬"
        below[start : start + len(label)] = label
        free = start + len(label) + 1
    return "".join(line), "".join(below)
