"""Weight gradients that are added directly to the fp32 buffers of Megatron's DDP (`main_grad`), without a bf16 gradient in between.

Transformer Engine's linear layers do so themselves. The embedding and the output layer are Megatron's own: their gradients are
made in bf16 for the whole vocabulary, two of them for tied weights, which are added in bf16, and the sum is then added to the buffer. Here
the output layer's matrix product accumulates into the buffer, and the embedding adds the rows of the tokens that occur. The buffer
gets, for each micro batch, first the output layer's gradient, summed over the tokens in fp32 and not rounded, then the embedding's rows,
each summed over its tokens and rounded as before. Every sum has a fixed order: repeated, it gives the same bits.

Upstream: gradient accumulation fusion of Megatron's `ColumnParallelLinear` needs APEX, and for tied weights it still makes
and adds a gradient of zeros; its `VocabParallelEmbedding` has none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from torch import Tensor


@functools.cache
def _accumulating_gemm() -> Callable[..., Any]:
    """Transformer Engine's matrix product, and the workspace that older releases want to be given."""
    from transformer_engine.pytorch.cpp_extensions import general_gemm

    if "workspace" not in inspect.signature(general_gemm).parameters:
        return functools.partial(general_gemm)
    from transformer_engine.pytorch.module.base import get_workspace

    return functools.partial(general_gemm, workspace=get_workspace())


def add_product(buffer: Tensor, grad: Tensor, states: Tensor) -> None:
    """buffer [out, in] in fp32 += grad [n, out] transposed, times states [n, in]; summed over n in fp32."""
    if grad.dtype is buffer.dtype:
        # Transformer Engine's product of fp32 is one of TF32
        buffer.addmm_(grad.t(), states)
        return
    if not buffer.is_cuda:
        buffer.addmm_(grad.t().float(), states.float())
        return
    gemm = _accumulating_gemm()
    gemm(states, grad, layout="NT", grad=True, out=buffer, out_dtype=buffer.dtype, accumulate=True)


def add_rows(buffer: Tensor, index: Tensor, rows: Tensor) -> None:
    """buffer [m, h] in fp32 += rows [n, h] at index [n]. Rows of one index are summed first, rounded to their type."""
    ordered, order = index.sort(stable=True)
    begins = torch.ones_like(ordered)
    begins[1:] = ordered[1:] != ordered[:-1]
    number = begins.cumsum(0) - 1
    # the distinct indices are numbered, so that the sums are as many as the rows, not as the vocabulary
    numbers = torch.empty_like(number).scatter_(0, order, number)
    sums = torch.ops.aten.embedding_dense_backward(rows, numbers, len(index), -1, False)
    # numbers that are not used add their zeros anywhere
    targets = torch.arange(len(index), device=index.device).remainder_(len(buffer)).scatter_(0, number, ordered)
    buffer.index_add_(0, targets, sums.to(buffer.dtype))


class _Product(torch.autograd.Function):
    """states [..., in] @ weight [out, in] transposed. last: this is the last gradient of the weight in a backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Any, last: bool) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.buffer, ctx.last = weight.main_grad, last
        return states.matmul(weight.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        states, weight = ctx.saved_tensors
        grad = grad.contiguous()
        of_states = grad.matmul(weight)
        add_product(ctx.buffer, grad.flatten(0, -2), states.flatten(0, -2))
        return of_states, _added(weight) if ctx.last else None, None


class _Lookup(torch.autograd.Function):
    """Rows `index` of weight [m, h]."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Any) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.buffer = weight.main_grad
        return F.embedding(index, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        index, weight = ctx.saved_tensors
        add_rows(ctx.buffer, index.flatten(), grad.flatten(0, -2).contiguous())
        return None, _added(weight)


def _added(weight: Any) -> Tensor:
    """What Megatron's DDP expects of a gradient that is in its buffer already: a mark, and a tensor that it frees unread."""
    weight.grad_added_to_main_grad = True
    return torch.empty_like(weight)


def _has_buffer(weight: Tensor) -> bool:
    return torch.is_grad_enabled() and weight.requires_grad and hasattr(weight, "main_grad")


class InPlaceOutputLayer(ColumnParallelLinear):
    """The output layer of one tensor parallel rank."""

    gradient_is_last = True

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not _has_buffer(weight):
            return super()._forward_impl(input, weight, *args, **kwargs)
        return _Product.apply(input, weight, self.gradient_is_last)


class InPlaceEmbedding(VocabParallelEmbedding):
    """The token embedding of one tensor parallel rank."""

    def forward(self, input_: Tensor) -> Tensor:
        """[b, s] -> [b, s, h], or [s, b, h] where Megatron scatters embeddings."""
        if not _has_buffer(self.weight) or self.reduce_scatter_embeddings:
            return super().forward(input_)
        return _Lookup.apply(input_, self.weight)


def add_vocabulary_gradients_in_place(model: Any) -> None:
    """Let embedding and output layer of a `Qwen3VLModel` that is to be trained add their gradients to the buffers.

    Not with tensor parallelism, whose output layer overlaps its products with communication.
    """
    if model.config.tensor_model_parallel_size > 1:
        return
    language = model.language_model
    tied = model.share_embeddings_and_output_weights and model.pre_process and model.post_process
    if model.post_process and type(language.output_layer) is ColumnParallelLinear:
        language.output_layer.__class__ = InPlaceOutputLayer
        # tied weights: the embedding's comes after it
        language.output_layer.gradient_is_last = not tied
    if model.pre_process and type(language.embedding.word_embeddings) is VocabParallelEmbedding:
        language.embedding.word_embeddings.__class__ = InPlaceEmbedding
    if tied:
        # Megatron adds what is left in `grad` of weights with two uses
        language.shared_embedding_or_output_weight().zero_out_wgrad = False
