"""A series as the minimum and maximum of each column of dots, so that every spike is kept and drawing costs the width, not the length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MOST = 1e100
"""Values beyond are drawn there: sums and differences of larger ones overflow."""
BLOCK = 256
"""Points of which one minimum and maximum is kept."""
COARSE = 8
"""Blocks of a column from which the blocks' bounds are looked at instead of the points: the border is an eighth of a dot off at most."""


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
    """Whether the line continues from the previous column in this list."""

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
        if bounds is not None and (end - begin) > COARSE * BLOCK * count and (np.diff(block) > 0).all():
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
    return Columns(parts[0].astype(int), parts[1], parts[2], parts[3], parts[4], parts[5].astype(bool))
