"""Steps that would harm the model: losses and gradients that are no numbers, and losses far above those of the last steps."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

WINDOW = 64
"""Steps that a loss is compared with."""
FEWEST = 16
"""Steps that must be known before a loss can be called a spike."""
LEAST_DEVIATION = 0.01
"""Of the median: a loss that stands still is no reason to call the next small change a spike."""
# median absolute deviation -> standard deviation of a normal distribution
NORMAL = 1.4826

NOT_FINITE, GRADIENT, SPIKE = "loss", "gradient", "spike"


class Guard:
    """Judges steps, from nothing but the figures that all ranks share, so that all ranks judge alike.

    factor: robust deviations above the median that make a spike, 0: none is looked for. skip: leave the weights as they are
    in such a step. most: skipped steps in a row that end the run.
    """

    def __init__(self, factor: float = 0.0, *, skip: bool = False, most: int = 5) -> None:
        self.factor, self.skip, self.most = factor, skip, most
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.bad = 0
        """Steps skipped in a row, until now."""

    @property
    def limit(self) -> float:
        """The loss above which the next step is a spike."""
        if not self.factor or len(self.losses) < FEWEST:
            return math.inf
        middle = median(self.losses)
        deviation = NORMAL * median(abs(loss - middle) for loss in self.losses)
        return middle + self.factor * max(deviation, LEAST_DEVIATION * abs(middle))

    def fault(self, loss: float) -> str:
        """What is wrong with a step's loss: `loss` (not finite), `spike`, or nothing."""
        if not math.isfinite(loss):
            return NOT_FINITE
        return SPIKE if loss > self.limit else ""

    def skips(self, fault: str) -> bool:
        """Whether a step with this fault leaves the weights as they are."""
        return bool(fault) and (fault != SPIKE or self.skip)

    def note(self, loss: float, fault: str) -> bool:
        """Count a step that is over. True when there were too many bad ones in a row."""
        if self.skips(fault):
            self.bad += 1
        else:
            self.bad = 0
            self.losses.append(loss)
        return self.bad >= self.most

    def state_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"losses": list(self.losses), "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Judge as the run did that this state is of."""
        self.losses = deque((float(loss) for loss in state["losses"]), maxlen=WINDOW)
        self.bad = int(state["bad"])
