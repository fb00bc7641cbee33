"""Lines of a curve as layers of dots: their averages, their painting order, and what is left of them in so many columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from console.curves.columns import Bounds, Columns, Points, reduce
from console.curves.lines import SLOTS, CurveLine
from console.curves.smoothing import Average, average

LONG = 1 << 15
"""Number of points from which bounds of blocks are cached."""


class Layer(NamedTuple):
    """What is painted in one colour: the values of a line, or its average."""

    x: np.ndarray
    y: np.ndarray
    slot: int
    """Index of its colour."""
    faded: bool
    """Whether it lies under its average."""
    key: int | None
    """Of its bounds; None for an average, which is never long."""


class LineReducer:
    """Reduces lines to columns; keeps the bounds of long ones from one drawing to the next."""

    def __init__(self) -> None:
        self._bounds: dict[int, Bounds] = {}

    def _bounds_of(self, key: int | None, y: np.ndarray) -> Bounds | None:
        """Bounds of the blocks of a long series without NaN; of a growing one only new points are read."""
        if key is None or len(y) < LONG or y.dtype != np.float64:
            return None
        bounds = self._bounds.setdefault(key, Bounds())
        bounds.update(y)
        return bounds if bounds.finite else None

    def averages(self, lines: Sequence[CurveLine], shown: tuple[float, float], columns: int, share: float) -> list[Average | None]:
        """The average of each noisy line with more points in view than columns. share: of its window in the steps that are shown."""
        return [
            average(line.x, line.y, shown, columns, share, self._bounds_of(line.slot, line.y)) if line.noisy else None for line in lines
        ]

    def columns(self, layer: Layer, shown: tuple[float, float], count: int) -> Columns:
        """A layer reduced to `count` columns of dots."""
        bounds = self._bounds_of(layer.key, layer.y)
        points = Points.of(layer.x, layer.y) if bounds is None else Points(layer.x, layer.y, None)
        return reduce(points, *shown, count, bounds)


def layers_of(lines: Sequence[CurveLine], averages: Sequence[Average | None]) -> list[Layer]:
    """Layers in painting order: the topmost comes last."""
    pairs = list(zip(lines, averages, strict=True))
    layers = [Layer(line.x, line.y, line.slot % SLOTS, mean is not None, line.slot) for line, mean in pairs]
    # the first line is the run itself: painted last, its average on top
    layers.reverse()
    layers.sort(key=lambda layer: not layer.faded)
    layers += [Layer(mean.x, mean.y, line.slot % SLOTS, False, None) for line, mean in reversed(pairs) if mean is not None]
    return layers


def on_log_axis(layer: Layer, columns: Columns, shown: tuple[float, float], count: int) -> Columns:
    """The columns of a layer on a logarithmic axis, on which values that are not above 0 are gaps."""
    if len(columns.column) and columns.low.min() > 0:
        return columns.log10()
    return reduce(Points.of(layer.x, layer.y, log=True), *shown, count)


def span(drawn: Sequence[Columns]) -> tuple[float, float] | None:
    """The lowest and the highest value that is drawn."""
    spans = [each for columns in drawn if (each := columns.span)]
    return (min(each[0] for each in spans), max(each[1] for each in spans)) if spans else None
