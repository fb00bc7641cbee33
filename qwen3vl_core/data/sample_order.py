"""The endless order of the samples: a pure function of seed and position, the same for every layout.

Position p belongs to epoch p // size; each epoch is a new shuffle of all samples. A global batch is a range of positions, so
it does not depend on the number of ranks or loader processes, and the position is enough to resume. A sample that cannot be
used is replaced by another one, chosen by seed and position alone, without communication between ranks. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

_STAND_IN = 0x57A4D
"""Keeps the draws for stand-ins apart from those of the epochs."""


def seeded(*numbers: int) -> np.random.RandomState:
    """A generator seeded by these numbers, with the same stream in every release of numpy."""
    # RandomState's streams are frozen for all releases of numpy; the newer generators' are not
    return np.random.RandomState([word for number in numbers for word in (number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF)])


class SampleOrder:
    """size: samples of the split, at least 1."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"an order of {size} samples")
        self.size, self.seed = size, seed
        self._shuffled: dict[int, np.ndarray] = {}

    def sample(self, place: int) -> int:
        """Number of the sample at a position."""
        epoch, offset = divmod(place, self.size)
        if epoch not in self._shuffled:
            # two epochs are cached: a global batch may cross a boundary
            self._shuffled = {e: order for e, order in self._shuffled.items() if abs(e - epoch) == 1}
            self._shuffled[epoch] = seeded(self.seed, epoch).permutation(self.size)
        return int(self._shuffled[epoch][offset])

    def stand_ins(self, place: int) -> Iterator[int]:
        """Every other sample once, in an order that depends on seed and position alone."""
        random = seeded(self.seed, place, _STAND_IN)
        at, stride = random.randint(self.size), 1
        while self.size > 2:
            stride = int(random.randint(1, self.size))
            if math.gcd(stride, self.size) == 1:
                break
        first = self.sample(place)
        for _ in range(self.size):
            if at != first:
                yield int(at)
            at = (at + stride) % self.size
