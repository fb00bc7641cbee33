"""What a curve is drawn over: steps, trained tokens, or hours. Each is a function of the step that grows with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from console.runs.series import MetricSeries
from qwen3vl_core.run_metrics import TOKENS

STEP, TOKENS_SEEN, HOURS = "step", "tokens", "hours"
TITLES = {STEP: "step", TOKENS_SEEN: "trained tokens", HOURS: "hours since the first step"}


@dataclass(frozen=True)
class Scale:
    """Positions on the x axis by step: [n] each, ascending; between two of them it is linear."""

    steps: np.ndarray
    positions: np.ndarray

    def of(self, steps: np.ndarray) -> np.ndarray:
        """Positions of steps."""
        return np.interp(steps, self.steps, self.positions)

    def steps_at(self, window: tuple[float, float]) -> tuple[float, float]:
        """The steps at the two ends of a range of positions, which may lie outside."""
        low, high = np.interp(sorted(window), self.positions, self.steps)
        return float(low), float(high)


def scale(series: MetricSeries, over: str) -> Scale | None:
    """The scale of a run; None for steps, and for a run that has recorded nothing to count."""
    if over == STEP:
        return None
    steps, values = series.xy(TOKENS) if over == TOKENS_SEEN else series.times
    if not len(steps):
        return None
    values = np.where(np.isfinite(values), values, 0.0) if over == TOKENS_SEEN else values
    # a clock that was set back must not turn the axis around
    positions = np.cumsum(values) if over == TOKENS_SEEN else np.maximum.accumulate(values - values[0]) / 3600
    return Scale(steps, positions)
