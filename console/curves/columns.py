"""Reduces a series to the minimum and maximum of each column of dots: every spike is kept, and drawing time depends on the width only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MOST = 1e100
"""Larger values are drawn at this one, as their sums and differences would overflow."""
BLOCK = 256
"""Number of points for which one minimum and maximum is kept."""
COARSE = 8
"""With at least this many blocks in a column, block bounds are used instead of points: an error of at most an eighth of a dot."""


@dataclass(frozen=True)
class Points:
    """The finite points of a series; NaNs separate segments."""

    x: np.ndarray
    """[n], ascending."""
    y: np.ndarray
    """[n], finite float64."""
    segment: np.ndarray | None
    """[n], int: points of the same segment are joined; None: there is one segment."""

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, log: bool = False) -> Points:
        """From x and y of the same length. log: take decimal logarithms of y; values that are not above 0 become gaps."""
        y = np.asarray(y, np.float64)
        if log:
            with np.errstate(all="ignore"):
                y = np.where(y > 0, np.log10(np.where(y > 0, y, 1.0)), np.nan)
        if len(y) and y.min() >= -MOST and y.max() <= MOST:  # false if there is a NaN
            return cls(np.asarray(x), y, None)
        y = np.clip(y, -MOST, MOST)
        bad = ~np.isfinite(y)
        if not bad.any():
            return cls(np.asarray(x), y, None)
        return cls(np.asarray(x)[~bad], y[~bad], np.cumsum(bad)[~bad])

    def joined(self, a: int | np.ndarray, b: int | np.ndarray) -> bool | np.ndarray:
        """Whether there is no gap between the points a and b."""
        return np.ones(np.shape(a), bool) if self.segment is None else self.segment[a] == self.segment[b]

    def at(self, a: int, b: int, x: float) -> float:
        """y on the line between two neighbouring points."""
        span = float(self.x[b] - self.x[a])
        return float(self.y[a] + (self.y[b] - self.y[a]) * ((x - self.x[a]) / span if span else 0.0))


@dataclass(frozen=True)
class Columns:
    """A series reduced to dot columns: arrays over the columns that have points."""

    column: np.ndarray
    low: np.ndarray
    high: np.ndarray
    first: np.ndarray
    last: np.ndarray
    joined: np.ndarray
    """Whether the line continues from the previous column in this list."""

    def log10(self) -> Columns:
        """The same columns on a logarithmic axis; every y must be above 0."""
        low, high, first, last = (np.log10(values) for values in (self.low, self.high, self.first, self.last))
        return Columns(self.column, low, high, first, last, self.joined)

    @property
    def span(self) -> tuple[float, float] | None:
        """(lowest, highest) y; None without points."""
        return (float(self.low.min()), float(self.high.max())) if len(self.column) else None


class Bounds:
    """Minimum, maximum and sum of each block of a long series, updated as it grows; used while all values are finite."""

    def __init__(self) -> None:
        self.size = 0
        self.finite = True
        self.low = np.empty(0)
        self.high = np.empty(0)
        self.sum = np.empty(0)
        self._of: object = None

    def update(self, y: np.ndarray) -> None:
        """Update with a series: a new one, or the last one with values appended, of which only the new values are read."""
        memory = y if y.base is None else y.base
        if memory is not self._of or len(y) < self.size:
            self._of, self.size, self.finite = memory, 0, True
            self.low = self.high = self.sum = np.empty(0)
        if self.finite and len(y) > self.size:
            done = self.size // BLOCK
            new = y[done * BLOCK :]
            self.finite = bool(np.isfinite(y[self.size :]).all())
            starts = np.arange(0, len(new), BLOCK)
            self.low = np.concatenate([self.low[:done], np.minimum.reduceat(new, starts)])
            self.high = np.concatenate([self.high[:done], np.maximum.reduceat(new, starts)])
            self.sum = np.concatenate([self.sum[:done], np.add.reduceat(new, starts)])
        self.size = len(y)


def search(x: np.ndarray, values: float | np.ndarray, side: Literal["left", "right"] = "left") -> Any:
    """`np.searchsorted`; for integer x the values are rounded to integers first, as numpy would make a float copy of x each time."""
    if np.issubdtype(x.dtype, np.integer):
        values = (np.ceil(values) if side == "left" else np.floor(values)).astype(x.dtype)
    return np.searchsorted(x, values, side=side)


def reduce(points: Points, x0: float, x1: float, count: int, bounds: Bounds | None = None) -> Columns:
    """Minimum, maximum, first and last y of each of `count` columns between x0 and x1 (inclusive, x0 < x1).

    A line that enters, leaves or crosses the view gets points on its border. bounds: of the points; used instead of them where a
    column has many blocks. A block on the border of two columns counts for the left one.
    """
    x, y = points.x, points.y
    edges = x0 + (x1 - x0) * np.arange(count + 1) / count
    index = search(x, edges)
    index[-1] = search(x, x1, "right")
    keep = index[1:] > index[:-1]
    starts, ends = index[:-1][keep], index[1:][keep]
    column = np.nonzero(keep)[0]
    begin, end = int(index[0]), int(index[-1])
    if len(starts):
        block = starts // BLOCK
        if bounds is not None and (end - begin) > COARSE * BLOCK * count and (np.diff(block) > 0).all():
            until = -(-end // BLOCK)
            low, high = np.minimum.reduceat(bounds.low[:until], block), np.maximum.reduceat(bounds.high[:until], block)
        else:
            low, high = np.minimum.reduceat(y[:end], starts), np.maximum.reduceat(y[:end], starts)
        joined = np.concatenate([[False], points.joined(starts[1:], ends[:-1] - 1)])
        parts = [column, low, high, y[starts], y[ends - 1], joined]
    else:
        parts = [column, *(np.empty(0),) * 4, np.empty(0, bool)]

    def border(column: int, value: float, is_joined: bool) -> list[np.ndarray]:
        return [np.array([column]), *(np.array([value]),) * 4, np.array([is_joined])]

    if 0 < begin < len(x) and (not len(column) or column[0] > 0) and points.joined(begin, begin - 1):
        left = border(0, points.at(begin - 1, begin, x0), False)
        if len(column):
            parts[5][0] = True
        parts = [np.concatenate(pair) for pair in zip(left, parts, strict=True)]
    if 0 < end < len(x) and (not len(column) or column[-1] < count - 1) and points.joined(end, end - 1):
        right = border(count - 1, points.at(end - 1, end, x1), len(parts[0]) > 0)
        parts = [np.concatenate(pair) for pair in zip(parts, right, strict=True)]
    return Columns(parts[0].astype(int), parts[1], parts[2], parts[3], parts[4], parts[5].astype(bool))
