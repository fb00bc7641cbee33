"""The range of the y axis in which a curve can be read although it has a spike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from console.curves.ticks import value_range

SHARE = 0.01
"""Share of the values at either end that may lie outside."""
FAR = 3.0
"""Values further from the rest than this many times its range are spikes."""
FEWEST = 20
"""With fewer values each one counts."""


@dataclass(frozen=True)
class Visible:
    """A range of y, and what lies outside of it."""

    low: float
    high: float
    spikes: int
    """Number of values outside, of those that are drawn."""


def visible(values: Sequence[np.ndarray]) -> Visible | None:
    """The range without spikes of the drawn lines' values, each [n]; None: all of them fit, or there are too few to tell.

    The first values of a run are no spikes, though its loss falls steeply.
    """
    finite = [y[np.isfinite(y)] for y in values]
    filled = [y for y in finite if len(y)]
    if sum(map(len, filled)) < FEWEST:
        return None
    # of each line: a short one must not be cut away by a long one
    lows, highs = zip(*(np.quantile(y, [SHARE, 1 - SHARE]) for y in filled), strict=True)
    low, high = float(min(lows)), float(max(highs))
    room = FAR * (high - low)
    if room <= 0:
        return None
    inside = [y[~_spikes(y, low - room, high + room)] for y in filled]
    count = sum(map(len, filled)) - sum(map(len, inside))
    if not count:
        return None
    left = np.concatenate(inside)
    return Visible(*value_range(float(left.min()), float(left.max())), count)


def _spikes(y: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which values lie outside, except those at the beginning: there a loss falls from afar."""
    far = (y < low) | (y > high)
    return far & ~np.logical_and.accumulate(far)
