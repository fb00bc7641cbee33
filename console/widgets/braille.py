"""Numbers to braille dots, and axes: numpy only, no screen.

A series is drawn as the minimum and maximum of each dot column, so that every spike is kept and the cost after the
reduction is that of the width, not of the length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MOST = 1e100
"""Values beyond are drawn there: sums and differences of larger ones are no numbers."""
BLOCK = 256
"""Points of which one minimum and maximum is kept."""
COARSE = 8
"""Blocks of a column from which the blocks' bounds are looked at instead of the points: the border is an eighth of a dot off at most."""
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint16)
"""Bit of a dot inside a braille character, by its row (4) and column (2)."""
BLOCK_RANGE = 1e9
"""Largest ratio of weights inside one block of the smoothing: sums of them keep 6 digits and do not overflow."""


@dataclass(frozen=True)
class Points:
    """Finite points of one series; NaN have become borders between segments."""

    x: np.ndarray
    """Rising, [n]."""
    y: np.ndarray
    """Finite float64, [n]."""
    segment: np.ndarray | None
    """[n] int: points of one segment are joined; None when all are."""

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, log: bool = False) -> Points:
        """From x and y of one length. log: y becomes its decimal logarithm, what is not above 0 a gap."""
        y = np.asarray(y, np.float64)
        if log:
            with np.errstate(all="ignore"):
                y = np.where(y > 0, np.log10(np.where(y > 0, y, 1.0)), np.nan)
        if len(y) and y.min() >= -MOST and y.max() <= MOST:  # neither holds with a NaN
            return cls(np.asarray(x), y, None)
        y = np.clip(y, -MOST, MOST)
        bad = ~np.isfinite(y)
        if not bad.any():
            return cls(np.asarray(x), y, None)
        return cls(np.asarray(x)[~bad], y[~bad], np.cumsum(bad)[~bad])

    def joined(self, a: int | np.ndarray, b: int | np.ndarray) -> bool | np.ndarray:
        """Whether no gap lies between the points a and b."""
        return np.ones(np.shape(a), bool) if self.segment is None else self.segment[a] == self.segment[b]

    def at(self, a: int, b: int, x: float) -> float:
        """y on the line between two neighbouring points."""
        span = float(self.x[b] - self.x[a])
        return float(self.y[a] + (self.y[b] - self.y[a]) * ((x - self.x[a]) / span if span else 0.0))


@dataclass(frozen=True)
class Columns:
    """A series reduced to dot columns; arrays over the columns that hold points."""

    column: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    last: np.ndarray
    joined: np.ndarray
    """Whether the line goes on from the column before in this list."""

    def log10(self) -> Columns:
        """The same on a logarithmic axis; every y must be above 0."""
        low, high, first, last = (np.log10(values) for values in (self.low, self.high, self.first, self.last))
        return Columns(self.column, low, high, first, last, self.joined)

    @property
    def span(self) -> tuple[float, float] | None:
        """(lowest, highest) y; None without points."""
        return (float(self.low.min()), float(self.high.max())) if len(self.column) else None


class Bounds:
    """Minimum and maximum of each block of a long series, kept as it grows; while every value is finite."""

    def __init__(self) -> None:
        self.size = 0
        self.finite = True
        self.low = np.empty(0)
        self.high = np.empty(0)
        self._of: object = None

    def update(self, y: np.ndarray) -> None:
        """Take in a series: another one, or the same with values appended, which costs what is new."""
        memory = y if y.base is None else y.base
        if memory is not self._of or len(y) < self.size:
            self._of, self.size, self.finite = memory, 0, True
            self.low = self.high = np.empty(0)
        if self.finite and len(y) > self.size:
            done = self.size // BLOCK
            new = y[done * BLOCK :]
            self.finite = bool(np.isfinite(y[self.size :]).all())
            starts = np.arange(0, len(new), BLOCK)
            self.low = np.concatenate([self.low[:done], np.minimum.reduceat(new, starts)])
            self.high = np.concatenate([self.high[:done], np.maximum.reduceat(new, starts)])
        self.size = len(y)


def places(x: np.ndarray, at: float | np.ndarray, side: Literal["left", "right"] = "left") -> Any:
    """Places in x, rising, that values would take, as `np.searchsorted`; whole steps are looked up among whole steps, since numpy
    would make a float copy of all of them each time."""
    if np.issubdtype(x.dtype, np.integer):
        at = (np.ceil(at) if side == "left" else np.floor(at)).astype(x.dtype)
    return np.searchsorted(x, at, side=side)


