"""One line of a curve: its incremental update while its series grows, its smallest and largest value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from console.curves.thinning import MOST_POINTS, Thinner, decimate, within

SLOTS = 6
"""Number of line colours; further lines reuse them."""


@dataclass(frozen=True)
class CurveLine:
    """One run's values of one metric."""

    label: str
    x: np.ndarray
    """Steps, [n], ascending."""
    y: np.ndarray
    """Values, [n]; NaN is a gap."""
    noisy: bool = False
    """Whether it is drawn with its average where there are many points."""
    slot: int = 0
    """Index of its colour."""


class GrowingLine:
    """Thins a growing series, computing only what is new.

    version: of the series; for another version create a new `GrowingLine`.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self._thinner = Thinner()

    def __call__(
        self, x: np.ndarray, y: np.ndarray, window: tuple[float, float] | None = None, most: int = MOST_POINTS
    ) -> tuple[np.ndarray, np.ndarray]:
        """(x [m], y [m]), m <= most, of the points in the window; None: of all points. Nothing is cached for a window."""
        if window is None and most == self._thinner.most:
            return self._thinner(x, y)
        return decimate(*within(x, y, window), most)


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest finite value of a line, each as (step, value)."""

    lowest: tuple[int, float]
    highest: tuple[int, float]


def extremes(x: np.ndarray, y: np.ndarray) -> Extremes | None:
    """Of x [n] and y [n]; the first of equal values. None without a finite value."""
    finite = np.isfinite(y)
    if not finite.any():
        return None
    low, high = int(np.where(finite, y, np.inf).argmin()), int(np.where(finite, y, -np.inf).argmax())
    return Extremes((int(x[low]), float(y[low])), (int(x[high]), float(y[high])))
