"""From shards to micro batches: endless, in an order that no layout changes, and resumed exactly.

Samples are read through the shards' index instead of Energon's loader: that one's order depends on the number of ranks
and workers, and its state is a pickle that fits one layout only.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from qwen3vl_core.data.batch import Batch, Encoded, collate
from qwen3vl_core.data.encoder import SampleEncoder
from qwen3vl_core.data.faults import REASONS, DataError
from qwen3vl_core.data.order import SampleOrder
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.data.shards import ShardSplit
from qwen3vl_core.errors import RequestError, WorkError

STATE_VERSION = 1
MOST_TRIES = 1000
"""Stand-ins tried for one place; when none of them can be used, the split is taken for unusable."""
PREFETCHED = 2
"""Micro batches that each loader process keeps ready."""


@dataclass(frozen=True)
class Skip:
    """A sample that could not be used."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Filled:
    """A micro batch's samples and what was skipped on the way, or why there are none."""

    samples: list[Encoded]
    skips: list[Skip]
    error: str = ""


class MicroBatches(Dataset):
    """Micro batch number n of one rank, made from nothing but n: any process may be asked for any of them."""

    def __init__(
        self,
        shards: ShardSplit,
        encoder: SampleEncoder,
        seed: int,
        micro_batch_size: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.shards, self.encoder = shards, encoder
        self.order = SampleOrder(len(shards), seed)
        self.micro_batch_size, self.global_batch_size = micro_batch_size, global_batch_size
        self.rank, self.world_size = rank, world_size
        self._unusable: dict[int, Skip] = {}

    @property
    def steps(self) -> int:
        """Micro batches of this rank in one global batch."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def __getitem__(self, number: int) -> Filled:
        batch, step = divmod(number, self.steps)
        first = batch * self.global_batch_size + (step * self.world_size + self.rank) * self.micro_batch_size
        samples, skips = [], []
        try:
            for place in range(first, first + self.micro_batch_size):
                samples.append(self._fill(place, skips))
        except WorkError as error:
            # returned, not raised: through a process it would come out as a traceback in a message
            return Filled([], skips, str(error))
        return Filled(samples, skips)

    def _fill(self, place: int, skips: list[Skip]) -> Encoded:
        """The sample at a place, or the first usable one of those that stand in for it. Raises WorkError without any."""
        tried: list[Skip] = []
        found = self._encode(self.order.sample(place))
        if isinstance(found, Encoded):
            return found
        tried.append(found)
        skips.append(found)
        for number in self.order.stand_ins(place):
            if len(tried) >= MOST_TRIES:
                break
            found = self._encode(number)
            if isinstance(found, Encoded):
                return found
            tried.append(found)
            skips.append(found)
        reasons = ", ".join(f"{REASONS[reason]}: {count}" for reason, count in Counter(skip.reason for skip in tried).most_common())
        raise WorkError(
            f"{self.shards.path}: none of {len(tried)} samples of split {self.shards.split} can be used ({reasons}; "
            f"{tried[0].key}: {tried[0].detail}); mend the data and prepare it again"
            + (", or raise --seq-length" if any(skip.reason == "too_long" for skip in tried) else "")
        )

    def _encode(self, number: int) -> Encoded | Skip:
        if number in self._unusable:
            return self._unusable[number]
        key = self.shards.place(number)
        try:
            key, parts = self.shards.read(number)
            return self.encoder(key, parts)
        except DataError as error:
            self._unusable[number] = Skip(key, error.reason, " ".join(error.detail.split())[:500])
            return self._unusable[number]


class Loader:
    """`next(loader)` -> the micro batches of this rank for one global batch. Made by `build_loader`."""

    def __init__(self, batches: MicroBatches, processor: ChatProcessor, num_workers: int, skipped_file: Path | None) -> None:
        self._batches, self._processor, self._num_workers = batches, processor, num_workers
        self._skipped_file, self._written = skipped_file, _written_keys(skipped_file)
        self._global_batch = 0
        self._filled: Iterator[Filled] | None = None
        self.skipped: Counter[str] = Counter()
        """Reason -> samples that this rank could not use so far; one that comes up again is counted again."""
        self.used = 0
        """Samples that this rank has given out so far."""

    @property
    def samples(self) -> int:
        """Samples of the split, usable or not."""
        return self._batches.order.size

    @property
    def epoch(self) -> float:
        """How often the split has been gone through."""
        return self._global_batch * self._batches.global_batch_size / self.samples

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> list[Batch]:
        """The next global batch's micro batches of this rank. Raises WorkError when the split has no usable sample."""
        if self._filled is None:
            self._filled = self._start()
        made = []
        for _ in range(self._batches.steps):
            filled = next(self._filled)
            self._note(filled.skips)
            if filled.error:
                raise WorkError(filled.error)
            made.append(collate(filled.samples, self._processor.pad_token_id, self._processor.rules))
        # counted when given out: what was only prepared ahead is prepared again after a resume
        self._global_batch += 1
        self.used += sum(len(batch.keys) for batch in made)
        return made

    def _start(self) -> Iterator[Filled]:
        numbers = _From(self._global_batch * self._batches.steps)
        if not self._num_workers:
            return (self._batches[number] for number in numbers)
        return iter(
            DataLoader(
                self._batches, batch_size=None, sampler=numbers, num_workers=self._num_workers, collate_fn=_as_it_is,
                prefetch_factor=PREFETCHED, worker_init_fn=_leave_signals_to_the_parent,
                # the loader draws a number: not from the generator that dropout draws from
                generator=torch.Generator(),
            )
        )  # fmt: skip

    def _note(self, skips: list[Skip]) -> None:
        self.skipped.update(skip.reason for skip in skips)
        fresh = {skip.key: skip for skip in skips if skip.key not in self._written}
        if not fresh or self._skipped_file is None:
            return
        self._written.update(fresh)
        rows = "".join(json.dumps(asdict(skip), ensure_ascii=False) + "\n" for skip in fresh.values())
        self._skipped_file.parent.mkdir(parents=True, exist_ok=True)
        # one write in append mode: ranks may share the file
        file = os.open(self._skipped_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, rows.encode("utf-8", "replace"))
        finally:
            os.close(file)

    def _fingerprint(self) -> dict[str, Any]:
        batches = self._batches
        return {
            "dataset": batches.shards.identity,
            "split": batches.shards.split,
            "seed": batches.order.seed,
            "micro_batch_size": batches.micro_batch_size,
            "global_batch_size": batches.global_batch_size,
            "seq_length": batches.encoder.seq_length,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on exactly here needs, as JSON. Fits any number of ranks and loader processes."""
        return {
            "v": STATE_VERSION,
            "fingerprint": self._fingerprint(),
            "global_batch": self._global_batch,
            "used": self.used,
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the global batch that `state` was taken at. Raises RequestError when it belongs to other data or batches."""
        if not isinstance(state, dict) or state.get("v") != STATE_VERSION:
            raise RequestError("the loader's state is of another version; start a new run from the checkpoint")
        here, there = self._fingerprint(), state["fingerprint"]
        for name, value in here.items():
            if there.get(name) != value:
                if name == "dataset":
                    path = self._batches.shards.path
                    raise RequestError(f"{path}: not the dataset that the run began with; give that one, or start a new run")
                flag = name if name == "split" else "--" + name.replace("_", "-")
                raise RequestError(f"{flag} {value}: the run began with {there.get(name)}; use {there.get(name)}, or start a new run")
        self.close()
        self._global_batch, self.used = int(state["global_batch"]), int(state["used"])
        self.skipped = Counter({str(reason): int(count) for reason, count in state["skipped"].items()})

    def close(self) -> None:
        """Stop the loader processes and close the shards; going on starts them again at the same place."""
        self._filled = None
        self._batches.shards.close()


@dataclass(frozen=True)
class _From:
    """begin, begin + 1, … without an end, as often as asked."""

    begin: int

    def __iter__(self) -> Iterator[int]:
        number = self.begin
        while True:
            yield number
            number += 1


def _as_it_is(filled: Filled) -> Filled:
    return filled


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a stop reach the whole process group; a loader that dies of them would break the checkpoint at the end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _written_keys(file: Path | None) -> set[str]:
    """Keys that an earlier part of the run has written already."""
    keys = set()
    if file is not None and file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                keys.add(str(json.loads(line)["key"]))
            except (ValueError, KeyError, TypeError):
                # a line that a crash cut off
                continue
    return keys


def build_loader(
    path: str | Path, split: str, processor: ChatProcessor, *, micro_batch_size: int, global_batch_size: int, seq_length: int,
    rank: int = 0, world_size: int = 1, num_workers: int = 0, seed: int = 0, skipped_file: Path | None = None,
) -> Loader:  # fmt: skip
    """The endless loader of one data-parallel rank.

    path, split: a folder made by `qwen3vl prepare`, and train, val or test. rank, world_size: of the data-parallel group.
    num_workers: processes that prepare batches ahead; 0: in this process. skipped_file: JSON lines {key, reason, detail}
    of samples that could not be used are appended there. Needs no torch.distributed.
    Micro batch m of a global batch is taken by rank m % world_size at its step m // world_size.
    Raises RequestError for batch sizes that do not divide and for data or a split that is not there.
    """
    together = micro_batch_size * world_size
    if global_batch_size < 1 or global_batch_size % together:
        nearest = max(1, round(global_batch_size / together)) * together
        raise RequestError(
            f"--global-batch-size {global_batch_size}: must be a multiple of micro batch x data parallel size = "
            f"{micro_batch_size} x {world_size} = {together}; use {nearest}"
        )
    shards = ShardSplit(path, split)
    batches = MicroBatches(shards, SampleEncoder(processor, seq_length), seed, micro_batch_size, global_batch_size, rank, world_size)
    return Loader(batches, processor, num_workers, Path(skipped_file) if skipped_file is not None else None)
