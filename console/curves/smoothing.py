"""The one average that every curve shows: TensorBoard's, debiased at its beginning."""

from __future__ import annotations

import math

import numpy as np

BLOCK_RANGE = 1e9
"""Largest ratio of weights inside one block of the smoothing: sums of them keep 6 digits and do not overflow."""


class Smoother:
    """Exponential moving average of a series that grows, without the bias of its beginning; only new values are computed.

    weight: of the past, from 0 (the values themselves) to below 1. A value that is not finite gives NaN and leaves the average
    as it was, as in TensorBoard: a skipped step does not make the steps before it count less. Raises ValueError for another
    weight.
    """

    def __init__(self, weight: float, room: int = 0) -> None:
        """room: values for which memory is taken at once."""
        if not 0 <= weight < 1:
            raise ValueError(f"weight is {weight}; from 0 to below 1")
        self.weight = weight
        self.size = 0
        self._mean, self._mass = 0.0, 0.0
        self._out = np.full(max(room, 256), np.nan)

    @property
    def values(self) -> np.ndarray:
        """Averages of all values so far, [n], read-only; the first ones stay what they are when more come."""
        values = self._out[: self.size]
        values.flags.writeable = False
        return values

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """Averages [n] of the series so far, y [n]: the one of the last call with values appended."""
        self.extend(y[self.size :])
        return self.values

    def extend(self, y: np.ndarray) -> None:
        """Take in the values that follow, [k]."""
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
        """mean_k = w mean_(k-1) + (1 - w) y_k over the mass 1 - w^k, a block of values at a time."""
        w, n = self.weight, len(y)
        if not n:
            return y
        block = max(1, min(n, int(math.log(BLOCK_RANGE) / -math.log(w))))
        blocks = -(-n // block)
        padded = np.zeros(blocks * block)
        padded[:n] = y
        power = w ** np.arange(1, block + 1)
        # inside a block: w^j * sum of (1 - w) y_i / w^i, i <= j; then what the blocks before hand on, decayed
        inner = np.cumsum(padded.reshape(blocks, block) * ((1 - w) / power), axis=1) * power
        handed, carry = np.empty(blocks), self._mean
        for i, end in enumerate(inner[:, -1].tolist()):
            handed[i] = carry
            carry = end + carry * power[-1]
        means = (inner + handed[:, None] * power).reshape(-1)[:n]
        masses = 1 - (1 - self._mass) * w ** np.arange(1, n + 1)
        self._mean, self._mass = float(means[-1]), float(masses[-1])
        return means / masses
