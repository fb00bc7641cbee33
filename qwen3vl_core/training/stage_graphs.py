"""CUDA graphs of pipeline stages: forward and backward of a micro batch on one model chunk, replayed inside Megatron's schedules.

Between forward and backward of a micro batch a stage starts others. Each of those in flight has a slot with its own memory; graphs of
different shapes in one slot share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3vl_core.model.process_groups import release_before_destroy

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel.random import get_all_rng_states
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.training.graphs import MOST_GRAPHS


@dataclass
class CapturedStage:
    """Forward and backward of one chunk in one slot, with their input and output tensors."""

    slot: int
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    hidden: Tensor | None
    """The previous stage's output; its `grad` is what backward sends back. None on the first stage."""
    output: Tensor
    gradient: Tensor
    """Of the output."""
    labels: Tensor
    """Those of the tokens that have a loss."""


class _StageReplay(torch.autograd.Function):
    """Forward replays the forward graph, backward the other one, which adds the weights' gradients to their buffers."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, hidden: Tensor | None, stage: CapturedStage, busy: set[int]) -> Tensor:
        ctx.stage, ctx.busy = stage, busy
        if stage.hidden is not None:
            assert hidden is not None
            stage.hidden.detach().copy_(hidden)
        stage.forward.replay()
        return stage.output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None, None]:
        stage = ctx.stage
        stage.gradient.copy_(gradient)
        stage.backward.replay()
        ctx.busy.discard(stage.slot)
        # a copy: the slot may be used again before the previous stage has received it
        of_hidden = None if stage.hidden is None or stage.hidden.grad is None else stage.hidden.grad.clone()
        return None, of_hidden, None, None


class StageGraphs:
    """The graphs of one rank's chunks. Everything runs on the stream that was current when the model was built."""

    def __init__(self, chunks: list[DistributedDataParallel], dtype: torch.dtype) -> None:
        self.chunks, self.dtype = chunks, dtype
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.graphs: dict[tuple[Any, ...], CapturedStage] = {}
        self.warm: set[tuple[Any, ...]] = set()
        self.memory: list[Any] = []
        """The memory of each slot; a reference keeps it from being freed while nothing uses it."""
        self.busy: set[int] = set()
        """Slots whose backward pass is still to come."""
        self.max_graphs = MOST_GRAPHS
        # a stage without trained inputs has a backward pass too
        self.anchor = torch.zeros(1, device=self.device, requires_grad=True)
        self.replayed = self.launched = 0
        """Number of passes of a micro batch through a chunk that were replayed, and that ran kernel by kernel."""
        release_before_destroy(self)

    def forward(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Output of a chunk for a micro batch, whose input the schedule has set, and the labels of the tokens that have a loss."""
        tensors = batch.tensors()
        hidden = get_attr_wrapped_model(model, "language_model").decoder.input_tensor
        chunk = next(number for number, each in enumerate(self.chunks) if each is model)
        key = (chunk, batch.shaped.shape(), *((name, value.shape) for name, value in tensors.items()))
        slot = next(number for number in range(len(self.busy) + 1) if number not in self.busy)
        stage = self.graphs.get((slot, *key))
        if stage is None and key in self.warm and len(self.graphs) < self.max_graphs:
            stage = self.graphs[(slot, *key)] = self._capture(model, batch, tensors, hidden, slot)
        if stage is not None:
            self.replayed += 1
            self.busy.add(slot)
            for name, buffer in stage.inputs.items():
                buffer.copy_(tensors[name], non_blocking=True)
            return _StageReplay.apply(self.anchor, hidden, stage, self.busy), stage.labels
        # the first micro batch of a shape runs kernel by kernel, as warm-up: libraries select and compile their kernels
        self.warm.add(key)
        self.launched += 1
        inputs = batch.step_inputs(self.device, self.dtype)
        return model(**inputs), inputs["structure"].loss_labels

    def release(self) -> None:
        """Delete the graphs; later micro batches capture new ones."""
        torch.cuda.synchronize(self.device)
        for stage in self.graphs.values():
            stage.forward.reset()
            stage.backward.reset()
        self.graphs.clear()
        self.busy.clear()

    def summary(self) -> str:
        """How many micro batches of this rank were replayed, and how many were not."""
        return f"{self.replayed:,} micro batches were replayed by {len(self.graphs)} CUDA graphs, {self.launched:,} ran kernel by kernel"

    def _capture(self, model: Any, batch: Batch, tensors: dict[str, Tensor], hidden: Tensor | None, slot: int) -> CapturedStage:
        if slot == len(self.memory):
            self.memory.append(torch.cuda.MemPool())
        inputs = {name: torch.empty(value.shape, dtype=value.dtype, device=self.device) for name, value in tensors.items()}
        for name, buffer in inputs.items():
            buffer.copy_(tensors[name], non_blocking=True)
        own = None if hidden is None else hidden.detach().clone().requires_grad_()
        get_attr_wrapped_model(model, "set_input_tensor")([own])
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        for state in get_all_rng_states().values():
            if isinstance(state, torch.Generator):
                forward.register_generator_state(state)
                backward.register_generator_state(state)
        options: dict[str, Any] = dict(
            pool=self.memory[slot].id, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        )  # fmt: skip
        with torch.cuda.graph(forward, **options):
            arguments = batch.inputs_of(inputs, self.dtype)
            output = model(**arguments)
            labels = arguments["structure"].loss_labels
        gradient = torch.empty_like(output)
        with torch.cuda.graph(backward, **options):
            torch.autograd.backward(output, gradient)
        return CapturedStage(slot, forward, backward, inputs, own, output.detach(), gradient, labels)
