"""A million points as the two thousand that show them: thinning, smoothing, what an axis shows. numpy only."""

from __future__ import annotations

import math

import numpy as np

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
    low, high = (np.where(missing, np.inf, y), np.where(missing, -np.inf, y)) if gaps else (y, y)
    found = [at + stretches(low, np.inf).argmin(axis=1), at + stretches(high, -np.inf).argmax(axis=1)]
    if gaps:
        holes = stretches(missing, False)
        found.append((at + holes.argmax(axis=1))[holes.any(axis=1)])
    return np.concatenate(found)


def decimate(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(x [m], y [m]) with m <= `most`, as `Thinner` gives them. Raises ValueError for `most` below 8."""
    return Thinner(most)(x, y)


def within(x: np.ndarray, y: np.ndarray, window: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """The points inside a window of x, and one more at each side so that lines go on to the edge. None: all."""
    if window is None or not len(x):
        return x, y
    low, high = sorted(window)
    begin = max(int(np.searchsorted(x, low)) - 1, 0)
    end = min(int(np.searchsorted(x, high, "right")) + 1, len(x))
    return x[begin:end], y[begin:end]


class Smoother:
    """Exponential moving average of a growing series, debiased at its beginning; NaN stays NaN and weighs nothing.

    weight: of the average so far, 0 (none) to below 1. Given the series again with more points at its end, only those are
    computed. Raises ValueError for a weight outside of that.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise ValueError(f"weight is {weight}; from 0 to below 1")
        self.weight = weight
        self._total = self._share = 0.0
        self._made, self._done = np.empty(0), 0

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """The average [n] of y [n]; read-only, and its first values stay what they are."""
        if not self.weight:
            return y
        new = y[self._done :]
        if len(new):
            if len(y) > len(self._made):
                room = np.empty(max(2 * len(self._made), len(y)))
                room[: self._done] = self._made[: self._done]
                self._made = room
            there = np.isfinite(new)
            total = _recurrence(np.where(there, new, 0.0), self.weight, self._total)
            share = _recurrence(there.astype(np.float64), self.weight, self._share)
            with np.errstate(invalid="ignore", divide="ignore"):
                self._made[self._done : len(y)] = np.where(there, total / share, np.nan)
            self._total, self._share, self._done = float(total[-1]), float(share[-1]), len(y)
        made = self._made[: len(y)]
        made.flags.writeable = False
        return made


def smooth(y: np.ndarray, weight: float) -> np.ndarray:
    """The whole average at once, as `Smoother` gives it. Raises ValueError for a weight outside of 0 to below 1."""
    return Smoother(weight)(y)


class Growing:
    """One line of a figure while its series grows: smoothed, then thinned, only what is new computed.

    version: of the series; when that is another one, or another weight is wanted, a new `Growing` is needed.
    """

    def __init__(self, version: int, weight: float) -> None:
        self.version, self.weight = version, weight
        self._smoother, self._thinner = Smoother(weight), Thinner()

    def __call__(
        self, x: np.ndarray, y: np.ndarray, window: tuple[float, float] | None = None, most: int = MOST_POINTS
    ) -> tuple[np.ndarray, np.ndarray]:
        """(x [m], y [m]), m <= most, of what is inside the window. A window costs as much as the points in it."""
        y = self._smoother(y)
        if window is None and most == self._thinner.most:
            return self._thinner(x, y)
        return decimate(*within(x, y, window), most)


def _recurrence(values: np.ndarray, weight: float, carried: float) -> np.ndarray:
    """s[i] = weight * s[i-1] + values[i], s[-1] = carried, in blocks short enough for weight ** -i to stay far from overflow."""
    n = len(values)
    length = max(1, min(4096, n, int(40 / -math.log(weight))))
    rows = math.ceil(n / length)
    blocks = np.concatenate([values, np.zeros(rows * length - n)]).reshape(rows, length)
    powers = weight ** np.arange(length)
    inside = np.cumsum(blocks / powers, axis=1) * powers
    carries = np.empty(rows)
    step = weight**length
    for row, last in enumerate(inside[:, -1].tolist()):
        carries[row] = carried
        carried = carried * step + last
    return (inside + carries[:, None] * (powers * weight)).reshape(-1)[:n]
