"""A million points as the two thousand that show them."""

from __future__ import annotations

import math

import numpy as np

from console.curves.columns import places

MOST_POINTS = 2000
"""Points of one trace that are sent to a browser."""


class Thinner:
    """A growing series as at most `most` points: of each stretch the lowest and the highest, where they stand.

    Given the series again with more points at its end, only the stretches that are new are looked at; a series whose earlier
    points have changed needs a new one. The first and the last point stay, and a stretch with a NaN keeps one, so that a gap
    stays a gap. Raises ValueError for `most` below 8.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        if most < 8:
            raise ValueError(f"most is {most}; at least 8")
        self.most = most
        self._seen, self._gaps = 0, False
        self._forget(0)

    def _forget(self, width: int) -> None:
        self._width, self._done, self._kept = width, 0, np.empty(0, np.int64)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x [m], y [m]) of x [n] that rises and y [n] that may hold NaN; m <= most."""
        n = len(y)
        gaps = self._gaps or bool(np.isnan(y[self._seen :]).any())
        width = _stretch(n, (self.most - 2) // (3 if gaps else 2))
        if (gaps, width) != (self._gaps, self._width):
            self._forget(width)
        self._seen, self._gaps = n, gaps
        if n <= self.most:
            return x, y
        whole = n // width * width
        if whole > self._done:
            self._kept = np.concatenate([self._kept, _extremes(y[self._done : whole], width, gaps) + self._done])
            self._done = whole
        rest = _extremes(y[whole:], width, gaps) + whole if n > whole else np.empty(0, np.int64)
        index = np.unique(np.concatenate([self._kept, rest, [0, n - 1]]))
        return x[index], y[index]


def _stretch(n: int, rows: int) -> int:
    """Points of a stretch, so that `rows` of them hold n. It grows by a quarter at a time: seldom while n grows by one."""
    width = 1
    while width * rows < n:
        width = max(width + 1, width * 5 // 4)
    return width


def _extremes(y: np.ndarray, width: int, gaps: bool) -> np.ndarray:
    """Where in y [n] the lowest and the highest of each `width` values are, and one NaN where there are any."""
    n = len(y)
    rows = math.ceil(n / width)
    pad = rows * width - n

    def stretches(values: np.ndarray, fill: float) -> np.ndarray:
        return (np.concatenate([values, np.full(pad, fill, values.dtype)]) if pad else values).reshape(rows, width)

    at = np.arange(rows) * width
    missing = np.isnan(y) if gaps else None
    low, high = (np.where(missing, np.inf, y), np.where(missing, -np.inf, y)) if missing is not None else (y, y)
    found = [at + stretches(low, np.inf).argmin(axis=1), at + stretches(high, -np.inf).argmax(axis=1)]
    if missing is not None:
        holes = stretches(missing, False)
        found.append((at + holes.argmax(axis=1))[holes.any(axis=1)])
    return np.concatenate(found)


def decimate(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(x [m], y [m]) with m <= `most`, as `Thinner` gives them. Raises ValueError for `most` below 8."""
    return Thinner(most)(x, y)


def within(x: np.ndarray, y: np.ndarray, window: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """The points inside a window of x, and one more at each side so that lines reach the edge. None: all."""
    if window is None or not len(x):
        return x, y
    low, high = sorted(window)
    begin = max(int(places(x, low)) - 1, 0)
    end = min(int(places(x, high, "right")) + 1, len(x))
    return x[begin:end], y[begin:end]
