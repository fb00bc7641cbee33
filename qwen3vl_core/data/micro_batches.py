"""Micro batches of one rank, each built from its number alone, so that any loader process can build any of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Dataset

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
    ) -> None:
        self.shards, self.encoder = shards, encoder
        self.order = shards.order(seed)
        self.micro_batch_size, self.global_batch_size = micro_batch_size, global_batch_size
        self.rank, self.world_size, self.rules = rank, world_size, rules
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

    def batch(self, samples: list[Encoded]) -> Batch:
        """One micro batch of samples, with its structure where `rules` are given."""
        batch = self._collated(samples)
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
        first = batch * self.global_batch_size + (step * self.world_size + self.rank) * self.micro_batch_size
        samples: list[Encoded] = []
        skips: list[Skip] = []
        try:
            for place in range(first, first + self.micro_batch_size):
                samples.append(self._fill(place, skips))
        except WorkError as error:
            # returned, not raised: a DataLoader process would turn it into an error whose message is a traceback
            return LoadedMicroBatch(None, skips, str(error))
        return LoadedMicroBatch(self.batch(samples), skips, all_ranks=self.micro_batch_size * self.world_size)

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
