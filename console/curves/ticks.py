"""Axis ticks of a curve: round values with their positions and labels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from console.curves.columns import Columns
from qwen3vl_core.formats import number, tick

LOG_SPAN = 30.0
"""Ratio of the highest to the lowest value from which an axis is logarithmic by itself."""
OUTLIERS = 0.02
"""Share of the columns whose low values do not count for that."""


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 5 times a power of ten) between low and high, at most twice as many."""
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


def wants_log(drawn: Iterable[Columns]) -> bool:
    """Whether lines are easier to read on a logarithmic axis: all values are above 0, and the highest is far above the rest of them.

    A few very small values do not count: they would stretch the axis instead.
    """
    filled = [columns for columns in drawn if len(columns.column)]
    if not filled or min(float(columns.low.min()) for columns in filled) <= 0:
        return False
    low = float(np.quantile(np.concatenate([columns.low for columns in filled]), OUTLIERS))
    return max(float(columns.high.max()) for columns in filled) > LOG_SPAN * low


def value_range(low: float, high: float, log: bool = False) -> tuple[float, float]:
    """The range of a y axis for values from low to high, with a margin; log: all four are decimal logarithms."""
    room = (high - low) * 0.03 or (0.15 if log else abs(low) * 0.1 or 1.0)
    return low - room, high + room


def value_ticks(low: float, high: float, count: int, log: bool = False) -> list[tuple[float, str]]:
    """About `count` [(position, label)] on a y axis from low to high; log: low, high and positions are decimal logarithms."""
    if log:
        return [(math.log10(v), number(v, 3)) for v in log_ticks(low, high, count) if v > 0]
    values = ticks(low, high, count)
    return [(v, tick(v, values[1] - values[0]) if len(values) > 1 else number(v, 3)) for v in values]


def step_ticks(low: float, high: float, count: int) -> list[tuple[int, str]]:
    """[(step, label)] on an x axis from low to high; integers only."""
    return [(int(v), f"{int(v):,}") for v in ticks(low, high, count) if v == int(v)]
