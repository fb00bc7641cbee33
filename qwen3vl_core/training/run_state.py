"""What a run holds on this rank: signals, loaders, model and optimizer, metrics, and its checkpoints: resumed from, and saved."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import qwen3vl_core.model  # noqa: F401

import torch
from megatron.core import parallel_state

from qwen3vl_core import run_record
from qwen3vl_core.checkpoint import lora_merge, retention
from qwen3vl_core.checkpoint.adapter_start import open_adapter
from qwen3vl_core.checkpoint.lora_merge import MergedSource
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.saving import Saving, start_saving
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.checkpoint.training_state import load_step, load_training
from qwen3vl_core.data.loader import Loader, build_loader
from qwen3vl_core.data.media_limits import limits_of
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import seconds_of
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import AT_CHECKPOINT, AT_START, CHECKPOINTS, METRICS_FILE, TENSORBOARD
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training import node_watch
from qwen3vl_core.training.guard import Guard, Learned
from qwen3vl_core.training.metrics import Metrics, StepLine
from qwen3vl_core.training.rank_progress import RankProgress
from qwen3vl_core.training.run_lock import RunLock
from qwen3vl_core.training.sample_captions import Sampler
from qwen3vl_core.training.setup import Training, build, common_state, device, multiple_of, settle, structure_rules, this_machine
from qwen3vl_core.training.sinks import Sinks
from qwen3vl_core.training.step_profile import StepProfile
from qwen3vl_core.training.throughput import Gpu

# least and most loader processes of a rank with a GPU by default: decoding must not make the GPU wait, as an H200 did for 2.6 % of the
# steps of a 2B model with two processes, and 11 to 13 % on two ranks that each read all samples
LEAST_WORKERS, MOST_WORKERS = 2, 8


class Signals:
    """SIGTERM and SIGINT: save a checkpoint and stop. SIGUSR1, and the signal of --save-before-signal: save a checkpoint only.

    The time of --stop-after stops, too.
    """

    def __init__(self, warning: str = "USR1", stop_after: str | None = None) -> None:
        """warning: of --save-before-signal, without SIG."""
        self.stop = self.save = False
        seconds = None if stop_after is None else seconds_of(stop_after)
        # a restarted attempt belongs to the same job: its supervisor says when that began
        began = float(os.environ.get(run_record.STARTED_VARIABLE) or time.monotonic())
        self._stop_at = math.inf if seconds is None else began + seconds
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGUSR1, self._save)
        signal.signal(signal.Signals[f"SIG{warning}"], self._save)

    def _stop(self, *_: Any) -> None:
        self.stop = True

    def _save(self, *_: Any) -> None:
        self.save = True

    @property
    def late(self) -> bool:
        """Whether the time of --stop-after is over."""
        return time.monotonic() >= self._stop_at

    def take(self) -> tuple[bool, bool]:
        """(stop, save) since the last call; a stop request stays set."""
        flags = self.stop or self.late, self.save
        self.save = False
        return flags


def default_workers() -> int:
    """Loader processes of this rank: its share of the cores but one, within limits. None without a GPU, where they would compete with
    training for cores. Batches do not depend on their number."""
    if device().type == "cpu":
        return 0
    share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(share - 1, LEAST_WORKERS), MOST_WORKERS)


def loaders(options: FinetuneOptions, architecture: Architecture, side: Path, run_dir: Path) -> tuple[Loader, Loader | None]:
    """Loaders of the training data and, where the run evaluates, the validation data, for this data-parallel rank."""
    processor = ChatProcessor.from_pretrained(side, limits_of(options))
    rank = parallel_state.get_data_parallel_rank()
    workers = default_workers() if options.num_workers is None else options.num_workers
    shared: dict[str, Any] = dict(
        micro_batch_size=options.micro_batch_size, global_batch_size=options.global_batch_size, seq_length=options.seq_length,
        rank=rank, world_size=parallel_state.get_data_parallel_world_size(), num_workers=workers, seed=options.seed,
        packing=options.packing, balance=options.balance,
        document_multiple=multiple_of(options), rules=structure_rules(options, architecture),
    )  # fmt: skip
    # all ranks of a model-parallel group read the same samples; one of them records the skipped ones
    records_skipped = parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.is_pipeline_first_stage()
    skipped = run_dir / run_record.skipped_file(rank) if records_skipped else None
    train = build_loader(options.train_data, "train", processor, skipped_file=skipped, **shared)
    if not options.eval_interval:
        return train, None
    data = options.valid_data or options.train_data
    return train, build_loader(data, "val", processor, skipped_file=None, **shared)


class RunState:
    """A run on this rank, at the last step that was trained."""

    def __init__(self, run_dir: Path, options: FinetuneOptions) -> None:
        self.run_dir, self.options = run_dir, options
        self.signals = Signals(options.save_before_signal, options.stop_after)
        self.is_rank_0 = torch.distributed.get_rank() == 0
        self.progress = RankProgress(run_dir, torch.distributed.get_rank())
        self.progress.note(0, AT_START)
        self.node_watch = node_watch.started(run_dir)
        self.lock = RunLock(run_dir) if self.is_rank_0 else None
        self.source: ModelSource = open_source(options.load, option="--load")
        verdict = judge(
            options, architecture=self.source.architecture, processes=torch.distributed.get_world_size(), machine=this_machine(), disk=False
        ).require_valid()
        self.source.check()
        self.sampler = self._sampler()
        self.train_data, self.valid_data = loaders(options, self.source.architecture, self.source.side, run_dir)
        self.valid_start = self.valid_data.state_dict() if self.valid_data else None
        first = self._first_adapters()
        self.training: Training = build(options, self.source, first)
        # saved in the checkpoints of a LoRA run: the adapters' settings and the base weights they belong to
        self.adapter_note = lora_merge.adapter_note(self.training.adapters, self.source) if self.training.adapters else None
        self.guard = Guard(options.spike_factor, skip=options.skip_spikes, most=options.max_bad_steps)
        self.saving: Saving | None = None
        self.step = self.saved = 0
        self.damaged: list[str] = []
        self.layout_kept = True
        self.learned = Learned(options.max_bad_steps)
        self._resume()
        if options.init_adapter and not self.step and first is None:
            raise RequestError(f"--init-adapter {options.init_adapter}: missing, and the run has no checkpoint to resume from; restore it")
        self.line = StepLine(options.train_iters, self.step)
        if self.is_rank_0:
            for caution in verdict.cautions:
                self.line.say(f"warning: {caution}")
        self.metrics = (
            Metrics(run_dir / METRICS_FILE, run_dir / TENSORBOARD, Sinks(run_dir, options, self.line.say, resumed=self.step > 0))
            if self.is_rank_0
            else None
        )
        self.gpu = Gpu()
        self.profile = StepProfile.of_environment(run_dir) if self.is_rank_0 else None
        # seconds spent in checkpoints since the last metrics row
        self.saving_seconds = 0.0
        self.peaks: tuple[float, ...] = ()

    def _first_adapters(self) -> MergedSource | None:
        """Where the run's adapters begin; None where that folder is missing, as a run that resumes no longer needs it."""
        path = self.options.init_adapter
        if not path or not Path(path).expanduser().exists():
            return None
        return open_adapter(path, self.source)

    def _sampler(self) -> Sampler | None:
        if not self.options.sample_interval:
            return None
        processor = ChatProcessor.from_pretrained(self.source.side, limits_of(self.options))
        return Sampler(self.run_dir, self.options, processor)

    def _resume(self) -> None:
        parts = dict(models=self.training.models, optimizer=self.training.optimizer, scheduler=self.training.scheduler)
        loaded = load_training(self.run_dir / CHECKPOINTS, requires=("data",), **parts)
        own = loaded is not None
        if loaded is None and self.options.resume:
            loaded = load_step(Path(self.options.resume), **parts)
        if loaded is not None:
            self.step, extra = loaded
            self.saved = self.step if own else 0
            self.layout_kept = extra["layout_kept"]
            self.train_data.load_state_dict(extra["data"])
            self.damaged = extra.get("damaged", [])
            self._check_adapters(extra.get(lora_merge.ADAPTERS_KEY))
            if "guard" in extra:
                self.guard.load_state_dict(extra["guard"])

    def _check_adapters(self, saved: dict[str, Any] | None) -> None:
        """Raises RequestError when the checkpoint's adapters or base weights are not those of this run."""
        own = self.adapter_note
        if (saved is None) != (own is None):
            trained, expected = ("the weights", "adapters") if saved is None else ("adapters", "the weights")
            raise RequestError(
                f"--lora-rank {self.options.lora_rank}: the checkpoint has {trained} trained, not {expected}; start a new run"
            )
        if own is None or saved is None:
            return
        for name in ("rank", "alpha", "targets", "parts"):
            if saved.get(name) != own[name]:
                raise RequestError(f"--lora-{name}: {own[name]}, but the run's checkpoint has {saved.get(name)}; start a new run")
        if saved.get("base_fingerprint") != own["base_fingerprint"]:
            raise RequestError(
                f"--load {self.options.load}: not the weights that the run started from; the adapters belong to {saved.get('base')}"
            )

    def event(self, name: str, text: str, step: int | None = None, **values: Any) -> None:
        """Record an event in metrics.jsonl and print it."""
        if self.metrics:
            self.metrics.event(self.step if step is None else step, name, text, **values)
            self.line.say(text)

    def save(self) -> None:
        """Save a checkpoint of this step; with --async-save only start to save it."""
        self.progress.note(self.step, AT_CHECKPOINT)
        self.finish_saving(wait=True)
        settle(self.training)
        self.saving = start_saving(
            self.run_dir / CHECKPOINTS, self.step, models=self.training.models, optimizer=self.training.optimizer,
            scheduler=self.training.scheduler, extra=self._extra(),
            common=common_state(self.training.architecture, self.options), side=self.source.side, asynchronous=self.options.async_save,
        )  # fmt: skip
        self.saving_seconds += self.saving.blocked
        self.finish_saving(wait=not self.options.async_save)

    def _extra(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        adapters = {} if self.adapter_note is None else {lora_merge.ADAPTERS_KEY: self.adapter_note}
        return {"data": self.train_data.state_dict(), "guard": self.guard.state_dict()} | adapters

    def finish_saving(self, *, wait: bool) -> None:
        """Record the pending checkpoint once it is on disk, and prune the old ones. wait: until it is."""
        saving = self.saving
        if saving is None:
            return
        before = saving.blocked
        finished = saving.finished(wait=wait)
        self.saving_seconds += saving.blocked - before
        if not finished:
            return
        self.saving, self.saved = None, saving.iteration
        if not self.is_rank_0:
            return
        # while the losses are bad nothing is removed: an older checkpoint may be the one to go back to
        last, every = self.options.keep, self.options.keep_every
        removed = retention.prune(self.run_dir / CHECKPOINTS, saving.iteration, last=last, every=every) if self.guard.content else []
        seconds = time.monotonic() - saving.started
        waited = f", training waited {saving.blocked:.1f} s" if self.options.async_save else ""
        self.event(
            run_record.SAVED, f"checkpoint {saving.folder.name} in {seconds:.1f} s{waited}", step=saving.iteration, path=str(saving.folder),
            seconds=round(seconds, 3), waited_seconds=round(saving.blocked, 3), digest_seconds=round(saving.digest_seconds, 3),
            **({"removed": removed} if removed else {}),
        )  # fmt: skip

    def last_checkpoint(self) -> str:
        return f"the last checkpoint is step {self.saved}" if self.saved else "no checkpoint was written yet"
