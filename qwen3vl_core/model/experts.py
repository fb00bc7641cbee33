"""The experts of a rank that holds all of them, as grouped matrix products whose bounds stay on the GPU.

Transformer Engine launches one product an expert and reads the tokens of each expert from the GPU, in every layer. Here a layer is
one product for all experts (`torch.nn.functional.grouped_mm`), forward and for both gradients, so that nothing waits and a layer can
be part of a CUDA graph. Experts are sorted from the last to the first, the order in which Megatron's DDP lays out their weights and
gradients: the weights of a layer are then one tensor without a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

ALIGNED = 8
"""`grouped_mm` needs rows of a multiple of 16 bytes: of this many bf16 numbers."""


def on_device(config: TransformerConfig) -> bool:
    """Whether the experts of this model are computed here: bf16, all of them on every rank, on a GPU with a grouped kernel."""
    one_rank = config.tensor_model_parallel_size == config.expert_model_parallel_size == (config.expert_tensor_parallel_size or 1) == 1
    kernel = hasattr(F, "grouped_mm") and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return one_rank and kernel and bool(config.bf16) and not config.fp8


class _Rows(torch.autograd.Function):
    """rows [t, h] -> [t * k, h], row `token[i]` at i. inverse [t, k]: the places of each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(token, inverse)
        return rows.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _, inverse = ctx.saved_tensors
        return gradient[inverse].sum(1), None, None


class _Sums(torch.autograd.Function):
    """rows [t * k, h] -> [t, h], the sum over each row of `inverse`; the adjoint of `_Rows`. Always in the same order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(token, inverse)
        return rows[inverse].sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        token, _ = ctx.saved_tensors
        return gradient.index_select(0, token), None, None


class LocalDispatcher:
    """Megatron's token dispatcher, for a rank that holds every expert: tokens are sorted by expert, and nothing is counted by the host."""

    def __init__(self, topk: int) -> None:
        self.topk = topk
        self.shape = torch.Size()
        self.token = self.inverse = self.ends = torch.empty(0)

    def dispatch_preprocess(self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states [s, b, h]; routing_map bool and probs [t, experts], `topk` experts a token -> [t * topk, h] and [t * topk]."""
        self.shape = hidden_states.shape
        tokens, experts = routing_map.shape
        by_expert = routing_map.t().flip(0)
        pairs = torch.nonzero_static(by_expert, size=tokens * self.topk)
        self.token = pairs[:, 1].contiguous()
        self.inverse = torch.argsort(self.token, stable=True).view(tokens, self.topk)
        self.ends = by_expert.sum(1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        places = self.token * experts + (experts - 1 - pairs[:, 0])
        return _Rows.apply(hidden_states.reshape(tokens, -1), self.token, self.inverse), probs.reshape(-1).gather(0, places)

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Every expert is on this rank."""
        return hidden_states, probs

    def dispatch_postprocess(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows, where the rows of each expert end (int32 [experts], on the device), and the rows' probabilities."""
        return hidden_states, self.ends, probs

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """[t * topk, h] -> [t, h]."""
        return _Sums.apply(hidden_states, self.token, self.inverse)

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Every expert is on this rank."""
        return hidden_states

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """[t, h] -> [s, b, h]."""
        return hidden_states.view(self.shape)


class ExpertLayer(MoELayer):
    """Megatron's layer of experts, whose tokens stay on this rank if it holds every expert."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        if on_device(config):
            self.token_dispatcher = LocalDispatcher(config.moe_router_topk)
            self.experts.counted_on_device = True


def one_block(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors of one shape that follow each other in one storage, as one [n, ...] that shares it; else None."""
    first, size = tensors[0], tensors[0].numel()
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for number, tensor in enumerate(tensors):
        follows = tensor.untyped_storage().data_ptr() == storage and tensor.storage_offset() == offset + number * size
        if not follows or not tensor.is_contiguous():
            return None
    return first.detach().as_strided((len(tensors), *first.shape), (size, *first.stride()), offset)


def joined(weights: Sequence[torch.nn.Parameter]) -> Tensor:
    """Weights [out, in] as one [n, out, in]; from then on they share its memory."""
    block = one_block(weights)
    if block is None:
        block = torch.stack([weight.detach() for weight in weights])
        if not (block.is_cuda and torch.cuda.is_current_stream_capturing()):
            for weight, row in zip(weights, block, strict=True):
                weight.data = row
    return block


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
        of_weights = F.grouped_mm(gradient.t(), x, offs=ends)
        if not ctx.in_place:
            return of_x, None, None, *of_weights.unbind(0)
        buffers = [weight.main_grad for weight in weights]
        block = one_block(buffers)
        if block is not None:
            block.add_(of_weights)
        else:
            # a bucket of DDP ends between them
            torch._foreach_add_(buffers, list(of_weights.unbind(0)))
        for weight in weights:
            weight.grad_added_to_main_grad = True
        unused = _unused_gradient(weights[0].shape, weights[0].dtype, weights[0].device)
        return of_x, None, None, *(unused.detach() for _ in weights)


def product(x: Tensor, ends: Tensor, weights: Sequence[torch.nn.Parameter], *, in_place: bool = False) -> Tensor:
    """x [n, in], whose rows up to ends[i] (int32, on the device) belong to weight i [out, in] -> [n, out].

    in_place: the weights' gradients are added to `main_grad`, Megatron's fp32 buffers, as Transformer Engine does.
    """
    return _GroupedProduct.apply(x, ends, in_place and weights[0].requires_grad, *weights)


def aligned(weights: Sequence[Tensor]) -> Tensor:
    """Adapters' matrices [out, in] as one [n, out', in'], zeros up to sizes that `grouped_mm` takes."""
    out, into = weights[0].shape
    return F.pad(torch.stack(list(weights)), (0, -into % ALIGNED, 0, -out % ALIGNED))


@functools.cache
def engine_experts() -> tuple[type, type, type]:
    """Transformer Engine's experts and their two linear layers, which also take bounds on the device instead of counts on the host."""
    from megatron.core.extensions.transformer_engine import TEColumnParallelGroupedLinear, TERowParallelGroupedLinear
    from megatron.core.transformer.moe.experts import TEGroupedMLP

    def on_bounds(linear: Any, x: Tensor, ends: Tensor) -> tuple[Tensor, None]:
        weights = [getattr(linear, f"weight{expert}") for expert in reversed(range(linear.num_gemms))]
        return product(x, ends, weights, in_place=linear.fuse_wgrad_accumulation), None

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
            hidden = weighted_bias_swiglu_impl(hidden, None, probs.unsqueeze(-1))
            return self.linear_fc2(hidden, splits)

    return DeviceExperts, DeviceColumnLinear, DeviceRowLinear
