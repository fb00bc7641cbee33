"""What stands at the axes of a curve: round values, where they go and what they are called."""

from __future__ import annotations

import math

from qwen3vl_core.formats import number, tick


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


def value_range(low: float, high: float, log: bool = False) -> tuple[float, float]:
    """The ends of a y axis that shows values from low to high, with some room beside them; log: all four are decimal logarithms."""
    room = (high - low) * 0.03 or (0.15 if log else abs(low) * 0.1 or 1.0)
    return low - room, high + room


def value_ticks(low: float, high: float, count: int, log: bool = False) -> list[tuple[float, str]]:
    """[(place, label)] on a y axis from low to high, about `count`; log: low, high and the places are decimal logarithms."""
    if log:
        return [(math.log10(v), number(v, 3)) for v in log_ticks(low, high, count) if v > 0]
    values = ticks(low, high, count)
    return [(v, tick(v, values[1] - values[0]) if len(values) > 1 else number(v, 3)) for v in values]


def step_ticks(low: float, high: float, count: int) -> list[tuple[int, str]]:
    """[(step, label)] on an x axis from low to high: whole steps only."""
    return [(int(v), f"{int(v):,}") for v in ticks(low, high, count) if v == int(v)]
