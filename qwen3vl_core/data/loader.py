"""Endless loader from shards to micro batches; its order does not depend on the layout, and it resumes exactly.

Samples are read through the shards' index instead of Energon's loader, whose order depends on the number of ranks and workers
and whose state is a pickle for one layout only.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from qwen3vl_core.data.balance import Spread
from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.blend import open_split
from qwen3vl_core.data.micro_batches import LoadedMicroBatch, MicroBatches, Skip
from qwen3vl_core.data.packing import PackedRows
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.data.read_ahead import ReadAhead
from qwen3vl_core.data.sample_encoder import SampleEncoder
from qwen3vl_core.data.storage import Place
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.formats import printable
from qwen3vl_core.process_death import death_with_parent
from qwen3vl_core.structure.micro_batch import StructureRules

STATE_VERSION = 1
PREFETCHED = 2
"""Micro batches that each loader process prefetches."""
# made before a loader process is forked, which then loads no library
_end_with_parent = death_with_parent()
MOST_AHEAD = 64
"""Micro batches of the next step that wait in this process, in pinned memory on a GPU machine."""


class Loader:
    """`next(loader)` -> the micro batches of this rank for one global batch. Created by `build_loader`."""

    def __init__(self, batches: MicroBatches | PackedRows, num_workers: int, skipped_file: Path | None) -> None:
        self._batches, self._num_workers = batches, num_workers
        self._skipped_file, self._written = skipped_file, _written_keys(skipped_file)
        self._global_batch = 0
        self._following: dict[str, int] | None = None
        self._rows = self._tokens = 0
        self._at_exit: Callable[[], None] = partial(_shut_down, None)
        self._filled: Iterator[LoadedMicroBatch] | None = None
        self.skipped: Counter[str] = Counter()
        """Reason -> samples that this rank has skipped so far; a sample is counted each time it is drawn."""
        self.used = 0
        """Samples that this rank has used so far."""
        self.batch_samples = 0
        """Samples of the last global batch, of all ranks together, before pixels were decoded."""
        self.spread: Spread | None = None
        """How even the last global batch is; None where samples are not dealt evenly."""

    @property
    def packing(self) -> bool:
        """Whether a micro batch is one packed row."""
        return isinstance(self._batches, PackedRows)

    @property
    def efficiency(self) -> float:
        """Share of the positions of this rank's rows, at the full sequence length, that hold a sample's token; 0 before the first."""
        return self._tokens / max(self._rows * self._batches.encoder.seq_length, 1)

    @property
    def samples(self) -> int:
        """Samples of the split, usable or not."""
        return self._batches.order.size

    @property
    def ranks(self) -> int:
        """Of the data-parallel group."""
        return self._batches.world_size

    @property
    def epoch(self) -> float:
        """Passes over the split so far."""
        return self._batches.epoch(self._global_batch, self._following)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> list[Batch]:
        """The next global batch's micro batches of this rank. Raises WorkError when the split has no usable sample."""
        if self._filled is None:
            self._filled = self._start()
        elif isinstance(self._batches, PackedRows):
            # every rank has taken a step since
            self._batches.lengths.unlink()
        batches: list[Batch] = []
        following, all_ranks, spread = self._following, 0, self.spread
        for _ in range(self._batches.steps):
            filled = next(self._filled)
            following, spread = filled.following, filled.spread
            self._note(filled.skips)
            if filled.batch is None:
                raise WorkError(filled.error)
            batches.append(filled.batch)
            self._rows += 1 if self.packing else len(filled.batch.keys)
            self._tokens += int(filled.batch.lengths.sum())
            all_ranks += filled.all_ranks
        # counted when returned: batches that were only prefetched are loaded again after a resume
        self._global_batch += 1
        self._following, self.batch_samples, self.spread = following, all_ranks, spread
        self.used += sum(len(batch.keys) for batch in batches)
        return batches

    def _start(self) -> Iterator[LoadedMicroBatch]:
        numbers = _CountFrom(self._batches.begin(self._global_batch, self._following))
        if not self._num_workers:
            return (self._batches[number] for number in numbers)
        processes = iter(
            DataLoader(
                self._batches, batch_size=None, sampler=numbers, num_workers=self._num_workers, collate_fn=_unchanged,
                prefetch_factor=PREFETCHED, pin_memory=torch.cuda.is_available(),
                worker_init_fn=partial(_live_with_the_parent, os.getpid()),
                # the DataLoader draws a base seed: not from the generator that dropout uses
                generator=torch.Generator(),
            )
        )  # fmt: skip
        # after an error the run still holds the loader: Python would wait for processes that ignore SIGTERM
        self._at_exit = partial(_shut_down, weakref.ref(processes))
        atexit.register(self._at_exit)
        # a step needs all its micro batches before it starts: those of the next one are taken while the GPU computes
        return ReadAhead(processes, min(self._batches.steps, MOST_AHEAD))

    def _note(self, skips: list[Skip]) -> None:
        self.skipped.update(skip.reason for skip in skips)
        new_skips = {(skip.shard, skip.key): skip for skip in skips if (skip.shard, skip.key) not in self._written}
        if not new_skips or self._skipped_file is None:
            return
        self._written.update(new_skips)
        rows = "".join(json.dumps(asdict(skip), ensure_ascii=False) + "\n" for skip in new_skips.values())
        self._skipped_file.parent.mkdir(parents=True, exist_ok=True)
        # one write in append mode: ranks may share the file
        file = os.open(self._skipped_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, rows.encode("utf-8", "replace"))
        finally:
            os.close(file)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume exactly here, as JSON. Valid for any number of ranks and loader processes."""
        return {
            "v": STATE_VERSION,
            "fingerprint": self._batches.fingerprint(),
            "global_batch": self._global_batch,
            "used": self.used,
            "skipped": dict(self.skipped),
            "rows": self._rows,
            "tokens": self._tokens,
        } | ({} if self._following is None else {"following": self._following})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the global batch of `state`. Raises RequestError when it belongs to other data or batch settings."""
        if not isinstance(state, dict) or state.get("v") != STATE_VERSION:
            raise RequestError("the loader's state is of another version; start a new run from the checkpoint")
        if not _is_state(state):
            raise RequestError(
                "the loader's state in the checkpoint is damaged; resume from an earlier one, or start a new run with --load"
            )
        current, saved = self._batches.fingerprint(), state["fingerprint"]
        for name, value in current.items():
            if saved.get(name) != value:
                if name == "document_multiple" and saved.get("packing"):
                    raise RequestError(
                        f"--packing: this parallel layout pads documents to multiples of {value}, the run's to multiples of "
                        f"{saved.get(name)}; use the --tp, --cp and --sequence-parallel that it started with, or start a new run"
                    )
                if name == "dataset":
                    path = self._batches.shards.path
                    raise RequestError(f"{path}: not the dataset that the run started with; use that one, or start a new run")
                if name == "packing":
                    raise RequestError("--packing: the run started without it; leave it out, or start a new run")
                flag = name if name == "split" else "--" + name.replace("_", "-")
                before = printable(saved.get(name))[:80].replace("\n", " ")
                raise RequestError(f"{flag} {value}: the run started with {before}; use {before}, or start a new run")
        if saved.get("packing") and not self.packing:
            raise RequestError("--packing: the run started with it; use it again, or start a new run")
        self.close()
        self._following = {name: int(value) for name, value in state["following"].items()} if "following" in state else None
        self._rows, self._tokens = int(state.get("rows", 0)), int(state.get("tokens", 0))
        self._global_batch, self.used = int(state["global_batch"]), int(state["used"])
        self.skipped = Counter({str(reason): int(count) for reason, count in state["skipped"].items()})

    def close(self) -> None:
        """Stop the loader processes and close the shards; the next batch starts them again at the same position."""
        if isinstance(self._filled, ReadAhead):
            self._filled.close()
            self._at_exit()
        self._filled = None
        atexit.unregister(self._at_exit)
        self._batches.shards.close()


