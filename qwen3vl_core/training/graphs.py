"""Forward, loss and backward of a micro batch as one CUDA graph, captured once for each bucket of shapes and replayed.

Python takes 230 to 300 ms to launch the 4,000 kernels of a micro batch, whatever its size; a graph is one launch. Results are
the same as those of the same kernels launched one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen3vl_core.model.process_groups import release_before_destroy

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.tensor_parallel.random import get_all_rng_states, model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch import Tensor

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.training.token_loss import token_loss

MOST_GRAPHS = 32
"""Micro batches of further shapes run kernel by kernel: each graph takes GPU memory; how much was not measured."""


@dataclass
class CapturedMicroBatch:
    """A graph with its input and output tensors."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    totals: Tensor

    def replay(self, tensors: dict[str, Tensor]) -> Tensor:
        """Returns [sum of losses, trained tokens]; gradients are added to the gradient buffers of the weights."""
        for name, buffer in self.inputs.items():
            buffer.copy_(tensors[name], non_blocking=True)
        self.graph.replay()
        return self.totals


def prepare_capture(seed: int) -> None:
    """Prepare this process for capture, before the model is built. Random numbers come from RNG states that a graph can register,
    and everything runs on a separate stream: the legacy stream, on which gradients would be accumulated, cannot be captured."""
    model_parallel_cuda_manual_seed(seed, te_rng_tracker=True, force_reset_rng=True)
    if torch.cuda.current_stream() == torch.cuda.default_stream():
        torch.cuda.set_stream(torch.cuda.Stream())


class MicroBatchGraphs:
    """The graphs of one rank. Everything runs on the stream that was current when the model was built."""

    def __init__(self, model: DistributedDataParallel, config: Any, dtype: torch.dtype) -> None:
        self.model, self.config, self.dtype = model, config, dtype
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.graphs: dict[tuple[Any, ...], CapturedMicroBatch] = {}
        self.warm: set[tuple[Any, ...]] = set()
        # a reference keeps the pool from being freed while nothing uses it
        self.memory = torch.cuda.MemPool()
        self.pool: Any = self.memory.id
        self.max_graphs = MOST_GRAPHS
        # graphs read the loss scale, which fp16 training changes, from here
        self.one, self.loss_scale = (torch.ones(1, device=self.device) for _ in range(2))
        self.replayed = self.launched = 0
        """Number of micro batches that were replayed, and that ran kernel by kernel."""
        # NCCL waits for graphs that hold its collectives before it destroys a group
        release_before_destroy(self)

    def forward_backward(self, batches: list[Batch]) -> Tensor:
        """Compute the gradients of a global batch, reduced and divided by its trained tokens, as Megatron's
        `forward_backward_no_pipelining` does. Returns [sum of losses, trained tokens] of this rank."""
        model = self.model
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.loss_scale.copy_(self.config.grad_scale_func(self.one))
        # as Megatron's schedules do for each micro batch
        MoEAuxLossAutoScaler.set_loss_scale(self.loss_scale)
        with model.no_sync():
            for batch in batches:
                total += self._micro_batch(batch)
        if model.ddp_config.overlap_grad_reduce:
            # backward hooks, which start the reduction of ready gradients, do not run in a replay
            model.start_grad_sync()
        finalize_gradients([model], total[1].to(torch.int))
        return total

    def release(self) -> None:
        """Delete the graphs; later micro batches capture new ones."""
        torch.cuda.synchronize(self.device)
        for captured in self.graphs.values():
            captured.graph.reset()
        self.graphs.clear()

    def summary(self) -> str:
        """How many micro batches of this rank were replayed, and how many were not."""
        return f"{self.replayed:,} micro batches were replayed by {len(self.graphs)} CUDA graphs, {self.launched:,} ran kernel by kernel"

    def _micro_batch(self, batch: Batch) -> Tensor:
        tensors = batch.tensors()
        key = (batch.shaped.shape(), *((name, value.shape) for name, value in tensors.items()))
        captured = self.graphs.get(key)
        if captured is None and key in self.warm and len(self.graphs) < self.max_graphs:
            captured = self.graphs[key] = self._capture(batch, tensors)
        if captured is not None:
            self.replayed += 1
            return captured.replay(tensors)
        # the first micro batch of a shape runs kernel by kernel, as warm-up: libraries select and compile their kernels
        if key not in self.warm:
            # while memory comes from the graphs' pool, torch's allocator does not release what it caches of the other one, not even
            # when out of memory
            torch.cuda.empty_cache()
        self.warm.add(key)
        self.launched += 1
        with self._graph_pool():
            return self._run(batch, {name: value.to(self.device, non_blocking=True) for name, value in tensors.items()}).clone()

    @contextlib.contextmanager
    def _graph_pool(self) -> Iterator[None]:
        """Inside this context memory is allocated from the graphs' pool, which is unused between replays, to not double the memory."""
        begin = getattr(torch._C, "_cuda_beginAllocateCurrentStreamToPool", None)
        if begin is None:
            yield
            return
        begin(self.device.index, self.pool)
        try:
            yield
        finally:
            torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
            torch._C._cuda_releasePool(self.device.index, self.pool)

    def _run(self, batch: Batch, inputs: dict[str, Tensor]) -> Tensor:
        """Forward, loss and backward with inputs on this device."""
        arguments = batch.inputs_of(inputs, self.dtype)
        total, _, totals = token_loss(arguments["structure"].loss_labels, self.model(**arguments))
        (self.loss_scale * total).backward()
        return totals

    def _capture(self, batch: Batch, tensors: dict[str, Tensor]) -> CapturedMicroBatch:
        inputs = {name: torch.empty(value.shape, dtype=value.dtype, device=self.device) for name, value in tensors.items()}
        for name, buffer in inputs.items():
            buffer.copy_(tensors[name], non_blocking=True)
        graph = torch.cuda.CUDAGraph()
        for state in get_all_rng_states().values():
            if isinstance(state, torch.Generator):
                graph.register_generator_state(state)
        # other threads pin memory and poll NCCL during the capture
        with torch.cuda.graph(graph, pool=self.pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            totals = self._run(batch, inputs)
        return CapturedMicroBatch(graph, inputs, totals)


def finalize_gradients(models: list[DistributedDataParallel], trained_tokens: Tensor | None = None, **more: Any) -> None:
    """Megatron's `finalize_model_grads`, whose division by the batch's trained tokens waits for the GPU; here it does not."""
    finalize_model_grads(models, None, **more)
    if trained_tokens is None:
        return
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(trained_tokens, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    dist.all_reduce(trained_tokens, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    scale = 1.0 / trained_tokens.clamp(min=1)
    for model in models:
        model.scale_gradients(scale)
