"""One optimizer step, and one evaluation: Megatron's pipeline schedule over the micro batches of a global batch.

The loss is the sum over all trained tokens of the global batch divided by their number, so it is the same for every
micro batch size and every parallel layout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from qwen3vl_core.model.config import FP8_ROWS
from qwen3vl_core.model.router import set_balance_weight

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from qwen3vl_core.data.batch import IGNORED
from qwen3vl_core.training.guard import GRADIENT, Guard
from qwen3vl_core.training.setup import FP16_SCALE, Training, device, settle
from qwen3vl_core.training.throughput import sample_lengths, training_flops


class MicroBatch(Protocol):
    """What a step needs of a batch."""

    @property
    def labels(self) -> Tensor:
        """[b, s]: the token to predict at each position, -100 where nothing is trained."""

    def model_inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the model."""


@dataclass(frozen=True)
class StepResult:
    """Figures of a whole global batch, the same on every rank."""

    loss: float
    """Mean over the trained tokens."""
    tokens: int
    """Trained tokens."""
    grad_norm: float | None = None
    """Before clipping; None for an evaluation, or a step that left the weights as they were before it was known."""
    learning_rate: float = 0.0
    signals: tuple[bool, ...] = ()
    """For each flag given: whether any rank raised it."""
    fault: str = ""
    """What the guard found: `loss` or `gradient` (no number), `spike`, or nothing."""
    updated: bool = True
    """Whether the weights were changed."""
    flops: float = 0.0
    """Model FLOPs of the global batch, forward and backward."""
    filled: float | None = None
    """Share of the computed positions that hold a sample's tokens; the rest is padding. None where batches do not say."""
    forward_backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0


def _pad(values: Tensor, length: int, fill: int) -> Tensor:
    return F.pad(values, (0, length - values.shape[1]), value=fill)


def forward_step(training: Training, batches, model):
    """Megatron's `forward_step_func`: (losses of each token [b, s], what makes the loss of them)."""
    batch: MicroBatch = next(batches)
    where = device()
    inputs = batch.model_inputs(where, training.dtype)
    labels = batch.labels.to(where)
    cu_seqlens = inputs.get("cu_seqlens")
    multiple = math.lcm(length_multiple(training.config), training.length_step)
    length = -(-max(labels.shape[1], training.least_length) // multiple) * multiple
    if cu_seqlens is None and labels.shape[1] != length:
        labels = _pad(labels, length, IGNORED)
        inputs["input_ids"] = _pad(inputs["input_ids"], length, 0)
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = _pad(inputs["attention_mask"], length, 0)
    output = model(**inputs, labels=labels.clamp(min=0))
    index = training.models[0].local_index(labels.shape[1], cu_seqlens)
    return output, partial(token_loss, labels if index is None else labels[:, index.to(where)])


def length_multiple(config) -> int:
    """What the length of a row, or of each document of a packed row, must be a multiple of: context parallelism cuts it
    into 2 x cp parts, sequence parallelism what a rank holds into tp, and fp8 multiplies rows by the sixteen."""
    return multiple_of(
        config.tensor_model_parallel_size, config.context_parallel_size, config.sequence_parallel, fp8=bool(config.fp8)
    )  # fmt: skip


def multiple_of(tp: int, cp: int, sequence_parallel: bool, *, fp8: bool = False) -> int:
    """`length_multiple` of a layout, before there is a model."""
    rows = FP8_ROWS if fp8 else 1
    return (tp if sequence_parallel else 1) * (cp * max(rows, 2) if cp > 1 else rows)


def token_loss(labels: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sum over the trained tokens, their number, both as figures [2]); Megatron divides by the number of the whole batch."""
    trained = labels != IGNORED
    total = (losses.float() * trained).sum()
    count = trained.sum()
    return total, count.to(torch.int), torch.stack((total.detach().double(), count.double()))


def _weigh_balance(training: Training, batches: Sequence[MicroBatch]) -> None:
    """So that the experts' load balancing loss counts with its coefficient, however few of the tokens are trained."""
    masks = [getattr(batch, "attention_mask", None) for batch in batches]
    tokens = sum(batch.labels.numel() if mask is None else int(mask.sum()) for batch, mask in zip(batches, masks, strict=True))
    trained = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    counts = torch.tensor([trained, tokens], dtype=torch.float64, device=device())
    dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
    set_balance_weight(training.config, *counts.tolist())


def _run(training: Training, batches: Sequence[MicroBatch], *, forward_only: bool) -> Tensor:
    """[sum of losses, tokens] of this rank; zeros on a stage that has no loss."""
    chunks = training.wrapped
    if training.config.num_moe_experts and not forward_only:
        _weigh_balance(training, batches)
    figures = get_forward_backward_func()(
        forward_step_func=partial(forward_step, training),
        # every chunk of an interleaved schedule goes through the same batches
        data_iterator=[iter(batches) for _ in chunks] if len(chunks) > 1 else iter(batches),
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        # with variable lengths the stages tell each other the shapes
        seq_length=max(b.labels.shape[1] for b in batches),
        micro_batch_size=batches[0].labels.shape[0],
        forward_only=forward_only,
    )
    if not figures or not parallel_state.is_pipeline_last_stage():
        return torch.zeros(2, dtype=torch.float64, device=device())
    return torch.stack(figures).sum(0)


def _total(figures: Tensor, more: Sequence[float]) -> list[float]:
    """Add up over the whole world at once: figures, counted by one tensor parallel rank, and further numbers of every rank."""
    if parallel_state.get_tensor_model_parallel_rank() != 0:
        figures = torch.zeros_like(figures)
    everything = torch.cat((figures, torch.tensor(list(more), dtype=figures.dtype, device=figures.device)))
    dist.all_reduce(everything)
    return everything.tolist()


def _agree(figures: Tensor, flags: tuple[bool, ...]) -> tuple[float, int, tuple[bool, ...]]:
    """(loss, trained tokens) of the whole world, and which flags any rank raised."""
    total, tokens, *votes = _total(figures, flags)
    return total / max(tokens, 1), int(tokens), tuple(v > 0 for v in votes)


def _work(training: Training, batches: Sequence[MicroBatch]) -> tuple[float, float, float]:
    """(model FLOPs, tokens, positions) of this rank's micro batches; zeros on ranks whose batches another rank counts too."""
    counts = (
        parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.is_pipeline_last_stage()
        and parallel_state.get_context_parallel_rank() == 0
    )  # fmt: skip
    if not counts:
        return 0.0, 0.0, 0.0
    flops = sum(training_flops(training.architecture, batch, training.frozen, low_rank=training.adapters is not None) for batch in batches)
    lengths = [sample_lengths(batch) for batch in batches]
    return flops, float(sum(map(sum, lengths))), float(sum(b.labels.numel() for b, known in zip(batches, lengths, strict=True) if known))


@torch.no_grad()
def _update(training: Training) -> tuple[float | None, str]:
    """One optimizer step as Megatron's `ChainedOptimizer.step` makes it, left out when the gradients are no numbers.

    (norm before clipping, fault). fp16's loss scaling leaves out steps too: its way to find the scale, and a fault only
    when the scale cannot fall any more.
    """
    optimizer = training.optimizer
    if optimizer.prepare_grads():
        stuck = float(optimizer.get_loss_scale()) <= FP16_SCALE["min_loss_scale"]
        return None, GRADIENT if stuck else ""
    norm = float(optimizer.get_grad_norm())
    if not norm < float("inf"):
        return norm, GRADIENT
    for part in optimizer.chained_optimizers:
        parameters = [] if getattr(part, "is_stub_optimizer", False) else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            decoupled = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=norm, use_decoupled_grad=decoupled)
    optimizer.step_with_ready_grads()
    return norm, ""