def _is_state(state: dict[str, Any]) -> bool:
    """Whether a saved state has the entries of `Loader.state_dict`, each of its type."""

    def counts(value: Any) -> bool:
        return isinstance(value, dict) and all(is_count(n) for n in value.values())

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 1 << 62

    numbers = (state.get("global_batch"), state.get("used"), state.get("rows", 0), state.get("tokens", 0))
    following = state.get("following", {})
    return isinstance(state.get("fingerprint"), dict) and counts(state.get("skipped")) and counts(following) and all(map(is_count, numbers))


@dataclass(frozen=True)
class _CountFrom:
    """begin, begin + 1, … endless; each iteration starts again."""

    begin: int

    def __iter__(self) -> Iterator[int]:
        number = self.begin
        while True:
            yield number
            number += 1


def _unchanged(filled: Any) -> Any:
    return filled


def _shut_down(processes: Callable[[], Any] | None) -> None:
    iterator = processes() if processes is not None else None
    if iterator is not None:
        iterator._shutdown_workers()


def _live_with_the_parent(parent: int, worker: int) -> None:
    """Ctrl-C and a stop reach the whole process group; a loader process ended by them would break the final checkpoint. When the rank is
    killed, it would wait without end to hand over its last batches, as the other loader processes hold their pipe open."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    if os.getppid() == 1 != parent:
        os._exit(1)


def _written_keys(file: Path | None) -> set[tuple[str, str]]:
    """(shard, key) of the skipped samples that the run has recorded before a resume."""
    keys = set()
    if file is not None and file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                keys.add((str(row.get("shard", "")), str(row["key"])))
            except (ValueError, KeyError, TypeError, AttributeError):
                # a line truncated by a crash
                continue
    return keys


def build_loader(
    path: str | Place, split: str, processor: ChatProcessor, *, micro_batch_size: int, global_batch_size: int, seq_length: int,
    rank: int = 0, world_size: int = 1, num_workers: int = 0, seed: int = 0, skipped_file: Path | None = None,
    packing: bool = False, document_multiple: int = 1, rules: StructureRules | None = None, balance: bool = False,
) -> Loader:  # fmt: skip
    """The endless loader of one data-parallel rank.

    path, split: a folder made by `qwen3vl prepare`, a metadataset (YAML) of several, either one under msc:// too; and train,
    val or test. rank, world_size: of the data-parallel group. num_workers: processes that prefetch batches; 0: in this
    process. skipped_file: JSON lines {key, reason, detail, shard, code} of samples that could not be used are appended there.
    Needs no torch.distributed.
    packing: a micro batch is one packed row of `seq_length` tokens at most, each padded to a multiple of
    `document_multiple` tokens; `micro_batch_size` is 1 then and `global_batch_size` counts rows.
    rules: of the structure that the loader builds for each micro batch; None: it builds none.
    balance: deal the samples of a global batch to micro batches and ranks so that patches and tokens are even. Else micro batch m of a
    global batch belongs to rank m % world_size, as its step m // world_size.
    Raises RequestError for batch sizes that do not divide and for data or a split that does not exist.
    """
    if packing and micro_batch_size != 1:
        raise RequestError(
            f"--micro-batch-size {micro_batch_size}: with --packing a micro batch is one row of --seq-length {seq_length} tokens; "
            f"use --micro-batch-size 1 and --seq-length {micro_batch_size * seq_length}"
        )
    step_samples = micro_batch_size * world_size
    if global_batch_size < 1 or global_batch_size % step_samples:
        nearest = max(1, round(global_batch_size / step_samples)) * step_samples
        raise RequestError(
            f"--global-batch-size {global_batch_size}: must be a multiple of micro batch x data parallel size = "
            f"{micro_batch_size} x {world_size} = {step_samples}; use {nearest}"
        )
    shards = open_split(path, split)
    settings = (shards, SampleEncoder(processor, seq_length), seed, micro_batch_size, global_batch_size, rank, world_size, rules)
    batches: MicroBatches | PackedRows
    batches = PackedRows(*settings, multiple=document_multiple, balance=balance) if packing else MicroBatches(*settings, balance=balance)
    return Loader(batches, num_workers, Path(skipped_file) if skipped_file is not None else None)
