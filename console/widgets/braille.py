"""Draws the columns of a series as braille dots. Pure functions on numpy arrays."""

from __future__ import annotations

import numpy as np

from console.curves.columns import Columns

DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint16)
"""Bit of a dot inside a braille character, by its row (4) and column (2)."""


def rasterize(columns: Columns, width: int, height: int, y0: float, y1: float) -> np.ndarray:
    """Braille bits [height, width] (code point minus 0x2800). columns: 2 * width of them. y0, y1: values at the bottom and the top."""
    count = 2 * width
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    enter, leave = low.copy(), low.copy()
    linked = np.zeros(count, bool)
    at = columns.column
    if not len(at):
        return np.zeros((height, width), np.uint16)
    # straight lines across empty columns between two connected points
    every = np.arange(count)
    before = np.searchsorted(at, every, side="right") - 1
    inside = (before >= 0) & (before < len(at) - 1)
    before, between = before[inside], every[inside]
    joins = columns.joined[before + 1]
    before, between = before[joins], between[joins]
    share = (between - at[before]) / (at[before + 1] - at[before])
    value = columns.last[before] + (columns.first[before + 1] - columns.last[before]) * share
    low[between] = high[between] = enter[between] = leave[between] = value
    linked[between] = True
    low[at], high[at], enter[at], leave[at], linked[at] = columns.low, columns.high, columns.first, columns.last, columns.joined
    # neighbours meet half way, so that steep lines have no gaps
    has_value = ~np.isnan(low)
    meet = np.nonzero(linked[1:] & has_value[1:] & has_value[:-1])[0] + 1
    middle = (leave[meet - 1] + enter[meet]) / 2
    for k in (meet - 1, meet):
        low[k], high[k] = np.minimum(low[k], middle), np.maximum(high[k], middle)
    last_row = height * 4 - 1
    scale = last_row / (y1 - y0)
    top, bottom = np.full(count, last_row + 1), np.full(count, -1)
    top[has_value] = np.clip(np.rint(last_row - (high[has_value] - y0) * scale), 0, last_row)
    bottom[has_value] = np.clip(np.rint(last_row - (low[has_value] - y0) * scale), 0, last_row)
    rows = np.arange(height * 4)[:, None]
    grid = (rows >= top) & (rows <= bottom)
    return (grid.reshape(height, 4, width, 2) * DOTS[None, :, None, :]).sum(axis=(1, 3)).astype(np.uint16)
