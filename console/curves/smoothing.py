"""The smoothing of all curves: the mean of a centred window that is a share of what is seen. One rule for terminal and notebook."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from console.curves.columns import BLOCK, COARSE, MOST, Bounds, search
from qwen3vl_core.language import tr

SHARE = 0.05
"""The window's width where nothing else is chosen."""
SHARES = (SHARE, 0.1, 0.2, 0.0, 0.02)
"""Widths to choose among, as shares of the steps in view; 0: no average."""


@dataclass(frozen=True)
class Average:
    """A smoothed line."""

    x: np.ndarray
    """Steps, [m], ascending, at most two for each column."""
    y: np.ndarray
    """Means, [m]; NaN where the window has no finite value."""
    window: float
    """Width of the window in steps."""

    @property
    def name(self) -> str:
        """`avg of 50 steps`."""
        return tr("avg of {count:,} steps", count=max(round(self.window), 2))

    def at(self, step: float) -> float:
        """The mean at the nearest step."""
        return float(self.y[int(np.abs(self.x - step).argmin())])


def average(
    x: np.ndarray, y: np.ndarray, view: tuple[float, float], columns: int, share: float = SHARE, bounds: Bounds | None = None
) -> Average | None:
    """The average of the points (x [n], ascending; y [n], may hold NaN) in a view of so many columns of characters.

    None: the values themselves are the line, as there is no more than one for each column, or `share` is 0. Near the first and the
    last point the window gets narrower on both sides, so that the ends do not lag. What lies outside of the view counts within the
    window, so that panning does not change the line. bounds: of a long series without NaN, which need then not be read.
    """
    x0, x1 = view
    if not share or x1 <= x0 or int(search(x, x1, "right")) - int(search(x, x0)) <= columns:
        return None
    count = 2 * columns
    half = max(round(share * count / 2), 1)
    width = (x1 - x0) / count
    edges = x0 + width * np.arange(-half, count + half + 1)
    index = search(x, edges)
    if edges[half + count] >= x[-1]:
        index[half + count :] = len(x)  # the last point, which is on an edge, is in the last column
    points, counted, sums = _cells(y, index, bounds)
    filled = np.flatnonzero(points)
    place = np.arange(half, half + count)
    reach = np.minimum(np.minimum(place - filled[0], filled[-1] - place), half)
    inside = np.abs(np.arange(-half, half + 1)) <= reach[:, None]

    def windows(cells: np.ndarray) -> np.ndarray:
        return np.where(inside, np.lib.stride_tricks.sliding_window_view(cells, 2 * half + 1), 0).sum(axis=1)

    has_points, weights = windows(points) > 0, windows(counted)
    means = np.where(weights > 0, windows(sums) / np.maximum(weights, 1), np.nan)
    return Average((x0 + width * (np.arange(count) + 0.5))[has_points], means[has_points], width * (2 * half + 1))


def _cells(y: np.ndarray, index: np.ndarray, bounds: Bounds | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, finite points, sum of these) of each cell from index[i] to index[i + 1]."""
    points = np.diff(index)
    begin, end = int(index[0]), int(index[-1])
    if bounds is not None and end - begin > COARSE * BLOCK * len(points):
        blocks = index // BLOCK
        in_block = np.diff(np.minimum(blocks * BLOCK, bounds.size))
        return in_block, in_block, _sums(bounds.sum[: int(blocks[-1])], blocks)
    part = np.asarray(y[begin:end], np.float64)
    if np.isfinite(part.sum()):
        return points, points, _sums(part, index - begin)
    finite = np.isfinite(part)
    part = np.where(finite, np.clip(part, -MOST, MOST), 0.0)
    return points, _sums(finite.astype(np.int64), index - begin), _sums(part, index - begin)


def _sums(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The sum of values[index[i]:index[i + 1]] for each i; 0 for none."""
    sums = np.zeros(len(index) - 1, values.dtype)
    filled = index[1:] > index[:-1]
    if filled.any():
        sums[filled] = np.add.reduceat(values, index[:-1][filled])
    return sums
