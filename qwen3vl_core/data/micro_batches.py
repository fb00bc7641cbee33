"""Micro batches of one rank, each built from its number alone, so that any loader process can build any of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from qwen3vl_core.data.balance import FEATURES, Deal, Spread, even, in_order
from qwen3vl_core.data.batch import Batch, Encoded, collate
from qwen3vl_core.data.blend import Blend
from qwen3vl_core.data.errors import REASONS, DataError
from qwen3vl_core.data.sample_encoder import SampleEncoder
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.errors import WorkError
from qwen3vl_core.structure.micro_batch import StructureRules

MOST_TRIES = 1000
"""Stand-ins tried for one position; if none of them can be used, the split is considered unusable."""


@dataclass(frozen=True)
class Skip:
    """A sample that could not be used."""

    key: str
    reason: str
    detail: str
    shard: str = ""
    """The shard and the byte at which the sample begins: `train-00003.tar@10240`."""
    code: str = ""
    """Of the problem."""


@dataclass(frozen=True)
class LoadedMicroBatch:
    """A micro batch and the samples skipped for it, or the error that prevented it."""

    batch: Batch | None
    skips: list[Skip]
    error: str = ""
    all_ranks: int = 0
    """Samples of this micro batch and those that the other ranks have at the same step."""
    following: dict[str, int] | None = None
    """Where the next global batch begins, if its number does not determine it (packing)."""
    spread: Spread | None = None
    """How even its global batch is; None where samples are not dealt evenly."""

    def pin_memory(self) -> LoadedMicroBatch:
        """Called by PyTorch's DataLoader."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class Batches(Dataset[LoadedMicroBatch]):
    """Base of padded and packed micro batches: reads samples and remembers those that cannot be used."""

    def __init__(
        self,
        shards: ShardSplit | Blend,
        encoder: SampleEncoder,
        seed: int,
        micro_batch_size: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        rules: StructureRules | None = None,
        balance: bool = False,
    ) -> None:
        self.shards, self.encoder = shards, encoder
        self.order = shards.order(seed)
        self.micro_batch_size, self.global_batch_size = micro_batch_size, global_batch_size
        self.rank, self.world_size, self.rules = rank, world_size, rules
        self.balance = balance
        """Whether samples are dealt evenly instead of in order."""
        self._deal: tuple[int, Deal] = (-1, Deal([]))
        self._unusable: dict[int, Skip] = {}

    @property
    def steps(self) -> int:
        """Micro batches of this rank in one global batch."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the order of the samples and the content of the batches depend on."""
        return {
            "dataset": self.shards.identity,
            "split": self.shards.split,
            "seed": self.order.seed,
            "micro_batch_size": self.micro_batch_size,
            "global_batch_size": self.global_batch_size,
            "seq_length": self.encoder.seq_length,
        }

    def deal(self, batch: int) -> Deal:
        """How the samples of a global batch (with packing: its rows) are dealt to ranks and steps."""
        if self._deal[0] != batch:
            size, ranks = self.micro_batch_size, self.world_size
            alone = ranks == 1 and size in (1, self.global_batch_size)
            even_deal = self.balance and not alone
            self._deal = batch, even(self._sizes(batch), size, ranks) if even_deal else in_order(self.global_batch_size, size, ranks)
        return self._deal[1]

    def _sizes(self, batch: int) -> np.ndarray:
        """int64 [global batch size, features] of the samples of a global batch, the same on every rank."""
        raise NotImplementedError

    def batch(self, samples: list[Encoded], deal: Deal) -> Batch:
        """One micro batch of samples, with its structure where `rules` are given."""
        batch = replace(self._collated(samples), dealt=deal.checksum)
        return batch if self.rules is None else batch.structured(self.rules)

    def _collated(self, samples: list[Encoded]) -> Batch:
        raise NotImplementedError

    def _tried(self, number: int, encode: Any, unusable: dict[int, Skip]) -> Any:
        """encode(key, parts) of a sample, or a Skip with the reason why it cannot be used, cached in `unusable`."""
        if number in unusable:
            return unusable[number]
        key = place = self.shards.place(number)
        try:
            key, parts = self.shards.read(number)
            return encode(key, parts)
        except DataError as error:
            unusable[number] = Skip(key, error.reason, " ".join(error.detail.split())[:500], place, error.problem.code)
            return unusable[number]

    def _none_usable(self, tried: list[Skip]) -> WorkError:
        reasons = ", ".join(f"{REASONS[reason]}: {count}" for reason, count in Counter(skip.reason for skip in tried).most_common())
        return WorkError(
            f"{self.shards.path}: none of {len(tried)} samples of split {self.shards.split} can be used ({reasons}; "
            f"{tried[0].key}: {tried[0].detail}); fix the data and prepare it again"
            + (", or raise --seq-length" if any(skip.reason == "too_long" for skip in tried) else "")
        )


class MicroBatches(Batches):
    """Micro batches of padded rows, numbered from the beginning of the run."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # in an object store every header would be a request, of every rank
        self.balance = self.balance and not self.shards.remote
        self._known = np.full((len(self.shards), len(FEATURES)), -1, dtype=np.int32) if self.balance else None

    def begin(self, global_batch: int, following: dict[str, int] | None) -> int:
        """Number of the first micro batch of a global batch."""
        return global_batch * self.steps

    def epoch(self, global_batch: int, following: dict[str, int] | None) -> float:
        """Passes over the split before a global batch."""
        return global_batch * self.global_batch_size / self.order.size

    def _collated(self, samples: list[Encoded]) -> Batch:
        """Padded rows."""
        processor = self.encoder.processor
        return collate(samples, processor.pad_token_id, processor.rules, processor.video_rules)

    def __getitem__(self, number: int) -> LoadedMicroBatch:
        batch, step = divmod(number, self.steps)
        samples: list[Encoded] = []
        skips: list[Skip] = []
        try:
            deal = self.deal(batch)
            for index in deal.ranks[self.rank][step]:
                samples.append(self._fill(batch * self.global_batch_size + index, skips))
        except WorkError as error:
            # returned, not raised: a DataLoader process would turn it into an error whose message is a traceback
            return LoadedMicroBatch(None, skips, str(error))
        return LoadedMicroBatch(self.batch(samples, deal), skips, all_ranks=self.micro_batch_size * self.world_size, spread=deal.spread)

    def _sizes(self, batch: int) -> np.ndarray:
        first = batch * self.global_batch_size
        return np.array([self._size(self.order.sample(place)) for place in range(first, first + self.global_batch_size)], dtype=np.int64)

    def _size(self, number: int) -> np.ndarray:
        """int32 [features] of a sample; zeros for one that cannot be used, whatever will stand in for it."""
        assert self._known is not None
        if self._known[number, 0] < 0:
            try:
                self._known[number] = self.encoder.size(self.shards.open_parts(number))
            except DataError:
                self._known[number] = 0
        return self._known[number]

    def _fill(self, place: int, skips: list[Skip]) -> Encoded:
        """The sample at a position, or the first usable stand-in. Raises WorkError if there is none."""
        tried: list[Skip] = []
        result = self._tried(self.order.sample(place), self.encoder, self._unusable)
        if isinstance(result, Encoded):
            return result
        tried.append(result)
        skips.append(result)
        for number in self.order.stand_ins(place):
            if len(tried) >= MOST_TRIES:
                break
            result = self._tried(number, self.encoder, self._unusable)
            if isinstance(result, Encoded):
                return result
            tried.append(result)
            skips.append(result)
        raise self._none_usable(tried)
