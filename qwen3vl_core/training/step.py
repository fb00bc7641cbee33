"""One optimizer step, and one evaluation: Megatron's pipeline schedule over the micro batches of a global batch.

The loss is the sum over all trained tokens of the global batch divided by their number, so it is the same for every
micro batch size and every parallel layout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from qwen3vl_core.model.router import set_balance_weight

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.structure.micro_batch import IGNORED, Structure
from qwen3vl_core.training import expert_load, rank_shares
from qwen3vl_core.training.gradient_norm import norm_of, squared_norms
from qwen3vl_core.training.graphs import MicroBatchGraphs
from qwen3vl_core.training.guard import GRADIENT, Guard
from qwen3vl_core.training.setup import FP16_SCALE, Training, device, settle
from qwen3vl_core.training.stage_graphs import StageGraphs
from qwen3vl_core.training.throughput import peak_memory, sample_lengths, training_flops
from qwen3vl_core.training.token_loss import token_loss


@dataclass(frozen=True)
class StepResult:
    """Results of one global batch, the same on every rank."""

    loss: float
    """Mean over the trained tokens."""
    tokens: int
    """Trained tokens."""
    grad_norm: float | None = None
    """Before clipping; None for an evaluation, or a step that was skipped before the norm was computed."""
    learning_rate: float = 0.0
    signals: tuple[bool, ...] = ()
    """For each of the flags: whether any rank raised it."""
    problem: str = ""
    """Why the step is bad: `loss` or `gradient` (NaN or infinite), or `spike`; empty for a good step."""
    updated: bool = True
    """Whether the weights were updated; False for a skipped step."""
    flops: float = 0.0
    """Model FLOPs of the global batch, forward and backward."""
    spread: tuple[float, float] | None = None
    """(patches, tokens) of the data-parallel rank with the most, over the mean of all; None with one rank."""
    filled: float | None = None
    """Share of the computed positions that hold a sample's tokens; the rest is padding. None where batches have no lengths."""
    forward_backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    """On a GPU that of the previous step, by the GPU's clock: this step's kernels are still running when the step returns."""
    peak_memory: tuple[float, ...] = ()
    """Peak bytes allocated and peak bytes reserved since the last step, on the rank with the most; empty on a CPU."""
    expert_load: tuple[float, ...] = ()
    """Tokens of the fullest expert over the mean in the most uneven layer, and experts of all layers without a token; empty without
    experts."""


def forward_step(training: Training, batches: Iterator[Batch], model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Megatron's `forward_step_func`: (loss of each token [b, s] or of each trained token [1, n], the function that reduces them)."""
    batch = next(batches)
    if isinstance(training.graphs, StageGraphs) and torch.is_grad_enabled():
        output, labels = training.graphs.forward(model, batch)
        return output, partial(token_loss, labels)
    inputs = batch.step_inputs(device(), training.dtype)
    structure: Structure = inputs["structure"]
    return model(**inputs), partial(token_loss, structure.loss_labels)


def structured(training: Training, batches: list[Batch]) -> list[Batch]:
    """The batches with their structure; batches of the loader have it already."""
    return [batch if batch.structure is not None else batch.structured(training.rules) for batch in batches]


def _scale_balance_loss(training: Training, batches: list[Batch]) -> None:
    """Scale the experts' load balancing loss so that its coefficient means the same however few of the tokens are trained."""
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    trained = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    counts = torch.tensor([trained, tokens], dtype=torch.float64, device=device())
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
    set_balance_weight(training.config, counts)


def _run(training: Training, batches: list[Batch], *, forward_only: bool) -> Tensor:
    """[sum of losses, trained tokens] of this rank; zeros on a stage that has no loss."""
    chunks = training.wrapped
    if training.config.num_moe_experts and not forward_only:
        _scale_balance_loss(training, batches)
    if isinstance(training.graphs, MicroBatchGraphs) and not forward_only:
        return training.graphs.forward_backward(batches)
    totals = get_forward_backward_func()(
        forward_step_func=partial(forward_step, training),
        # every chunk of an interleaved schedule iterates over the same batches
        data_iterator=[iter(batches) for _ in chunks] if len(chunks) > 1 else iter(batches),
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        # with variable lengths the stages exchange the shapes
        seq_length=max(b.shaped.input_ids.shape[1] for b in batches),
        micro_batch_size=batches[0].shaped.input_ids.shape[0],
        forward_only=forward_only,
    )
    if not totals or not parallel_state.is_pipeline_last_stage():
        return torch.zeros(2, dtype=torch.float64, device=device())
    return torch.stack(totals).sum(0)


def _summed(totals: Tensor, more: Sequence[float]) -> Tensor:
    """[*totals, *more], summed over the world: `totals` once per tensor parallel group, `more` over every rank."""
    if parallel_state.get_tensor_model_parallel_rank() != 0:
        totals = torch.zeros_like(totals)
    values = torch.cat((totals, torch.tensor(list(more), dtype=totals.dtype, device=totals.device)))
    dist.all_reduce(values)
    return values


def _mean_loss(totals: Tensor) -> tuple[float, int]:
    """(loss, trained tokens) over the world."""
    total, tokens = _summed(totals, ()).tolist()
    return total / max(tokens, 1), int(tokens)


def _is_counted_here() -> bool:
    """Whether this rank counts its micro batches: one of those that have the same."""
    return (
        parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.is_pipeline_last_stage()
        and parallel_state.get_context_parallel_rank() == 0
    )  # fmt: skip


def _throughput_counts(training: Training, batches: list[Batch]) -> tuple[float, float, float]:
    """(model FLOPs, tokens, positions) of this rank's micro batches; zeros on ranks whose batches another rank counts."""
    if not _is_counted_here():
        return 0.0, 0.0, 0.0
    low_rank = training.adapters is not None
    flops = sum(training_flops(training.architecture, batch, training.frozen, low_rank=low_rank) for batch in batches)
    lengths = [sample_lengths(batch) for batch in batches]
    positions = sum(batch.shaped.input_ids.numel() for batch, known in zip(batches, lengths, strict=True) if known)
    return flops, float(sum(map(sum, lengths))), float(positions)


def _norm(training: Training, squares: list[float]) -> tuple[float | None, str]:
    """(gradient norm before clipping, GRADIENT if it is not finite, else empty). fp16's loss scaling also skips steps, to find the
    scale: that is a problem only once the scale is at its minimum. squares: none for fp16, whose gradients are unscaled here."""
    optimizer = training.optimizer
    if not squares and optimizer.prepare_grads():
        is_at_minimum = float(optimizer.get_loss_scale()) <= FP16_SCALE["min_loss_scale"]
        return None, GRADIENT if is_at_minimum else ""
    norm = norm_of(squares or squared_norms(optimizer).tolist())
    return norm, "" if norm < float("inf") else GRADIENT


@torch.no_grad()
def _update(training: Training, norm: float) -> None:
    """Clip the gradients and step, as Megatron's `ChainedOptimizer.step` does after `prepare_grads`."""
    for optimizer in training.optimizer.chained_optimizers:
        parameters = [] if getattr(optimizer, "is_stub_optimizer", False) else optimizer.get_parameters()
        if parameters and optimizer.config.clip_grad > 0:
            decoupled = optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, max_norm=optimizer.config.clip_grad, total_norm=norm, use_decoupled_grad=decoupled)
    training.optimizer.step_with_ready_grads()


