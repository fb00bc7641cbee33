"""Experts as grouped matrix products whose bounds stay on the GPU.

Transformer Engine launches one product an expert and reads the tokens of each expert from the GPU, in every layer. Here a layer is
one product for all experts (`torch.nn.functional.grouped_mm`), forward and for both gradients, so that nothing waits and a layer can
be part of a CUDA graph. Experts are sorted from the last to the first, the order in which Megatron's DDP lays out their weights and
gradients: the weights of a layer are then one tensor without a copy.

A rank that holds every expert sorts its own tokens. Ranks that share the experts gather the tokens of all, compute their experts for
them, and the sums are scattered: as many bytes as sending each token to its experts, if there are no more ranks than experts of a token,
but in sizes that are known before. How many rows a rank's experts get is not: the tensors hold as many as there can be.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from qwen3vl_core.model.kernels import enabled

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

LEAST_SIDE = 64
"""Rows and columns of a weight from which its gradient is added by a kernel: smaller ones, those of adapters, fill no tile."""
ALIGNED = 8
"""`grouped_mm` needs rows of a multiple of 16 bytes: of this many bf16 numbers."""


def gather_tokens(config: TransformerConfig) -> None:
    """Let the ranks that share the experts gather each other's tokens in training. Their micro batches must have the same number of
    tokens. Called before the model is built."""
    config.gathers_tokens = True


def on_device(config: TransformerConfig) -> bool:
    """Whether the experts of this model are computed here: bf16, whole, on a GPU with a grouped kernel; all of them on every rank, or
    of ranks that gather tokens."""
    unsplit = config.tensor_model_parallel_size == (config.expert_tensor_parallel_size or 1) == 1
    here = config.expert_model_parallel_size == 1 or getattr(config, "gathers_tokens", False)
    kernel = hasattr(F, "grouped_mm") and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return unsplit and here and kernel and bool(config.bf16) and not config.fp8


def _picked(rows: Tensor, token: Tensor, ends: Tensor) -> Tensor:
    """rows [t, h] -> [n, h], row `token[i]` at i; behind the last of `ends` anything."""
    if enabled("expert_rows", rows):
        from qwen3vl_core.model.kernels.expert_rows import pick

        return pick(rows, token, ends)
    return rows.index_select(0, token)


def _summed(rows: Tensor, places: Tensor, full: bool) -> Tensor:
    """rows [n, h], places [t, k], -1 for none -> [t, h], the sum of each token's rows, always in the same order. full: there is no -1."""
    if enabled("expert_rows", rows):
        from qwen3vl_core.model.kernels.expert_rows import sums

        return sums(rows, places)
    return (rows if full else F.pad(rows, (0, 0, 0, 1)))[places].sum(1)


class _Rows(torch.autograd.Function):
    """rows [t, h] -> [n, h], row `token[i]` at i. places [t, k]: those of each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, places: Tensor, ends: Tensor, full: bool) -> Tensor:
        ctx.save_for_backward(places)
        ctx.full = full
        return _picked(rows, token, ends)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return _summed(gradient, places, ctx.full), None, None, None, None


class _Sums(torch.autograd.Function):
    """rows [n, h] -> [t, h], the sum over each row of `places`; the adjoint of `_Rows`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, places: Tensor, ends: Tensor, full: bool) -> Tensor:
        ctx.save_for_backward(token, ends)
        return _summed(rows, places, full)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        token, ends = ctx.saved_tensors
        return _picked(gradient, token, ends), None, None, None, None


