"""The axes of a curve in rows and columns of characters. Pure functions."""

from __future__ import annotations

from console.curves.ticks import step_ticks, value_ticks


def y_axis(y0: float, y1: float, rows: int, log: bool) -> list[tuple[int, str]]:
    """[(row from the top, label)] for values from y0 (bottom) to y1 (top); log: y0 and y1 are decimal logarithms."""
    marks: dict[int, str] = {}
    for value, label in value_ticks(y0, y1, max(3, rows // 3), log):
        row = round((rows * 4 - 1) * (1 - (value - y0) / (y1 - y0))) // 4
        if 0 <= row < rows:
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
