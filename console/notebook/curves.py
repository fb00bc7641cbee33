"""A million points as the two thousand that show them: decimation, smoothing, what an axis shows. numpy only."""

from __future__ import annotations

import math

import numpy as np

MOST_POINTS = 2000
"""Points of one trace that are sent to a browser."""


def decimate(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(x [m], y [m]) with m <= `most`: of each stretch of points the lowest and the highest, where they stand.

    x [n] rises, y [n] may hold NaN. The first and the last point stay, and a stretch with a NaN keeps one, so that a gap
    stays a gap. Raises ValueError for `most` below 8.
    """
    if most < 8:
        raise ValueError(f"most is {most}; at least 8")
    n = len(x)
    if n <= most:
        return x, y
    missing = np.isnan(y)
    kept = 3 if missing.any() else 2
    width = math.ceil(n / ((most - 2) // kept))
    rows = math.ceil(n / width)
    pad = rows * width - n

    def stretches(values: np.ndarray, fill: float) -> np.ndarray:
        return np.concatenate([values, np.full(pad, fill, values.dtype)]).reshape(rows, width)

    at = np.arange(rows) * width
    found = [
        at + stretches(np.where(missing, np.inf, y), np.inf).argmin(axis=1),
        at + stretches(np.where(missing, -np.inf, y), -np.inf).argmax(axis=1),
    ]
    if kept == 3:
        gaps = stretches(missing, False)
        found.append((at + gaps.argmax(axis=1))[gaps.any(axis=1)])
    index = np.unique(np.concatenate([*found, [0, n - 1]]))
    return x[index], y[index]


def within(x: np.ndarray, y: np.ndarray, window: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """The points inside a window of x, and one more at each side so that lines go on to the edge. None: all."""
    if window is None or not len(x):
        return x, y
    low, high = sorted(window)
    begin = max(int(np.searchsorted(x, low)) - 1, 0)
    end = min(int(np.searchsorted(x, high, "right")) + 1, len(x))
    return x[begin:end], y[begin:end]


def smooth(y: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average of y [n], debiased at its beginning; NaN stays NaN and weighs nothing.

    weight: of the average so far, 0 (none) to below 1. Raises ValueError outside of that.
    """
    if not 0 <= weight < 1:
        raise ValueError(f"weight is {weight}; from 0 to below 1")
    if not weight or not len(y):
        return y
    there = np.isfinite(y)
    total, share = (_recurrence(v, weight) for v in (np.where(there, y, 0.0), there.astype(np.float64)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, total / share, np.nan)


def _recurrence(values: np.ndarray, weight: float) -> np.ndarray:
    """s[i] = weight * s[i-1] + values[i], in blocks short enough for weight ** -i to stay far from overflow."""
    n = len(values)
    length = max(1, min(4096, n, int(40 / -math.log(weight))))
    rows = math.ceil(n / length)
    blocks = np.concatenate([values, np.zeros(rows * length - n)]).reshape(rows, length)
    powers = weight ** np.arange(length)
    inside = np.cumsum(blocks / powers, axis=1) * powers
    carried, carries = 0.0, np.empty(rows)
    step = weight**length
    for row, last in enumerate(inside[:, -1].tolist()):
        carries[row] = carried
        carried = carried * step + last
    return (inside + carries[:, None] * (powers * weight)).reshape(-1)[:n]
