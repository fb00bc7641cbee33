"""One optimizer step, and one evaluation: Megatron's pipeline schedule over the micro batches of a global batch.

The loss is the sum over all trained tokens of the global batch divided by their number, so it is the same for every
micro batch size and every parallel layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import qwen3vl_core.model  # noqa: F401

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from qwen3vl_core.training.setup import Training, device

IGNORED = -100


class MicroBatch(Protocol):
    """What a step needs of a batch."""

    labels: Tensor
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
    """Before clipping; None for an evaluation, or a step that fp16's loss scaling left out."""
    learning_rate: float = 0.0
    signals: tuple[bool, ...] = ()
    """For each flag given: whether any rank raised it."""


def _pad(values: Tensor, multiple: int, fill: int) -> Tensor:
    short = -values.shape[1] % multiple
    return F.pad(values, (0, short), value=fill) if short else values


def forward_step(training: Training, batches, model):
    """Megatron's `forward_step_func`: (losses of each token [b, s], what makes the loss of them)."""
    batch: MicroBatch = next(batches)
    where = device()
    inputs = batch.model_inputs(where, training.dtype)
    labels = batch.labels.to(where)
    cu_seqlens = inputs.get("cu_seqlens")
    multiple = length_multiple(training.config)
    if cu_seqlens is None and labels.shape[1] % multiple:
        labels = _pad(labels, multiple, IGNORED)
        inputs["input_ids"] = _pad(inputs["input_ids"], multiple, 0)
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = _pad(inputs["attention_mask"], multiple, 0)
    output = model(**inputs, labels=labels.clamp(min=0))
    index = training.models[0].local_index(labels.shape[1], cu_seqlens)
    return output, partial(token_loss, labels if index is None else labels[:, index.to(where)])


def length_multiple(config) -> int:
    """What the length of a row, or of each document of a packed row, must be a multiple of: context parallelism cuts it
    into 2 x cp parts, sequence parallelism what a rank holds into tp."""
    tensor = config.tensor_model_parallel_size if config.sequence_parallel else 1
    context = config.context_parallel_size
    return tensor * (2 * context if context > 1 else 1)


def token_loss(labels: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sum over the trained tokens, their number, both as figures [2]); Megatron divides by the number of the whole batch."""
    trained = labels != IGNORED
    total = (losses.float() * trained).sum()
    count = trained.sum()
    return total, count.to(torch.int), torch.stack((total.detach().double(), count.double()))


def _run(training: Training, batches: list[MicroBatch], *, forward_only: bool) -> Tensor:
    """[sum of losses, tokens] of this rank; zeros on a stage that has no loss."""
    chunks = training.wrapped
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


def _agree(figures: Tensor, flags: tuple[bool, ...]) -> tuple[float, int, tuple[bool, ...]]:
    """Add up over the whole world at once: loss and tokens, counted by one tensor parallel rank, and raised flags."""
    if parallel_state.get_tensor_model_parallel_rank() != 0:
        figures = torch.zeros_like(figures)
    raised = torch.tensor([float(f) for f in flags], dtype=figures.dtype, device=figures.device)
    everything = torch.cat((figures, raised))
    dist.all_reduce(everything)
    total, tokens, *votes = everything.tolist()
    return total / max(tokens, 1), int(tokens), tuple(v > 0 for v in votes)


def train_step(training: Training, batches: list[MicroBatch], flags: tuple[bool, ...] = ()) -> StepResult:
    """Forward and backward over the micro batches of this rank, then one optimizer step.

    A loss that is no number leaves the weights as they were. flags: raised on any rank, they come back on every rank.
    """
    for model in training.wrapped:
        model.train()
        model.zero_grad_buffer()
    training.optimizer.zero_grad()
    loss, tokens, signals = _agree(_run(training, batches, forward_only=False), flags)
    training.scheduler.step(increment=1)
    rate = training.optimizer.param_groups[0]["lr"]
    if loss != loss or loss in (float("inf"), float("-inf")):
        return StepResult(loss, tokens, None, rate, signals)
    done, norm, _ = training.optimizer.step()
    return StepResult(loss, tokens, float(norm) if done and norm is not None else None, rate, signals)


@torch.no_grad()
def evaluate(training: Training, batches: list[MicroBatch]) -> StepResult:
    """The loss of one global batch, nothing trained."""
    for model in training.wrapped:
        model.eval()
    loss, tokens, _ = _agree(_run(training, batches, forward_only=True), ())
    return StepResult(loss, tokens)