def train_step(
    training: Training, batches: Sequence[MicroBatch], flags: tuple[bool, ...] = (), guard: Guard | None = None
) -> StepResult:  # fmt: skip
    """Forward and backward over the micro batches of this rank, then one optimizer step.

    A loss or gradients that are no numbers, and what `guard` skips, leave the weights as they were; the schedule goes on. flags:
    raised on any rank, they come back on every rank. On a GPU what the optimizer still computes when this returns counts
    to the next step's forward and backward.
    """
    began = time.monotonic()
    guard = guard or Guard()
    for model in training.wrapped:
        if not model.training:
            # telling a thousand modules what they know takes the host longer than a layer's kernels
            model.train()
        model.zero_grad_buffer()
    training.optimizer.zero_grad()
    figures = _run(training, batches, forward_only=False)
    total, count, flops, real, places, *votes = _total(figures, (*_work(training, batches), *map(float, flags)))
    loss, tokens = total / max(count, 1), int(count)
    training.scheduler.step(increment=1)
    middle = time.monotonic()
    norm, fault = None, guard.fault(loss)
    skipped = guard.skips(fault)
    if not skipped:
        norm, wrong = _update(training)
        fault, skipped = wrong or fault, norm is None or bool(wrong)
    return StepResult(
        loss, tokens, norm, training.optimizer.param_groups[0]["lr"], tuple(v > 0 for v in votes), fault, not skipped, flops,
        real / places if places else None, middle - began, time.monotonic() - middle,
    )  # fmt: skip


@torch.no_grad()
def evaluate(training: Training, batches: Sequence[MicroBatch]) -> StepResult:
    """The loss of one global batch, nothing trained."""
    settle(training)
    for model in training.wrapped:
        model.eval()
    loss, tokens, _ = _agree(_run(training, batches, forward_only=True), ())
    return StepResult(loss, tokens)
