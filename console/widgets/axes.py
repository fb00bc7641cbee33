"""The axes of a curve in rows and columns of characters. Pure functions."""

from __future__ import annotations

from console.curves.ticks import step_ticks, value_ticks
from qwen3vl_core.formats import number


def y_axis(y0: float, y1: float, rows: int, log: bool, ends: tuple[float, float] | None = None) -> list[tuple[int, str]]:
    """[(row from the top, label)] for values from y0 (bottom) to y1 (top); log: y0, y1 and ends are decimal logarithms.

    ends: the lowest and the highest value that is drawn; each has a label, and round values next to it have none.
    """

    def row_of(value: float) -> int:
        return round((rows * 4 - 1) * (1 - (value - y0) / (y1 - y0))) // 4

    marks = {row_of(value): number(10.0**value if log else value, 3) for value in ends or ()}
    taken = {row + near for row in marks for near in (-1, 0, 1)}
    for value, label in value_ticks(y0, y1, max(3, rows // 3), log):
        row = row_of(value)
        if 0 <= row < rows and row not in taken:
            marks.setdefault(row, label)
    return sorted(marks.items())


def x_axis(x0: float, x1: float, gutter: int, columns: int, filled: bool) -> tuple[str, str]:
    """(axis line with ticks, `columns` wide; line of step labels, including the gutter). filled: whether there are steps."""
    line, below = list("─" * columns), [" "] * (columns + gutter)
    free = 0
    for value, label in step_ticks(x0, x1, max(2, columns // 12)) if filled else ():
        column = round((value - x0) / (x1 - x0) * (columns - 1))
        start = min(max(gutter + column - len(label) // 2, 0), len(below) - len(label))
        if start < free:
            continue
        line[column] = "┬"
        below[start : start + len(label)] = label
        free = start + len(label) + 1
    return "".join(line), "".join(below)