class _Read(NamedTuple):
    """What the host reads of a step."""

    sums: list[float]
    """Of `_summed`."""
    squares: list[float]
    """Squared gradient norms; none for fp16, whose gradients are unscaled later."""
    peaks: list[float]
    """Peak memory of `peak_memory`, the largest of all ranks; empty on a CPU."""
    expert_load: list[float]
    """`expert_load.figures`; empty without experts."""


@torch.no_grad()
def _synchronize(training: Training, totals: Tensor, more: Sequence[float]) -> _Read:
    """The only point of a step where the host waits for the GPU: all values that it needs are read in one copy."""
    sums, peaks = _summed(totals, more), peak_memory(since_start=training.graphs is not None)
    none = sums[:0]
    squares, max_peaks, load = none, none, none
    if training.dtype is not torch.float16:
        training.optimizer.prepare_grads()
        squares = squared_norms(training.optimizer).to(sums.dtype)
    if peaks:
        max_peaks = torch.tensor(peaks, dtype=sums.dtype, device=sums.device)
        dist.all_reduce(max_peaks, op=dist.ReduceOp.MAX)
    if (counts := expert_load.world_counts(training.config)) is not None:
        load = expert_load.figures(counts)
    parts = (sums, squares, max_peaks, load)
    values = iter(torch.cat(parts).tolist())
    return _Read(*(list(islice(values, len(part))) for part in parts))


def train_step(
    training: Training, batches: list[Batch], flags: tuple[bool, ...] = (), guard: Guard | None = None
) -> StepResult:  # fmt: skip
    """Forward and backward over the micro batches of this rank, then one optimizer step.

    A step whose loss or gradient is NaN or infinite, or that `guard` skips, leaves the weights and the learning rate schedule
    unchanged. flags: returned as raised on every rank if any rank raises them. On a GPU, the time of optimizer kernels that are still
    running when this returns counts towards the next step's forward and backward.
    """
    began = time.monotonic()
    guard, batches = guard or Guard(), structured(training, batches)
    for model in training.wrapped:
        if not model.training:
            # setting the mode of a thousand modules takes the host longer than a layer's kernels
            model.train()
        model.zero_grad_buffer()
    training.optimizer.zero_grad()
    expert_load.start(training.config)
    totals = _run(training, batches, forward_only=False)
    own = rank_shares.counts(batches, counted=_is_counted_here())
    read = _synchronize(training, totals, (*_throughput_counts(training, batches), *own, *map(float, flags)))
    optimizer_seconds = training.optimizer_clock.seconds()
    total, count, flops, sample_tokens, positions, *more = read.sums
    spread, votes = rank_shares.spread(more[: len(own)]), more[len(own) :]
    loss, tokens = total / max(count, 1), int(count)
    training.scheduler.step(increment=1)
    learning_rate = training.optimizer.param_groups[0]["lr"]
    middle = time.monotonic()
    norm, problem = None, guard.problem(loss)
    skipped = guard.skips(problem)
    if not skipped:
        norm, gradient_problem = _norm(training, read.squares)
        problem, skipped = gradient_problem or problem, norm is None or bool(gradient_problem)
        if norm is not None and not skipped:
            with training.optimizer_clock:
                _update(training, norm)
    if skipped:
        # the schedule counts updates
        training.scheduler.step(increment=-1)
    return StepResult(
        loss, tokens, norm, learning_rate, tuple(v > 0 for v in votes), problem, not skipped, flops, spread,
        sample_tokens / positions if positions else None, middle - began,
        time.monotonic() - middle if optimizer_seconds is None else optimizer_seconds, tuple(read.peaks), tuple(read.expert_load),
    )  # fmt: skip


@torch.no_grad()
def evaluate(training: Training, batches: list[Batch]) -> StepResult:
    """The loss of one global batch, without a weight update."""
    settle(training)
    for model in training.wrapped:
        model.eval()
    return StepResult(*_mean_loss(_run(training, structured(training, batches), forward_only=True)))
