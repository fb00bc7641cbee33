"""The run: steps, metrics, checkpoints, evaluation, and the end in good order when a signal asks for it."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import qwen3vl_core.model  # noqa: F401

import torch
from megatron.core import parallel_state

from qwen3vl_core.checkpoint.source import Source, open_source
from qwen3vl_core.checkpoint.training import load_training, save_training
from qwen3vl_core.data.loader import Loader, build_loader
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.layout.rules import check_layout
from qwen3vl_core.options import FinetuneOptions, from_mapping
from qwen3vl_core.sizes import check_size
from qwen3vl_core.training.metrics import Metrics, StepLine
from qwen3vl_core.training.setup import Training, build, common_state
from qwen3vl_core.training.step import StepResult, evaluate, train_step

CHECKPOINTS, METRICS, TENSORBOARD, SKIPPED, PLAN = "checkpoints", "metrics.jsonl", "tensorboard", "skipped.jsonl", "plan.json"
# below this many samples a share of skipped ones says nothing
JUDGED_SAMPLES = 64


class Signals:
    """SIGTERM and SIGINT ask for a checkpoint and the end, SIGUSR1 for a checkpoint only."""

    def __init__(self) -> None:
        self.stop = self.save = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGUSR1, self._save)

    def _stop(self, *_: Any) -> None:
        self.stop = True

    def _save(self, *_: Any) -> None:
        self.save = True

    def take(self) -> tuple[bool, bool]:
        """(stop, save) as flags for a step; a wish to save is taken once."""
        flags = self.stop, self.save
        self.save = False
        return flags


def read_options(run_dir: Path) -> FinetuneOptions:
    """The options of `plan.json`. Raises RequestError for a plan that is missing, damaged or no finetune."""
    file = run_dir / PLAN
    try:
        plan = json.loads(file.read_text())
        values, kind = plan["options"], plan["kind"]
    except FileNotFoundError:
        raise RequestError(f"{file}: no such file; a run starts with qwen3vl finetune") from None
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{file}: not a plan of a run; start a new one with qwen3vl finetune") from None
    if kind != "finetune":
        raise RequestError(f"{file}: a plan of {kind}, not of finetune; use qwen3vl runs resume")
    return from_mapping(FinetuneOptions, values)


def loaders(options: FinetuneOptions, side: Path, run_dir: Path) -> tuple[Loader, Loader | None]:
    """Training data, and validation data where the run evaluates, for this data-parallel rank."""
    processor = ChatProcessor.from_pretrained(side, options.min_pixels, options.max_pixels)
    rank = parallel_state.get_data_parallel_rank()
    shared: dict[str, Any] = dict(
        micro_batch_size=options.micro_batch_size, global_batch_size=options.global_batch_size, seq_length=options.seq_length,
        rank=rank, world_size=parallel_state.get_data_parallel_world_size(), num_workers=options.num_workers, seed=options.seed,
    )  # fmt: skip
    # one rank of each data-parallel group reads the same samples; one of them writes down what it left out
    writes = parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.is_pipeline_first_stage()
    skipped = run_dir / (SKIPPED if rank == 0 else f"skipped-{rank}.jsonl") if writes else None
    train = build_loader(Path(options.train_data).expanduser(), "train", processor, skipped_file=skipped, **shared)
    if not options.eval_interval:
        return train, None
    data = Path(options.valid_data or options.train_data).expanduser()
    return train, build_loader(data, "val", processor, skipped_file=None, **shared)


class Loop:
    """One run on this rank, from its first step or its last checkpoint to its end."""

    def __init__(self, run_dir: Path, options: FinetuneOptions) -> None:
        self.run_dir, self.options = run_dir, options
        self.signals = Signals()
        self.leads = torch.distributed.get_rank() == 0
        self.source: Source = open_source(options.load, option="--load")
        if options.size:
            check_size(options.size, self.source.architecture, options.load)
        check_layout(options, self.source.architecture, torch.distributed.get_world_size())
        self.source.check()
        self.train_data, self.valid_data = loaders(options, self.source.side, run_dir)
        self.valid_start = self.valid_data.state_dict() if self.valid_data else None
        self.training: Training = build(options, self.source)
        self.step = self.saved = 0
        self._resume()
        self.metrics = Metrics(run_dir / METRICS, run_dir / TENSORBOARD) if self.leads else None
        self.line = StepLine(options.train_iters, self.step)

    def _resume(self) -> None:
        found = load_training(
            self.run_dir / CHECKPOINTS, models=self.training.models, optimizer=self.training.optimizer, scheduler=self.training.scheduler
        )
        if found is not None:
            self.step, extra = found
            self.saved = self.step
            self.train_data.load_state_dict(extra["data"])

    def event(self, name: str, text: str, **values: Any) -> None:
        """Into the record, and onto the screen."""
        if self.metrics:
            self.metrics.event(self.step, name, text, **values)
            self.line.say(text)

    def save(self) -> None:
        """A checkpoint of this step."""
        started = time.monotonic()
        folder = save_training(
            self.run_dir / CHECKPOINTS, self.step, models=self.training.models, optimizer=self.training.optimizer,
            scheduler=self.training.scheduler, extra={"data": self.train_data.state_dict()},
            common=common_state(self.training.architecture, self.options), side=self.source.side,
        )  # fmt: skip
        self.saved = self.step
        self.event("save", f"checkpoint {folder.name} in {time.monotonic() - started:.1f} s", path=str(folder))

    def evaluate(self) -> None:
        """The loss over the same global batches of the validation split every time."""
        self.valid_data.load_state_dict(self.valid_start)
        results = [evaluate(self.training, next(self.valid_data)) for _ in range(self.options.eval_iters)]
        tokens = sum(r.tokens for r in results)
        loss = sum(r.loss * r.tokens for r in results) / max(tokens, 1)
        if self.metrics:
            self.metrics.row("eval", self.step, loss=loss, tokens=tokens)
            self.line.say(f"step {self.step}: validation loss {loss:.4f}")

    def check(self, result: StepResult) -> None:
        """Raises WorkError when going on makes no sense."""
        last = f"the last checkpoint is step {self.saved}" if self.saved else "no checkpoint was written yet"
        if not math.isfinite(result.loss):
            self.event("nan", f"step {self.step}: loss {result.loss}")
            precision = "" if self.options.precision != "fp16" else ", or --precision bf16"
            raise WorkError(
                f"step {self.step}: the loss is {result.loss}; {last}; try a lower --lr than {self.options.lr:g}, "
                f"more --lr-warmup-iters{precision}"
            )
        skipped = sum(self.train_data.skipped.values())
        seen = skipped + self.train_data.used
        if seen >= JUDGED_SAMPLES and skipped > self.options.max_skip_share * seen:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.train_data.skipped.most_common(3))
            raise WorkError(
                f"step {self.step}: {skipped} of {seen} samples could not be used ({reasons}), more than --max-skip-share "
                f"{self.options.max_skip_share:g}; {SKIPPED} in {self.run_dir} names each; {last}"
            )

    def run(self) -> None:
        """Train to the end, or until a signal asks to stop. Raises WorkError when it cannot go on."""
        o = self.options
        if self.step:
            self.event("resume", f"go on after step {self.step} of {o.train_iters}", train_iters=o.train_iters)
        else:
            self.event("start", f"{o.train_iters} steps of {o.global_batch_size} samples", train_iters=o.train_iters)
        stop = False
        try:
            while self.step < o.train_iters and not stop:
                started = time.monotonic()
                result = train_step(self.training, next(self.train_data), self.signals.take())
                self.step += 1
                self._log(result, time.monotonic() - started)
                self.check(result)
                stop, wanted = result.signals
                if o.eval_interval and self.step % o.eval_interval == 0:
                    self.evaluate()
                if stop or wanted or self.step == o.train_iters or (o.save_interval and self.step % o.save_interval == 0):
                    self.save()
            if stop and self.step < o.train_iters:
                self.event("stop", f"stopped after step {self.step} of {o.train_iters}; qwen3vl runs resume goes on")
            else:
                self.event("done", f"done: {self.step} steps")
        finally:
            self.line.end()
            if self.metrics:
                self.metrics.close()

    def _log(self, result: StepResult, seconds: float) -> None:
        if not self.metrics or (self.step % self.options.log_interval and self.step != self.options.train_iters):
            return
        rate = result.tokens / seconds
        self.metrics.row(
            "train", self.step, loss=result.loss, lr=result.learning_rate, grad_norm=result.grad_norm, tokens=result.tokens,
            samples=self.options.global_batch_size, step_seconds=round(seconds, 4), tokens_per_second=round(rate, 1),
            skipped=sum(self.train_data.skipped.values()),
        )  # fmt: skip
        self.line.show(self.step, result.loss, result.learning_rate, result.grad_norm, seconds, rate)
