"""Generation across ranks, where no rank holds the whole model.

Each pass is a forward pass of the pipeline schedule, as in evaluation, over the prompts and the tokens generated so far; it
yields one more token of each caption. There is no KV cache: every layout that can train can generate. The pictures are split
between the data parallel ranks; the vision tower encodes each once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qwen3vl_core.model.qwen3vl import PromptFeatures, Qwen3VLModel

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from qwen3vl_core.caption.generate import NOT_FINITE
from qwen3vl_core.errors import WorkError
from qwen3vl_core.structure.micro_batch import vision_structure
from qwen3vl_core.training.setup import Training, device

# rows are padded to a multiple of this: attention kernels build a plan for each new length
LENGTH_MULTIPLE = 64


@dataclass
class PromptRow:
    """A prompt of this data parallel rank and the tokens generated after it."""

    number: int
    """Index of its picture; -1 for a dummy row that only keeps this rank in step with the others."""
    ids: list[int]
    prompt_features: PromptFeatures
    positions: Tensor
    """[3, 1, prompt]."""
    next_position: int

    def inputs(self, multiple: int) -> dict[str, Any]:
        """Arguments of the model's forward, padded to a multiple of `multiple`."""
        length = -(-len(self.ids) // multiple) * multiple
        ids = torch.zeros(1, length, dtype=torch.long)
        ids[0, : len(self.ids)] = torch.tensor(self.ids)
        later = self.next_position + torch.arange(length - self.prompt_features.length)
        device = self.positions.device
        positions = torch.cat((self.positions, later.to(device).expand(3, 1, -1)), dim=-1)
        return {"input_ids": ids.to(device), "position_ids": positions, "prompt_features": self.prompt_features}


@dataclass
class ShardedCaption:
    """A caption being generated."""

    ids: list[int] = field(default_factory=list)
    seconds: float = 0.0
    """Wall time to its last token."""
    done: bool = False


def _rows(training: Training, prompts: Mapping[int, Mapping[str, Tensor]]) -> list[PromptRow]:
    """The rows before the first generated token. prompts: by index of the picture."""
    model, target, rows = training.models[0], device(), []
    for number, prompt in prompts.items():
        inputs = {name: value.to(target) for name, value in prompt.items()}
        ids, grid = inputs["input_ids"], inputs.get("image_grid_thw")
        positions, after = model.positions(ids, None, grid, None)
        features = PromptFeatures(None, None, ids.shape[1])
        vision = vision_structure(training.architecture, ids.cpu(), grid, None)
        if vision is not None and model.pre_process:
            vision = vision.to(target)
            features = PromptFeatures(model.vision_features(inputs["pixel_values"], vision), vision.token_indices, ids.shape[1])
        rows.append(PromptRow(number, ids[0].tolist(), features, positions, int(after)))
    return rows


def _next_token(model: Qwen3VLModel, position: int, length: int, hidden: Tensor, *, non_loss_data: bool = True) -> Tensor:
    """[token, 1 if all its logits are finite] from the last stage's hidden states [s of this rank, 1, h]; the same on all ranks of
    the stage."""
    config, language = model.config, model.language_model
    if config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    index = model.local_index(length)
    if index is None:
        row = hidden[position, 0]
    else:
        # one context parallel rank holds the position
        row = hidden[(index == position).nonzero()[:, 0].to(hidden.device), 0].sum(0)
        dist.all_reduce(row, group=parallel_state.get_context_parallel_group())
    weight = language.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else language.output_layer.weight
    logits = F.linear(row.to(weight.dtype), weight)
    best = logits.argmax()
    first = parallel_state.get_tensor_model_parallel_rank() * logits.numel()
    candidate = torch.stack((logits[best].double(), (best + first).double(), logits.isfinite().all().double()))
    group = parallel_state.get_tensor_model_parallel_group()
    gathered = [torch.empty_like(candidate) for _ in range(group.size())]
    dist.all_gather(gathered, candidate, group=group)
    candidates = torch.stack(gathered)
    # the first of equal logits, as argmax over the whole vocabulary
    return torch.stack((candidates[candidates[:, 0].argmax(), 1], candidates[:, 2].min()))


def _forward_step(multiple: int, batches: Iterator[PromptRow], model: Any) -> tuple[Any, Callable[[Tensor], Any]]:
    """Megatron's `forward_step_func`."""
    row = next(batches)
    inputs = row.inputs(multiple)
    inner = model
    while not isinstance(inner, Qwen3VLModel):
        inner = inner.module
    return model(**inputs, hidden_states=True), partial(_next_token, inner, len(row.ids) - 1, inputs["input_ids"].shape[1])


def _pass(training: Training, rows: Sequence[PromptRow], multiple: int) -> list[Tensor]:
    """`_next_token` of each row; empty on stages before the last."""
    chunks = training.wrapped
    return get_forward_backward_func()(
        forward_step_func=partial(_forward_step, multiple),
        data_iterator=[iter(rows) for _ in chunks] if len(chunks) > 1 else iter(rows),
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(rows),
        seq_length=max(-(-len(row.ids) // multiple) * multiple for row in rows),
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )


class ShardedWriter:
    """Greedy generation. Every rank of the world creates one and calls it at the same step with the same pictures.

    count: number of pictures. ends: EOS token ids. stop: called before each token; when it returns true on any rank, all stop.
    A rank passes the prompts of the pictures in `mine` to `write`.
    """

    def __init__(self, training: Training, count: int, ends: Collection[int], max_new_tokens: int, stop: Callable[[], bool]) -> None:
        self.training, self.count, self.ends, self.max_new_tokens, self.stop = training, count, frozenset(ends), max_new_tokens, stop
        self.size, self.rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        self.multiple = math.lcm(training.rules.length_multiple, LENGTH_MULTIPLE)
        # an interleaved schedule needs a multiple of the number of stages as micro batches
        self.passes_multiple = parallel_state.get_pipeline_model_parallel_world_size() if len(training.wrapped) > 1 else 1

    @property
    def mine(self) -> list[int]:
        """Indices of the pictures that this rank captions; with fewer pictures than ranks, some repeat the first one."""
        return list(range(self.rank, self.count, self.size)) or [0]

    @torch.no_grad()
    def write(self, prompts: Sequence[Mapping[str, Tensor]]) -> list[ShardedCaption] | None:
        """The captions of all pictures, on every rank; None when stopped. prompts: of the pictures in `mine`, from the processor.
        Raises WorkError on every rank when the logits are not finite. The models must not be in training mode."""
        started = time.monotonic()
        numbers = self.mine if self.rank < self.count else [-1]
        rows = _rows(self.training, dict(zip(numbers, prompts, strict=True)))
        captions = [ShardedCaption() for _ in range(self.count)]
        for _ in range(self.max_new_tokens):
            unfinished = [number for number, caption in enumerate(captions) if not caption.done]
            if not unfinished:
                break
            # every rank runs as many rows as the busiest one: a rank's experts compute for other ranks too
            most = max(sum(number % self.size == rank for number in unfinished) for rank in range(self.size))
            passes = -(-most // self.passes_multiple) * self.passes_multiple
            ours = [row for row in rows if row.number in unfinished]
            filler = (ours or rows)[0]
            tokens = self._next_tokens(_pass(self.training, ours + [filler] * (passes - len(ours)), self.multiple), ours)
            if tokens is None:
                return None
            for number in unfinished:
                token, caption = tokens[number], captions[number]
                caption.seconds = time.monotonic() - started
                caption.done = token in self.ends
                if not caption.done:
                    caption.ids.append(token)
            for row in ours:
                row.ids.append(tokens[row.number])
        return captions

    def _next_tokens(self, results: list[Tensor], ours: list[PromptRow]) -> list[int] | None:
        """The next token of each picture, sent from the last stage's first rank to the whole world; None when stopped."""
        message = torch.zeros(self.count + 2, dtype=torch.float64, device=device())
        first = parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_context_parallel_rank() == 0
        if results and parallel_state.is_pipeline_last_stage() and first:
            for row, (token, finite) in zip(ours, results, strict=False):
                message[row.number] = token
                message[-1] += 1 - finite
        message[-2] = float(self.stop())
        dist.all_reduce(message)
        *tokens, stop, not_finite = message.tolist()
        if stop:
            return None
        if not_finite:
            raise WorkError(NOT_FINITE)
        return [int(token) for token in tokens]
