"""The order in which tokens are computed by their experts, from the router's choice, without sorting.

A prefix sum over (expert, token) says at which row a pair is; one kernel then writes, for each pair, the row's token, the token's
row and the row's probability. Experts are in reverse order, as `model.experts` lays out their weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, WARPS = 16, 4
"""Tokens of a program, and its warps."""


@triton.jit
def _pairs(routed, ends, tokens, first, ALL: tl.constexpr, EXPERTS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    """(token [TOKENS, 1], expert's column [1, BLOCK], whether routed, row) of a tile; column j is expert EXPERTS - 1 - j."""
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None].to(tl.int64)
    place = tl.arange(0, BLOCK)[None, :]
    ok = (token < tokens) & (place < EXPERTS)
    column = first + EXPERTS - 1 - place
    chosen = (tl.load(routed + token * ALL + column, mask=ok, other=0) != 0) & ok
    row = tl.load(ends + place.to(tl.int64) * tokens + token, mask=ok, other=0).to(tl.int64) - 1
    return token, column, chosen, row


@triton.jit
def _order(
    routed, ends, probs, token_of_row, places, chances, tokens, first, ALL: tl.constexpr, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """routed uint8 and probs [tokens, ALL]; ends int32 [EXPERTS, tokens], the prefix sum; the rest by row, places [tokens, CHOSEN]."""
    token, column, chosen, row = _pairs(routed, ends, tokens, first, ALL, EXPERTS, TOKENS, BLOCK)
    number = tl.cumsum(chosen.to(tl.int32), axis=1) - 1
    tl.store(token_of_row + row, token + tl.zeros_like(row), mask=chosen)
    tl.store(places + token * CHOSEN + number, row, mask=chosen)
    tl.store(chances + row, tl.load(probs + token * ALL + column, mask=chosen), mask=chosen)


@triton.jit
def _backward(
    routed, ends, grad_chances, grad_probs, tokens, first, ALL: tl.constexpr, EXPERTS: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    token, column, chosen, row = _pairs(routed, ends, tokens, first, ALL, EXPERTS, TOKENS, BLOCK)
    tl.store(grad_probs + token * ALL + column, tl.load(grad_chances + row, mask=chosen), mask=chosen)


class _Order(torch.autograd.Function):
    @staticmethod
    def forward(ctx, probs, routed, first, experts, chosen):
        tokens, every = routed.shape
        routed, probs = routed.contiguous().view(torch.uint8), probs.contiguous()
        own = routed[:, first : first + experts]
        prefix = own.t().flip(0).reshape(-1).cumsum(0, dtype=torch.int32)
        token_of_row = torch.empty(tokens * chosen, dtype=torch.int64, device=routed.device)
        places, chances = torch.full((tokens, chosen), -1, device=routed.device), probs.new_empty(tokens * chosen)
        sizes = dict(ALL=every, EXPERTS=experts, TOKENS=TOKENS, BLOCK=triton.next_power_of_2(experts))
        if tokens:
            grid = (triton.cdiv(tokens, TOKENS),)
            arguments = (routed, prefix, probs, token_of_row, places, chances, tokens, first)
            _order[grid](*arguments, CHOSEN=chosen, **sizes, num_warps=WARPS)
        ends = prefix.view(experts, tokens)[:, -1].contiguous()
        ctx.save_for_backward(routed, prefix)
        ctx.first, ctx.sizes = first, sizes
        ctx.mark_non_differentiable(token_of_row, places, ends)
        return chances, token_of_row, places, ends

    @staticmethod
    def backward(ctx, grad_chances, *_):
        routed, prefix = ctx.saved_tensors
        grad = grad_chances.new_zeros(routed.shape)
        if len(routed):
            grid = (triton.cdiv(len(routed), TOKENS),)
            arguments = (routed, prefix, grad_chances.contiguous(), grad, len(routed), ctx.first)
            _backward[grid](*arguments, **ctx.sizes, num_warps=WARPS)
        return grad, None, None, None, None


def order(probs: Tensor, routed: Tensor, first: int, experts: int, chosen: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """routed bool and probs [t, all experts]; of the `experts` from `first` on a token has at most `chosen` -> probabilities [t * chosen]
    of the rows, their tokens int64, places int64 [t, chosen] of each token's rows, -1 for none, and where the rows of each expert end,
    int32, from the last expert to the first. Rows behind the last end are not set."""
    return _Order.apply(probs, routed, first, experts, chosen)
