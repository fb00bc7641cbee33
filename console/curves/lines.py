"""One line of a curve, and its incremental update while its series grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from console.curves.smoothing import Smoother
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
    smooth: np.ndarray | None = None
    """Smoothed values, [n]."""
    slot: int = 0
    """Index of its colour."""


class GrowingLine:
    """Smooths and thins a growing series, computing only what is new.

    version: of the series; for another version or another weight create a new `GrowingLine`.
    """

    def __init__(self, version: int, weight: float) -> None:
        self.version, self.weight = version, weight
        self._smoother, self._thinner = Smoother(weight), Thinner()

    def __call__(
        self, x: np.ndarray, y: np.ndarray, window: tuple[float, float] | None = None, most: int = MOST_POINTS
    ) -> tuple[np.ndarray, np.ndarray]:
        """(x [m], y [m]), m <= most, of the points in the window; None: of all points. Nothing is cached for a window."""
        if self.weight:
            y = self._smoother(y)
        if window is None and most == self._thinner.most:
            return self._thinner(x, y)
        return decimate(*within(x, y, window), most)
