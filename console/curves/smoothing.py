"""The smoothing of all curves: TensorBoard's debiased exponential moving average."""

from __future__ import annotations

import math

import numpy as np

BLOCK_RANGE = 1e9
"""Largest ratio of weights inside one block of the recurrence: sums keep 6 digits and do not overflow."""


class Smoother:
    """Debiased exponential moving average of a growing series; only new values are computed.

    weight: of the past, from 0 (no smoothing) to below 1; ValueError otherwise. A NaN or infinite value gives NaN and does not
    change the average, as in TensorBoard: a skipped step does not reduce the weight of the steps before it.
    """

    def __init__(self, weight: float, room: int = 0) -> None:
        """room: number of values for which memory is allocated at once."""
        if not 0 <= weight < 1:
            raise ValueError(f"weight is {weight}; from 0 to below 1")
        self.weight = weight
        self.size = 0
        self._mean, self._mass = 0.0, 0.0
        self._out = np.full(max(room, 256), np.nan)

    @property
    def values(self) -> np.ndarray:
        """Averages of all values so far, [n], read-only; they do not change when more values come."""
        values = self._out[: self.size]
        values.flags.writeable = False
        return values

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """Averages [n] of the series y [n], which is the series of the last call with values appended."""
        self.extend(y[self.size :])
        return self.values

    def extend(self, y: np.ndarray) -> None:
        """Append values [k]."""
        y = np.asarray(y, np.float64)
        if self.size + len(y) > len(self._out):
            grown = np.empty(max(2 * len(self._out), self.size + len(y)))
            grown[: self.size] = self.values
            self._out = grown
        out = self._out[self.size : self.size + len(y)]
        finite = np.isfinite(y)
        out[:] = np.nan
        out[finite] = self._recurrence(y[finite]) if self.weight else y[finite]
        self.size += len(y)

    def _recurrence(self, y: np.ndarray) -> np.ndarray:
        """mean_k = w mean_(k-1) + (1 - w) y_k, divided by the mass 1 - w^k; a block of values at a time."""
        w, n = self.weight, len(y)
        if not n:
            return y
        block = max(1, min(n, int(math.log(BLOCK_RANGE) / -math.log(w))))
        blocks = -(-n // block)
        padded = np.zeros(blocks * block)
        padded[:n] = y
        power = w ** np.arange(1, block + 1)
        # inside a block: w^j * sum of (1 - w) y_i / w^i, i <= j; plus the decayed mean before the block
        inner = np.cumsum(padded.reshape(blocks, block) * ((1 - w) / power), axis=1) * power
        before, carry = np.empty(blocks), self._mean
        for i, end in enumerate(inner[:, -1].tolist()):
            before[i] = carry
            carry = end + carry * power[-1]
        means = (inner + before[:, None] * power).reshape(-1)[:n]
        masses = 1 - (1 - self._mass) * w ** np.arange(1, n + 1)
        self._mean, self._mass = float(means[-1]), float(masses[-1])
        return means / masses
