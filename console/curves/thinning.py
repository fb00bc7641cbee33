"""Reduces a series to few points that look the same: two thousand for a million."""

from __future__ import annotations

import math

import numpy as np

from console.curves.columns import search

MOST_POINTS = 2000
"""Most points of one trace that are sent to a browser."""


class Thinner:
    """Reduces a growing series to at most `most` points: the lowest and the highest of each bin, in their order.

    When called again with points appended, only new bins are computed; if earlier points have changed, create a new `Thinner`.
    The first and the last point are kept, and a bin with a NaN keeps one, so that gaps stay. Raises ValueError for `most` below 8.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        if most < 8:
            raise ValueError(f"most is {most}, must be at least 8")
        self.most = most
        self._seen, self._gaps = 0, False
        self._forget(0)

    def _forget(self, width: int) -> None:
        self._width, self._done, self._kept = width, 0, np.empty(0, np.int64)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x [m], y [m]), m <= most, from x [n], ascending, and y [n], which may hold NaN."""
        n = len(y)
        gaps = self._gaps or bool(np.isnan(y[self._seen :]).any())
        width = _bin_size(n, (self.most - 2) // (3 if gaps else 2))
        if (gaps, width) != (self._gaps, self._width):
            self._forget(width)
        self._seen, self._gaps = n, gaps
        if n <= self.most:
            return x, y
        complete = n // width * width
        if complete > self._done:
            self._kept = np.concatenate([self._kept, _extremes(y[self._done : complete], width, gaps) + self._done])
            self._done = complete
        rest = _extremes(y[complete:], width, gaps) + complete if n > complete else np.empty(0, np.int64)
        index = np.unique(np.concatenate([self._kept, rest, [0, n - 1]]))
        return x[index], y[index]


def _bin_size(n: int, rows: int) -> int:
    """Points in a bin, so that `rows` bins hold n. It grows by a quarter at a time, so that it changes rarely while n grows."""
    width = 1
    while width * rows < n:
        width = max(width + 1, width * 5 // 4)
    return width


def _extremes(y: np.ndarray, width: int, gaps: bool) -> np.ndarray:
    """Indices in y [n] of the lowest and the highest value of each bin of `width` values, and of one NaN if there are any."""
    n = len(y)
    rows = math.ceil(n / width)
    pad = rows * width - n

    def bins(values: np.ndarray, fill: float) -> np.ndarray:
        return (np.concatenate([values, np.full(pad, fill, values.dtype)]) if pad else values).reshape(rows, width)

    at = np.arange(rows) * width
    missing = np.isnan(y) if gaps else None
    low, high = (np.where(missing, np.inf, y), np.where(missing, -np.inf, y)) if missing is not None else (y, y)
    indices = [at + bins(low, np.inf).argmin(axis=1), at + bins(high, -np.inf).argmax(axis=1)]
    if missing is not None:
        holes = bins(missing, False)
        indices.append((at + holes.argmax(axis=1))[holes.any(axis=1)])
    return np.concatenate(indices)


def decimate(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(x [m], y [m]), m <= `most`, as `Thinner` returns them. Raises ValueError for `most` below 8."""
    return Thinner(most)(x, y)


def within(x: np.ndarray, y: np.ndarray, window: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """The points in a window of x, plus one at each side so that lines reach the edge. None: all."""
    if window is None or not len(x):
        return x, y
    low, high = sorted(window)
    begin = max(int(search(x, low)) - 1, 0)
    end = min(int(search(x, high, "right")) + 1, len(x))
    return x[begin:end], y[begin:end]
