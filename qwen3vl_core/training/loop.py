"""The training loop: steps, their metrics, evaluation, captions, bad steps, and a clean stop on a signal."""

from __future__ import annotations

import time
from typing import Any

from qwen3vl_core.model.config import without_fp8

import torch

from qwen3vl_core import run_metrics, run_record
from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.errors import REASONS
from qwen3vl_core.errors import WorkError
from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.adapters import trained_lines
from qwen3vl_core.layout.cuda_graphs import no_graph_because
from qwen3vl_core.log_lines import BAD_STEPS
from qwen3vl_core.run_record import AT_CAPTIONS, AT_CHECKPOINT, AT_DATA, AT_EVALUATION, AT_STEP, METRICS_FILE, SKIPPED
from qwen3vl_core.training.guard import SPIKE
from qwen3vl_core.training.left_out import left_out_text, spread_text, way_to_use
from qwen3vl_core.training.run_state import RunState
from qwen3vl_core.training.setup import device, settle, this_machine
from qwen3vl_core.training.step import StepResult, evaluate, train_step

# with fewer samples than this the skipped share is not checked
MIN_SAMPLES_TO_CHECK = 64
# samples that an error message names; metrics.jsonl has all
NAMED_SAMPLES = 8


class Loop(RunState):
    """A run on this rank, from its first step or last checkpoint to its last step."""

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
            reasons = ", ".join(f"{REASONS.get(reason, reason)}: {n}" for reason, n in self.train_data.skipped.most_common(3))
            way = way_to_use(self.train_data.skipped.most_common(1)[0][0], self.options)
            raise WorkError(
                f"step {self.step}: {skipped} of {seen} samples could not be used ({reasons}), more than --max-skip-share "
                f"{self.options.max_skip_share:g}; {way}; {SKIPPED} in {self.run_dir} names each; {self.last_checkpoint()}"
            )

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
            self.finish_saving(wait=True)
            named = ", ".join(keys[:NAMED_SAMPLES]) + (f" and {len(keys) - NAMED_SAMPLES} more" if len(keys) > NAMED_SAMPLES else "")
            precision = "" if self.options.precision != "fp16" else ", or --precision bf16"
            raise WorkError(
                f"step {self.step}: {description}; {self.guard.bad} bad steps in a row (--max-bad-steps {self.guard.most}); its samples: "
                f"{named} ({METRICS_FILE} has those of each); {self.last_checkpoint()}; check these samples, or try a lower --lr than "
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
        stop, failed, began = False, True, self.step
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
                if self.step == began and (line := spread_text(self.train_data, o)):
                    self.event(run_record.NOTE, line)
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
                self.finish_saving(wait=last)
            if self.training.graphs is not None:
                self.event(run_record.NOTE, self.training.graphs.summary())
            if stop and self.step < o.train_iters:
                why = f", as --stop-after {o.stop_after} is over" if self.signals.late else ""
                state = f"stopped after step {self.step} of {o.train_iters}{why}{left_out_text(self.train_data)}"
                self.event(run_record.STOPPED, f"{state}; continue with qwen3vl runs resume")
            elif problem := self.learned.problem():
                raise WorkError(f"{problem}; {self.last_checkpoint()}")
            else:
                self.event(run_record.DONE, f"done: {self.step} steps{left_out_text(self.train_data)}")
            failed = False
            self.node_watch.close()
        except Exception as error:
            self.node_watch.failed(error)
            raise
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
        if result.spread is not None:
            figures |= zip((run_metrics.MOST_PATCHES, run_metrics.MOST_TOKENS), (round(value, 4) for value in result.spread), strict=True)
        if result.filled is not None:
            figures[run_metrics.PACKING_EFFICIENCY] = round(result.filled, 4)
        if result.expert_load:
            load, idle = result.expert_load
            figures |= {run_metrics.EXPERT_LOAD: round(load, 3), run_metrics.IDLE_EXPERTS: int(idle)}
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
