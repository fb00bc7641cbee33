"""One line of a curve: what is drawn of it, and how it is kept up to date while its series grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from console.curves.smoothing import Smoother
from console.curves.thinning import MOST_POINTS, Thinner, decimate, within

SLOTS = 6
"""Colours of lines; more lines begin again."""


@dataclass(frozen=True)
class CurveLine:
    """One run's values of one metric."""

    label: str
    x: np.ndarray
    """Steps, rising, [n]."""
    y: np.ndarray
    """Values, NaN where there is none, [n]."""
    smooth: np.ndarray | None = None
    """Averages of y, [n]."""
    slot: int = 0
    """Number of its colour."""


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
        if self.weight:
            y = self._smoother(y)
        if window is None and most == self._thinner.most:
            return self._thinner(x, y)
        return decimate(*within(x, y, window), most)
