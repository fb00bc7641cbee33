"""The training loop: steps, metrics, checkpoints, evaluation, and a clean stop on a signal."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from qwen3vl_core.model.config import without_fp8

import torch
from megatron.core import parallel_state

from qwen3vl_core import run_metrics, run_record
from qwen3vl_core.checkpoint import lora_merge, retention
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.checkpoint.training_state import Saving, load_step, load_training, start_saving
from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.loader import Loader, build_loader
from qwen3vl_core.data.media_limits import limits_of
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.formats import GIB, seconds_of
from qwen3vl_core.layout.adapters import trained_lines
from qwen3vl_core.layout.cuda_graphs import no_graph_because
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.log_lines import BAD_STEPS
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import (
    AT_CAPTIONS,
    AT_CHECKPOINT,
    AT_DATA,
    AT_EVALUATION,
    AT_START,
    AT_STEP,
    CHECKPOINTS,
    METRICS_FILE,
    SKIPPED,
    TENSORBOARD,
)  # fmt: skip
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training.guard import SPIKE, Guard, Learned
from qwen3vl_core.training.left_out import left_out_text, way_to_use
from qwen3vl_core.training.metrics import Metrics, StepLine
from qwen3vl_core.training.rank_progress import RankProgress
from qwen3vl_core.training.run_lock import RunLock
from qwen3vl_core.training.sample_captions import Sampler
from qwen3vl_core.training.setup import Training, build, common_state, device, multiple_of, settle, structure_rules, this_machine
from qwen3vl_core.training.sinks import Sinks
from qwen3vl_core.training.step import StepResult, evaluate, train_step
from qwen3vl_core.training.step_profile import StepProfile
from qwen3vl_core.training.throughput import Gpu

# least and most loader processes of a rank with a GPU by default: decoding must not make the GPU wait, as an H200 did for 2.6 % of the
# steps of a 2B model with two processes, and 11 to 13 % on two ranks that each read all samples
LEAST_WORKERS, MOST_WORKERS = 2, 8
# with fewer samples than this the skipped share is not checked
MIN_SAMPLES_TO_CHECK = 64
# samples that an error message names; metrics.jsonl has all
NAMED_SAMPLES = 8


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
        packing=options.packing,
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


class Loop:
    """A run on this rank, from its first step or last checkpoint to its last step."""

    def __init__(self, run_dir: Path, options: FinetuneOptions) -> None:
        self.run_dir, self.options = run_dir, options
        self.signals = Signals(options.save_before_signal, options.stop_after)
        self.is_rank_0 = torch.distributed.get_rank() == 0
        self.progress = RankProgress(run_dir, torch.distributed.get_rank())
        self.progress.note(0, AT_START)
        self.lock = RunLock(run_dir) if self.is_rank_0 else None
        self.source: ModelSource = open_source(options.load, option="--load")
        judge(
            options, architecture=self.source.architecture, processes=torch.distributed.get_world_size(), machine=this_machine(), disk=False
        ).require_valid()
        self.source.check()
        self.sampler = self._sampler()
        self.train_data, self.valid_data = loaders(options, self.source.architecture, self.source.side, run_dir)
        self.valid_start = self.valid_data.state_dict() if self.valid_data else None
        self.training: Training = build(options, self.source)
        # saved in the checkpoints of a LoRA run: the adapters' settings and the base weights they belong to
        self.adapter_note = lora_merge.adapter_note(self.training.adapters, self.source) if self.training.adapters else None
        self.guard = Guard(options.spike_factor, skip=options.skip_spikes, most=options.max_bad_steps)
        self.saving: Saving | None = None
        self.step = self.saved = 0
        self.damaged: list[str] = []
        self.layout_kept = True
        self.learned = Learned(options.max_bad_steps)
        self._resume()
        self.line = StepLine(options.train_iters, self.step)
        self.metrics = (
            Metrics(run_dir / METRICS_FILE, run_dir / TENSORBOARD, Sinks(run_dir, options, self.line.say)) if self.is_rank_0 else None
        )
        self.gpu = Gpu()
        self.profile = StepProfile.of_environment(run_dir) if self.is_rank_0 else None
        # seconds spent in checkpoints since the last metrics row
        self.saving_seconds = 0.0
        self.peaks: tuple[float, ...] = ()

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
        self._finish_saving(wait=True)
        settle(self.training)
        self.saving = start_saving(
            self.run_dir / CHECKPOINTS, self.step, models=self.training.models, optimizer=self.training.optimizer,
            scheduler=self.training.scheduler, extra=self._extra(),
            common=common_state(self.training.architecture, self.options), side=self.source.side, asynchronous=self.options.async_save,
        )  # fmt: skip
        self.saving_seconds += self.saving.blocked
        self._finish_saving(wait=not self.options.async_save)

    def _extra(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        adapters = {} if self.adapter_note is None else {lora_merge.ADAPTERS_KEY: self.adapter_note}
        return {"data": self.train_data.state_dict(), "guard": self.guard.state_dict()} | adapters

    def _finish_saving(self, *, wait: bool) -> None:
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
            seconds=round(seconds, 3), waited_seconds=round(saving.blocked, 3), **({"removed": removed} if removed else {}),
        )  # fmt: skip

    def evaluate(self) -> None:
        """Validation loss, over the same global batches every time."""
        assert self.valid_data is not None and self.valid_start is not None
        self.valid_data.load_state_dict(self.valid_start)
        results = []
        for _ in range(self.options.eval_iters):
            self.progress.note(self.step, AT_EVALUATION)
            results.append(evaluate(self.training, next(self.valid_data)))
        tokens = sum(r.tokens for r in results)
        loss = sum(r.loss * r.tokens for r in results) / max(tokens, 1)
        if self.metrics:
            self.metrics.row(run_record.EVAL, self.step, {run_metrics.LOSS: loss, run_metrics.TOKENS: tokens})
            title = run_metrics.title_of(run_metrics.key_of(run_record.EVAL, run_metrics.LOSS))
            self.line.say(f"step {self.step}: {title} {loss:.4f}{left_out_text(self.valid_data)}")

    def sample(self) -> None:
        """Write captions of the run's fixed sample pictures."""
        assert self.sampler is not None
        settle(self.training)

        def stopped() -> bool:
            self.progress.note(self.step, AT_CAPTIONS)
            return self.signals.stop or self.signals.late

        with without_fp8(self.training.config):
            texts = self.sampler.write(self.training, self.step, stopped)
        if self.is_rank_0 and texts:
            self.line.say(f"step {self.step}: {len(texts)} captions, the first: {' '.join(texts[0].split())[:100]}")

    def check(self, result: StepResult, batches: list[Batch]) -> None:
        """Record a bad step. Raises WorkError after too many bad steps or skipped samples."""
        too_many = self.guard.note(result.loss, result.problem)
        if result.problem:
            self._report(result, batches, too_many)
        skipped = sum(self.train_data.skipped.values())
        seen = skipped + self.train_data.used
        if seen >= MIN_SAMPLES_TO_CHECK and skipped > self.options.max_skip_share * seen:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.train_data.skipped.most_common(3))
            way = way_to_use(self.train_data.skipped.most_common(1)[0][0], self.options)
            raise WorkError(
                f"step {self.step}: {skipped} of {seen} samples could not be used ({reasons}), more than --max-skip-share "
                f"{self.options.max_skip_share:g}; {way}; {SKIPPED} in {self.run_dir} names each; {self._last_checkpoint()}"
            )

    def _last_checkpoint(self) -> str:
        return f"the last checkpoint is step {self.saved}" if self.saved else "no checkpoint was written yet"

    def _report(self, result: StepResult, batches: list[Batch], too_many: bool) -> None:
        """Record a bad step with the keys of its samples. Raises WorkError if there were too many in a row. Called by every rank."""
        keys = [key for batch in batches for key in getattr(batch, "keys", ())]
        all_keys: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(all_keys, keys)
        keys = list(dict.fromkeys(key for rank_keys in all_keys for key in rank_keys))
        kind = run_record.SPIKE if result.problem == SPIKE else run_record.NAN
        if result.problem == SPIKE:
            description = f"loss {result.loss:.4f} is a spike"
        else:
            description = f"the loss is {result.loss}" if result.problem == "loss" else f"the gradient norm is {result.grad_norm}"
        outcome = "step skipped, weights unchanged" if not result.updated else "step applied"
        self.event(
            kind, f"step {self.step}: {description}; {outcome}", keys=keys, loss=result.loss,
            grad_norm=result.grad_norm, updated=result.updated, in_a_row=self.guard.bad,
        )  # fmt: skip
        if too_many:
            # a pending checkpoint is from an earlier step: it is the last one
            self._finish_saving(wait=True)
            named = ", ".join(keys[:NAMED_SAMPLES]) + (f" and {len(keys) - NAMED_SAMPLES} more" if len(keys) > NAMED_SAMPLES else "")
            precision = "" if self.options.precision != "fp16" else ", or --precision bf16"
            raise WorkError(
                f"step {self.step}: {description}; {self.guard.bad} bad steps in a row (--max-bad-steps {self.guard.most}); its samples: "
                f"{named} ({METRICS_FILE} has those of each); {self._last_checkpoint()}; check these samples, or try a lower --lr than "
                f"{self.options.lr:g}, more --lr-warmup-iters{precision}",
                BAD_STEPS,
            )

    def run(self) -> None:
        """Train to the last step, or until a signal asks to stop. Raises WorkError when training cannot continue."""
        o = self.options
        for line in self.damaged:
            self.event(run_record.DAMAGED, f"{line}; resuming from the one before it")
        if self.step:
            place = f", from {o.resume}" if o.resume and not self.saved else ""
            reseeded = "" if self.layout_kept else "; random numbers are seeded again, because the layout changed"
            self.event(run_record.RESUME, f"resuming after step {self.step} of {o.train_iters}{place}{reseeded}", train_iters=o.train_iters)
        else:
            self.event(run_record.START, f"{o.train_iters} steps of {o.global_batch_size} samples", train_iters=o.train_iters)
        most = self.training.architecture.max_position_embeddings
        if o.seq_length > most:
            self.event(run_record.NOTE, f"--seq-length {o.seq_length}: the model was trained on {most} positions at most")
        for line in trained_lines(o, self.source.architecture) if self.is_rank_0 else ():
            self.line.say(line)
        if self.gpu.problem:
            self.event(run_record.NOTE, self.gpu.problem)
        if device().type == "cuda":
            reason = no_graph_because(o, self.source.architecture, this_machine())
            kernels = f"micro batches run kernel by kernel: {reason}" if reason else "micro batches are replayed as CUDA graphs"
            self.event(run_record.NOTE, kernels)
        stop, failed = False, True
        # a checkpoint is due, and said to be delayed
        due = delayed = False
        try:
            while self.step < o.train_iters and not stop:
                if self.profile:
                    self.profile.before(self.step + 1)
                started = time.monotonic()
                self.progress.note(self.step, AT_DATA)
                batches = next(self.train_data)
                loaded = time.monotonic()
                self.progress.note(self.step, AT_STEP)
                result = train_step(self.training, batches, self.signals.take(), self.guard)
                self.step += 1
                if self.profile:
                    self.profile.after(self.step)
                self._log(result, loaded - started, time.monotonic() - started)
                self.check(result, batches)
                if line := self.learned.note(result):
                    self.event(run_record.NOTE, f"step {self.step}: {line}")
                stop, save_requested = result.signals
                last = stop or self.step == o.train_iters
                if o.eval_interval and self.step % o.eval_interval == 0:
                    self.evaluate()
                if o.sample_interval and self.step % o.sample_interval == 0:
                    self.sample()
                due = due or save_requested or bool(o.save_interval and self.step % o.save_interval == 0)
                if due and not last and not self.guard.content and not delayed:
                    delayed = True
                    self.event(run_record.NOTE, f"step {self.step}: the checkpoint waits until the loss is good again")
                if last or (due and self.guard.content):
                    due = delayed = False
                    self.save()
                if last:
                    self.progress.note(self.step, AT_CHECKPOINT)
                self._finish_saving(wait=last)
            if self.training.graphs is not None:
                self.event(run_record.NOTE, self.training.graphs.summary())
            if stop and self.step < o.train_iters:
                why = f", as --stop-after {o.stop_after} is over" if self.signals.late else ""
                state = f"stopped after step {self.step} of {o.train_iters}{why}{left_out_text(self.train_data)}"
                self.event(run_record.STOPPED, f"{state}; continue with qwen3vl runs resume")
            elif problem := self.learned.problem():
                raise WorkError(f"{problem}; {self._last_checkpoint()}")
            else:
                self.event(run_record.DONE, f"done: {self.step} steps{left_out_text(self.train_data)}")
            failed = False
        finally:
            self.line.end()
            if self.metrics:
                self.metrics.close(failed)
            if self.lock:
                self.lock.release()

    def _log(self, result: StepResult, data_seconds: float, seconds: float) -> None:
        """Write the step's metrics row and log line. Called by every rank."""
        # maximum since the last row
        self.peaks = tuple(map(max, zip(result.peak_memory, self.peaks or result.peak_memory, strict=True)))
        if self.step % self.options.log_interval and self.step != self.options.train_iters:
            return
        if not self.metrics:
            return
        figures: dict[str, Any] = {}
        if self.peaks:
            memory_keys = run_metrics.MEMORY, run_metrics.RESERVED
            figures = {name: round(peak / GIB, 3) for name, peak in zip(memory_keys, self.peaks, strict=True)}
            self.peaks = ()
        if result.flops:
            flops_per_gpu = result.flops / seconds / torch.distributed.get_world_size()
            figures[run_metrics.TFLOPS] = round(flops_per_gpu / 1e12, 3)
            if self.gpu.peak_flops:
                figures[run_metrics.MFU] = round(flops_per_gpu / self.gpu.peak_flops, 4)
        if self.options.precision == "fp16":
            figures[run_metrics.LOSS_SCALE] = float(self.training.optimizer.get_loss_scale())
        if result.filled is not None:
            figures[run_metrics.PACKING_EFFICIENCY] = round(result.filled, 4)
        values = {
            run_metrics.LOSS: result.loss,
            run_metrics.LR: result.learning_rate,
            run_metrics.GRAD_NORM: result.grad_norm,
            run_metrics.TOKENS: result.tokens,
            run_metrics.SAMPLE_COUNT: self.options.global_batch_size,
            run_metrics.STEP_SECONDS: round(seconds, 4),
            run_metrics.TOKENS_PER_SECOND: round(result.tokens / seconds, 1),
            run_metrics.SKIPPED_COUNT: sum(self.train_data.skipped.values()),
            run_metrics.DATA_SECONDS: round(data_seconds, 4),
            run_metrics.FORWARD_BACKWARD_SECONDS: round(result.forward_backward_seconds, 4),
            run_metrics.OPTIMIZER_SECONDS: round(result.optimizer_seconds, 4),
            run_metrics.CHECKPOINT_SECONDS: round(self.saving_seconds, 4),
            **figures,
            **self.gpu.figures(),
        }
        self.metrics.row(run_record.TRAIN, self.step, values)
        self.saving_seconds = 0.0
        self.line.show(self.step, values, updated=result.updated)
