"""Deals the samples of a global batch to micro batches and ranks so that their patches and tokens are even.

Every rank and every loader process computes the same deal on its own, from sizes that follow from the headers of the media:
nothing is sent between ranks, and only a rank's own pixels are decoded. Which samples a global batch holds does not change, nor
does which of them share a micro batch depend on the number of ranks: the experts' balance is weighted by micro batches. Imports
no torch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

FEATURES = ("patches", "tokens")
"""Columns of the sizes. Patches of a picture and of a video cost the same: a patch of a picture holds its frame twice."""
ROUNDS = 32
"""Exchanges between the largest group and another one, at most."""
EVEN = 1.005
"""Largest over mean at which no more is exchanged."""
_CANDIDATES = 64
"""Items of the largest group that are tried in an exchange: larger groups are even without it."""


@dataclass(frozen=True)
class Spread:
    """Largest rank over the mean of all ranks, of each of FEATURES."""

    drawn: tuple[float, ...]
    """Had the samples been dealt in the order in which they were drawn."""
    dealt: tuple[float, ...]


@dataclass(frozen=True)
class Deal:
    """How the samples (with packing: the rows) of one global batch were dealt."""

    ranks: list[list[list[int]]]
    """[rank][step] -> indices of a micro batch's samples in the global batch, ascending."""
    spread: Spread | None = None
    """None where sizes are unknown."""

    @property
    def checksum(self) -> int:
        """Equal on every rank that dealt the same."""
        return zlib.crc32(np.array(self.ranks, dtype="<i8").tobytes())


def in_order(samples: int, micro_batch_size: int, ranks: int) -> Deal:
    """Micro batches as the samples were drawn: number m is of rank m % ranks, its step m // ranks."""
    micro_batches = np.arange(samples).reshape(-1, ranks, micro_batch_size)
    return Deal(micro_batches.swapaxes(0, 1).tolist())


def even(sizes: np.ndarray, micro_batch_size: int, ranks: int) -> Deal:
    """Even micro batches, dealt evenly to ranks; each rank has its largest micro batch first, so that ranks that wait for each other in
    every micro batch (experts, pipelines) have similar ones at the same time.

    sizes: int64 [samples, features], samples a multiple of micro_batch_size x ranks.
    """
    count = len(sizes) // micro_batch_size
    micro_batches = _split(sizes, np.arange(len(sizes)), _prime_factors(count)) if micro_batch_size > 1 else np.arange(count)[:, None]
    totals = sizes[micro_batches].sum(axis=1)
    if micro_batch_size > 1 and ranks in np.cumprod(_prime_factors(count)):
        # a rank's micro batches are one branch of the tree
        of_rank = np.arange(count).reshape(ranks, -1)
    else:
        of_rank = groups(totals, ranks)
    largest_first = np.argsort(-(totals / np.maximum(totals.sum(axis=0), 1)).max(axis=1), kind="stable")
    place = np.empty(count, dtype=np.int64)
    place[largest_first] = np.arange(count)
    dealt = [[micro_batches[m].tolist() for m in sorted(members, key=place.__getitem__)] for members in of_rank.tolist()]
    drawn = in_order(len(sizes), micro_batch_size, ranks).ranks
    return Deal(dealt, Spread(largest_over_mean(sizes, drawn), largest_over_mean(sizes, dealt)))


def largest_over_mean(sizes: np.ndarray, ranks: list[list[list[int]]]) -> tuple[float, ...]:
    """Largest rank over the mean of all ranks, of each feature; 1 where there is nothing of it."""
    totals = sizes[np.array(ranks).reshape(len(ranks), -1)].sum(axis=1)
    means = totals.mean(axis=0)
    return tuple(float(most / mean) if mean else 1.0 for most, mean in zip(totals.max(axis=0), means, strict=True))


def _prime_factors(number: int) -> list[int]:
    factors, factor = [], 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors


def _split(sizes: np.ndarray, items: np.ndarray, factors: list[int]) -> np.ndarray:
    """int64 [micro batches, micro batch size]: `items` split evenly again and again, so that the ranks of any number of them, each with
    neighbouring micro batches, are even. Indices of a micro batch ascend."""
    if not factors:
        return items[None]
    return np.concatenate([_split(sizes, items[members], factors[1:]) for members in groups(sizes[items], factors[0])])


def groups(sizes: np.ndarray, count: int) -> np.ndarray:
    """int64 [count, items / count]: groups whose sums are even in every feature: the largest item first, each into the group that stays
    smallest; then exchanges of two items as long as they make the largest group smaller. Items of a group ascend.

    sizes: int64 [items, features]. A function of the sizes alone: the same on every machine.
    """
    each = len(sizes) // count
    if count == 1 or each == 1:
        return np.arange(len(sizes)).reshape(count, each)
    # [features, items], in units of the mean of a group
    weights = (sizes * count / np.maximum(sizes.sum(axis=0), 1)).T
    largest_first = np.argsort(-weights.max(axis=0), kind="stable")
    group_of = np.empty(len(sizes), dtype=np.int64)
    loads = np.zeros((len(weights), count))
    free = np.full(count, each)
    full = np.zeros(count)
    for item, weight in zip(largest_first.tolist(), weights.T[largest_first, :, None], strict=True):
        group = int(((loads + weight).max(axis=0) + full).argmin())
        group_of[item] = group
        loads[:, group] += weight[:, 0]
        free[group] -= 1
        if not free[group]:
            full[group] = np.inf
    _exchange(weights, group_of, loads)
    return np.argsort(group_of, kind="stable").reshape(count, each)


def _exchange(weights: np.ndarray, group_of: np.ndarray, loads: np.ndarray) -> None:
    """Exchange items between the largest group and others, in place."""
    for _ in range(ROUNDS):
        of_groups = loads.max(axis=0)
        largest = int(of_groups.argmax())
        most = float(of_groups[largest])
        if most <= EVEN:
            return
        own, others = np.flatnonzero(group_of == largest)[:_CANDIDATES], np.flatnonzero(group_of != largest)
        # [features, own, others]: what the largest group gains
        gained = weights[:, None, others] - weights[:, own, None]
        then = np.maximum((loads[:, largest, None, None] + gained).max(axis=0), (loads[:, None, group_of[others]] - gained).max(axis=0))
        best = int(then.argmin())
        if then.flat[best] >= most * (1 - 1e-9):
            return
        row, column = divmod(best, len(others))
        item, other = int(own[row]), int(others[column])
        group = int(group_of[other])
        loads[:, largest] += gained[:, row, column]
        loads[:, group] -= gained[:, row, column]
        group_of[item], group_of[other] = group, largest
