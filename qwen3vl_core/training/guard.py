"""Detects steps that would harm the model: losses and gradients that are NaN or infinite, and loss spikes."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from qwen3vl_core.errors import RequestError, WorkError

WINDOW = 64
"""Number of previous losses that a loss is compared with."""
FEWEST = 16
"""Number of losses that must be known before a loss can be called a spike."""
LEAST_DEVIATION = 0.01
"""Least deviation, as a share of the median: after a constant loss the next small change is not a spike."""
# median absolute deviation -> standard deviation of a normal distribution
NORMAL = 1.4826

NOT_FINITE, GRADIENT, SPIKE = "loss", "gradient", "spike"


NO_TOKENS = "no token is trained: the samples have no answer within --seq-length, or all of it is masked"
NO_GRADIENT = "the gradient is zero: the parts that are trained have no share in the loss, see --freeze and the data"


class Learned:
    """Whether the steps of a run changed anything: one that cannot learn says so at once, and does not end as if it had.

    most: a run whose first steps have no gradient fails after this many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.steps = self.updates = self.idle = 0
        self.last = ""
        """Why the last step without a gradient had none."""

    def note(self, result: Any) -> str:
        """Record a `StepResult`. Returns a line when steps without a gradient begin. Raises WorkError after too many of them."""
        self.steps += 1
        reason = NO_TOKENS if not result.tokens else NO_GRADIENT if result.grad_norm == 0 else ""
        if not reason:
            self.idle = 0
            self.updates += result.updated
            return ""
        self.idle, self.last = self.idle + 1, reason
        if self.idle >= self.most and not self.updates:
            raise WorkError(f"{self.idle} steps in a row: {reason}")
        return reason if self.idle == 1 else ""

    def problem(self) -> str:
        """Why a run that came to its last step learned nothing; empty where it did."""
        if self.updates or not self.steps:
            return ""
        return f"nothing was learned in {self.steps} steps: " + (
            self.last or "every step was skipped; train longer, or with --precision bf16"
        )


class Guard:
    """Decides which steps are skipped. Uses only values that are the same on all ranks, so that all ranks decide the same.

    factor: a loss more than this many robust deviations above the median is a spike; 0: do not look for spikes. skip: skip the
    weight update of a spike. most: the run fails after this many skipped steps in a row.
    """

    def __init__(self, factor: float = 0.0, *, skip: bool = False, most: int = 5) -> None:
        self.factor, self.skip, self.most = factor, skip, most
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.bad = 0
        """Steps skipped in a row so far."""
        self.content = True
        """Whether the last step had no problem; only then a checkpoint is of a state whose losses are good."""

    @property
    def limit(self) -> float:
        """A loss above this is a spike."""
        if not self.factor or len(self.losses) < FEWEST:
            return math.inf
        middle = median(self.losses)
        deviation = NORMAL * median(abs(loss - middle) for loss in self.losses)
        return middle + self.factor * max(deviation, LEAST_DEVIATION * abs(middle))

    def problem(self, loss: float) -> str:
        """The problem of a step's loss: `loss` (NaN or infinite), `spike`, or empty."""
        if not math.isfinite(loss):
            return NOT_FINITE
        return SPIKE if loss > self.limit else ""

    def skips(self, problem: str) -> bool:
        """Whether the weight update of a step with this problem is skipped."""
        return bool(problem) and (problem != SPIKE or self.skip)

    def note(self, loss: float, problem: str) -> bool:
        """Record a finished step. Returns True after too many skipped steps in a row."""
        self.content = not problem
        if self.skips(problem):
            self.bad += 1
        else:
            self.bad = 0
            self.losses.append(loss)
        return self.bad >= self.most

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values, for a checkpoint."""
        return {"losses": list(self.losses), "bad": self.bad, "content": self.content}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises RequestError for anything else."""
        losses, bad = (state.get("losses"), state.get("bad")) if isinstance(state, dict) else (None, None)
        if (
            not isinstance(losses, list)
            # a number of JSON may be larger than a float
            or not all(type(x) is float or (type(x) is int and abs(x) < 1 << 53) for x in losses)
            or type(bad) is not int
            or not 0 <= bad < 1 << 31
        ):
            raise RequestError("the guard's state in the checkpoint is damaged; resume from an earlier one, or start a new run with --load")
        self.losses = deque((float(loss) for loss in state["losses"]), maxlen=WINDOW)
        self.bad = int(state["bad"])
        self.content = state.get("content", True) is True