class LocalDispatcher:
    """Megatron's token dispatcher, for a rank that holds every expert: tokens are sorted by expert, and nothing is counted by the host."""

    full = True
    """Whether every token has `topk` rows."""

    def __init__(self, topk: int) -> None:
        self.topk = topk
        self.shape = torch.Size()
        self.token = self.places = self.ends = torch.empty(0)

    def get_expert_zero_copy_buffers(self) -> tuple[None, None]:
        """Megatron-Core 0.19 asks for memory that the experts should write into: none."""
        return None, None

    def dispatch_preprocess(self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states [s, b, h]; routing_map bool and probs [t, experts], `topk` experts a token -> [t * topk, h] and [t * topk]."""
        self.shape = hidden_states.shape
        return self._sorted(hidden_states.reshape(len(routing_map), -1), routing_map, probs, slice(0, routing_map.shape[1]))

    def _sorted(self, states: Tensor, routing_map: Tensor, probs: Tensor, experts: slice) -> tuple[Tensor, Tensor]:
        """Rows and probabilities of the experts of this rank, for states [t, h]; notes their order."""
        if enabled("expert_order", states):
            from qwen3vl_core.model.kernels.expert_order import order

            chances, *orders = order(probs, routing_map, experts.start, experts.stop - experts.start, self.topk)
            self.token, self.places, self.ends = orders
        else:
            chances = self._sort(routing_map[:, experts].t().flip(0), probs[:, experts])
        return _Rows.apply(states, self.token, self.places, self.ends, self.full), chances

    def _sort(self, by_expert: Tensor, probs: Tensor) -> Tensor:
        """by_expert bool [experts, t], from the last expert to the first, probs [t, experts]; returns the rows' probabilities."""
        experts, tokens = by_expert.shape
        pairs = torch.nonzero_static(by_expert, size=tokens * self.topk)
        self.token = pairs[:, 1].contiguous()
        self.places = torch.argsort(self.token, stable=True).view(tokens, self.topk)
        self.ends = by_expert.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return probs.reshape(-1).gather(0, self.token * experts + (experts - 1 - pairs[:, 0]))

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Every expert is on this rank."""
        return hidden_states, probs

    def dispatch_postprocess(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows, where the rows of each expert end (int32 [experts], on the device), and the rows' probabilities."""
        return hidden_states, self.ends, probs

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """[t * topk, h] -> [t, h]."""
        return _Sums.apply(hidden_states, self.token, self.places, self.ends, self.full)

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Every expert is on this rank."""
        return hidden_states

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """[t, h] -> [s, b, h]."""
        return hidden_states.view(self.shape)


class GatheringDispatcher(LocalDispatcher):
    """The same for ranks that share the experts: each gathers the tokens of the group, and sorts those of its own experts.

    t are the tokens of all ranks, of which a token has at most `topk` experts here: rows [t * topk, h], used up to the last of `ends`.
    What is behind them is not computed and may be anything.
    """

    full = False

    def __init__(self, topk: int, experts: Sequence[int], group: Any) -> None:
        """experts: indices of this rank's, which follow each other. group: the ranks that share the experts."""
        super().__init__(min(topk, len(experts)))
        self.experts, self.group = slice(experts[0], experts[-1] + 1), group

    def dispatch_preprocess(self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states [s, b, h], routing_map bool and probs [s * b, experts] of this rank -> [t * topk, h] and [t * topk]."""
        self.shape = hidden_states.shape
        own = hidden_states.reshape(len(routing_map), -1)
        states, chances = (gather_from_sequence_parallel_region(tensor, group=self.group) for tensor in (own, probs))
        routed = routing_map.new_empty(len(states), routing_map.shape[1], dtype=torch.uint8)
        dist.all_gather_into_tensor(routed, routing_map.contiguous().view(torch.uint8), group=self.group)
        return self._sorted(states, routed.view(torch.bool), chances, self.experts)

    def _sort(self, by_expert: Tensor, probs: Tensor) -> Tensor:
        experts, tokens = by_expert.shape
        pairs = torch.nonzero_static(by_expert, size=tokens * self.topk, fill_value=0)
        self.ends = by_expert.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        number = torch.arange(tokens * self.topk, device=pairs.device)
        used = number < self.ends[-1]
        self.token = pairs[:, 1].contiguous()
        # which of its token's experts a row belongs to; rows that are not used are written behind the last place
        which = (by_expert.cumsum(0) - 1).reshape(-1).gather(0, pairs[:, 0] * tokens + self.token)
        places = torch.full((tokens * self.topk + 1,), -1, device=pairs.device)
        places.scatter_(0, torch.where(used, self.token * self.topk + which, tokens * self.topk), number)
        self.places = places[:-1].view(tokens, self.topk)
        chosen = probs.reshape(-1).gather(0, self.token * experts + (experts - 1 - pairs[:, 0]))
        return torch.where(used, chosen, 0.0)

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Sums over this rank's experts for the tokens of all ranks [t, h] -> those over all experts for its own tokens."""
        return reduce_scatter_to_sequence_parallel_region(hidden_states, group=self.group)


class ExpertLayer(MoELayer):
    """Megatron's layer of experts. In training its tokens stay on this rank if it holds every expert, or are gathered."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.dispatchers: dict[bool, Any] = {}
        """By whether the layer is in training mode, if tokens are gathered then: elsewhere ranks have different numbers of tokens."""
        self.on_device = on_device(config)
        if not self.on_device:
            return
        if config.expert_model_parallel_size == 1:
            self.token_dispatcher = LocalDispatcher(config.moe_router_topk)
            self.experts.counted_on_device = True
        else:
            gathering = GatheringDispatcher(config.moe_router_topk, self.local_expert_indices, self.ep_group)
            self.dispatchers = {False: self.token_dispatcher, True: gathering}

    def forward(self, *arguments: Any, **options: Any) -> Any:
        if self.dispatchers:
            self.token_dispatcher = self.dispatchers[self.training]
            self.experts.counted_on_device = self.training
        return super().forward(*arguments, **options)


def one_block(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors of one shape that follow each other in one storage, as one [n, ...] that shares it; else None."""
    first, size = tensors[0], tensors[0].numel()
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for number, tensor in enumerate(tensors):
        follows = tensor.untyped_storage().data_ptr() == storage and tensor.storage_offset() == offset + number * size
        if not follows or not tensor.is_contiguous():
            return None
    return first.detach().as_strided((len(tensors), *first.shape), (size, *first.stride()), offset)


def joined(weights: Sequence[Tensor]) -> Tensor:
    """Weights [out, in] as one [n, out, in]; from then on they share its memory, unless they have another tensor's already, as the
    buffer that a distributed optimizer gathers them into."""
    block = one_block(weights)
    if block is None:
        block = torch.stack([weight.detach() for weight in weights])
        alone = all(weight.untyped_storage().nbytes() == weight.nbytes for weight in weights)
        if alone and not (block.is_cuda and torch.cuda.is_current_stream_capturing()):
            for weight, row in zip(weights, block, strict=True):
                weight.data = row
    return block


def join_experts(model: torch.nn.Module) -> None:
    """Make the expert weights of each layer one tensor. Left to the first forward, they would be copied into the memory of the CUDA
    graphs, and the allocator would keep that of the old ones: the size of all experts."""
    for layer in model.modules():
        if isinstance(layer, ExpertLayer) and layer.on_device:
            _, column, row = engine_experts()
            for linear in layer.experts.modules():
                if isinstance(linear, (column, row)):
                    joined(weights_of(linear))


@functools.cache
def _unused_gradient(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What autograd hands to DDP's hooks for a weight whose gradient is in `main_grad` already."""
    return torch.empty(shape, dtype=dtype, device=device)


class _GroupedProduct(torch.autograd.Function):
    """See `product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, in_place: bool, *weights: torch.nn.Parameter) -> Tensor:
        # frozen weights have no gradient that needs the input
        ctx.save_for_backward(x if any(ctx.needs_input_grad[3:]) else None, ends)
        ctx.weights, ctx.in_place = weights, in_place
        return F.grouped_mm(x, joined(weights).transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, ends), weights = ctx.saved_tensors, ctx.weights
        gradient = gradient.contiguous()
        of_x = F.grouped_mm(gradient, joined(weights), offs=ends) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):
            return of_x, None, None, *(None for _ in weights)
        if not ctx.in_place:
            return of_x, None, None, *F.grouped_mm(gradient.t(), x, offs=ends).unbind(0)
        buffers = [weight.main_grad for weight in weights]
        block = one_block(buffers)
        if block is not None and min(weights[0].shape) >= LEAST_SIDE and enabled("expert_gradients", gradient):
            from qwen3vl_core.model.kernels.expert_gradients import add_gradients

            add_gradients(gradient, x.contiguous(), ends, block)
        elif block is not None:
            block.add_(F.grouped_mm(gradient.t(), x, offs=ends))
        else:
            # a bucket of DDP ends between them
            torch._foreach_add_(buffers, list(F.grouped_mm(gradient.t(), x, offs=ends).unbind(0)))
        for weight in weights:
            weight.grad_added_to_main_grad = True
        unused = _unused_gradient(weights[0].shape, weights[0].dtype, weights[0].device)
        return of_x, None, None, *(unused.detach() for _ in weights)


def product(x: Tensor, ends: Tensor, weights: Sequence[Tensor], *, in_place: bool = False) -> Tensor:
    """x [n, in], whose rows up to ends[i] (int32, on the device) belong to weight i [out, in] -> [n, out].

    in_place: the weights' gradients are added to `main_grad`, Megatron's fp32 buffers, as Transformer Engine does.
    """
    return _GroupedProduct.apply(x, ends, in_place and weights[0].requires_grad, *weights)


def weights_of(linear: Any) -> list[torch.nn.Parameter]:
    """Of Transformer Engine's linear layer of experts: [out, in] each, from the last to the first."""
    return [getattr(linear, f"weight{expert}") for expert in reversed(range(linear.num_gemms))]


@functools.cache
def engine_experts() -> tuple[type, type, type]:
    """Transformer Engine's experts and their two linear layers, which also take bounds on the device instead of counts on the host."""
    from megatron.core.extensions.transformer_engine import TEColumnParallelGroupedLinear, TERowParallelGroupedLinear
    from megatron.core.transformer.moe.experts import TEGroupedMLP

    def on_bounds(linear: Any, x: Tensor, ends: Tensor) -> tuple[Tensor, None]:
        return product(x, ends, weights_of(linear), in_place=linear.fuse_wgrad_accumulation), None

    class DeviceColumnLinear(TEColumnParallelGroupedLinear):
        def forward(self, x: Tensor, splits: list[int] | Tensor) -> tuple[Tensor, Tensor | None]:
            return on_bounds(self, x, splits) if isinstance(splits, Tensor) else super().forward(x, splits)

    class DeviceRowLinear(TERowParallelGroupedLinear):
        def forward(self, x: Tensor, splits: list[int] | Tensor) -> tuple[Tensor, Tensor | None]:
            return on_bounds(self, x, splits) if isinstance(splits, Tensor) else super().forward(x, splits)

    class DeviceExperts(TEGroupedMLP):
        counted_on_device = False

        def forward(self, rows: Tensor, splits: Tensor, probs: Tensor) -> tuple[Tensor, Tensor | None]:
            if not self.counted_on_device:
                return super().forward(rows, splits, probs)
            hidden, _ = self.linear_fc1(rows, splits)
            if enabled("expert_swiglu", hidden):
                from qwen3vl_core.model.kernels.expert_swiglu import expert_swiglu

                hidden = expert_swiglu(hidden, probs, splits)
            else:
                hidden = weighted_bias_swiglu_impl(hidden, None, probs.unsqueeze(-1))
            return self.linear_fc2(hidden, splits)

    return DeviceExperts, DeviceColumnLinear, DeviceRowLinear