def reduce(points: Points, x0: float, x1: float, count: int, bounds: Bounds | None = None) -> Columns:
    """Minimum, maximum, first and last y of each of `count` columns between x0 and x1 (both in, x0 < x1).

    A line that enters or leaves the view, or only crosses it, gets its points on the border. bounds: of the points; where a
    column holds many blocks they are looked at instead, and a block on the border of two columns counts for the left one of them.
    """
    x, y = points.x, points.y
    edges = x0 + (x1 - x0) * np.arange(count + 1) / count
    index = places(x, edges)
    index[-1] = places(x, x1, "right")
    keep = index[1:] > index[:-1]
    starts, ends = index[:-1][keep], index[1:][keep]
    column = np.nonzero(keep)[0]
    begin, end = int(index[0]), int(index[-1])
    if len(starts):
        block = starts // BLOCK
        coarse = bounds is not None and (end - begin) > COARSE * BLOCK * count and (np.diff(block) > 0).all()
        if coarse:
            until = -(-end // BLOCK)
            low, high = np.minimum.reduceat(bounds.low[:until], block), np.maximum.reduceat(bounds.high[:until], block)
        else:
            low, high = np.minimum.reduceat(y[:end], starts), np.maximum.reduceat(y[:end], starts)
        joined = np.concatenate([[False], points.joined(starts[1:], ends[:-1] - 1)])
        parts = [column, low, high, y[starts], y[ends - 1], joined]
    else:
        parts = [column, *(np.empty(0),) * 4, np.empty(0, bool)]

    def border(where: int, value: float, joins: bool) -> list:
        return [np.array([where]), *(np.array([value]),) * 4, np.array([joins])]

    if 0 < begin < len(x) and (not len(column) or column[0] > 0) and points.joined(begin, begin - 1):
        left = border(0, points.at(begin - 1, begin, x0), False)
        if len(column):
            parts[5][0] = True
        parts = [np.concatenate(pair) for pair in zip(left, parts, strict=True)]
    if 0 < end < len(x) and (not len(column) or column[-1] < count - 1) and points.joined(end, end - 1):
        right = border(count - 1, points.at(end - 1, end, x1), len(parts[0]) > 0)
        parts = [np.concatenate(pair) for pair in zip(parts, right, strict=True)]
    return Columns(parts[0].astype(int), *parts[1:5], parts[5].astype(bool))


def rasterize(columns: Columns, width: int, height: int, y0: float, y1: float) -> np.ndarray:
    """Braille bits [height, width] (code point minus 0x2800) of columns made with count = 2 * width; y0 below y1."""
    count = 2 * width
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    enter, leave = low.copy(), low.copy()
    linked = np.zeros(count, bool)
    at = columns.column
    if not len(at):
        return np.zeros((height, width), np.uint16)
    # straight lines over the columns between two joined points
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
    # neighbours meet half way, so that steep lines have no holes
    there = ~np.isnan(low)
    meet = np.nonzero(linked[1:] & there[1:] & there[:-1])[0] + 1
    middle = (leave[meet - 1] + enter[meet]) / 2
    for k in (meet - 1, meet):
        low[k], high[k] = np.minimum(low[k], middle), np.maximum(high[k], middle)
    last_row = height * 4 - 1
    scale = last_row / (y1 - y0)
    top, bottom = np.full(count, last_row + 1), np.full(count, -1)
    top[there] = np.clip(np.rint(last_row - (high[there] - y0) * scale), 0, last_row)
    bottom[there] = np.clip(np.rint(last_row - (low[there] - y0) * scale), 0, last_row)
    rows = np.arange(height * 4)[:, None]
    grid = (rows >= top) & (rows <= bottom)
    return (grid.reshape(height, 4, width, 2) * DOTS[None, :, None, :]).sum(axis=(1, 3)).astype(np.uint16)


class Smoother:
    """Exponential moving average without the bias of its beginning; takes in new values as they come.

    weight: of the past, 0..1 exclusive. A NaN stays a NaN and leaves the average as it was.
    """

    def __init__(self, weight: float, room: int = 0) -> None:
        """room: values for which memory is taken at once."""
        self.weight = weight
        self.size = 0
        self._mean, self._mass = 0.0, 0.0
        self._out = np.full(max(room, 256), np.nan)

    @property
    def values(self) -> np.ndarray:
        """Averages of all values so far, [n]."""
        return self._out[: self.size]

    def extend(self, y: np.ndarray) -> None:
        """Take in the values that follow, [k]."""
        y = np.asarray(y, np.float64)
        if self.size + len(y) > len(self._out):
            grown = np.empty(max(2 * len(self._out), self.size + len(y)))
            grown[: self.size] = self.values
            self._out = grown
        out = self._out[self.size : self.size + len(y)]
        finite = np.isfinite(y)
        out[:] = np.nan
        out[finite] = self._recurrence(y[finite])
        self.size += len(y)

    def _recurrence(self, y: np.ndarray) -> np.ndarray:
        """mean_k = w mean_(k-1) + (1 - w) y_k over the mass 1 - w^k, a block of values at a time."""
        w, n = self.weight, len(y)
        if not n:
            return y
        block = max(1, min(n, int(math.log(BLOCK_RANGE) / -math.log(w))))
        blocks = -(-n // block)
        padded = np.zeros(blocks * block)
        padded[:n] = y
        power = w ** np.arange(1, block + 1)
        # inside a block: w^j * sum of (1 - w) y_i / w^i, i <= j; then what the blocks before hand on, decayed
        inner = np.cumsum(padded.reshape(blocks, block) * ((1 - w) / power), axis=1) * power
        handed, carry = np.empty(blocks), self._mean
        for i, end in enumerate(inner[:, -1].tolist()):
            handed[i] = carry
            carry = end + carry * power[-1]
        means = (inner + handed[:, None] * power).reshape(-1)[:n]
        masses = 1 - (1 - self._mass) * w ** np.arange(1, n + 1)
        self._mean, self._mass = float(means[-1]), float(masses[-1])
        return means / masses


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) between low and high, about `count` of them, never more than twice."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9)), 10 * power)
    start = math.ceil(low / step - 1e-9)
    return [float(k * step) for k in range(start, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between 10**low and 10**high, for a logarithmic axis."""
    decades = [k for k in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    if len(decades) >= 3:
        return [10.0**k for k in decades[:: -(-len(decades) // max(count, 1))]]
    fine = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    fine = [v for v in fine if low - 1e-9 <= math.log10(v) <= high + 1e-9]
    return fine if len(fine) >= 3 else ticks(10.0**low, 10.0**high, count)
