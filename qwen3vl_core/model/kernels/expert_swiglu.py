"""SwiGLU of experts, weighted by the router's probabilities, forward and backward, each in one pass over memory.

Both compute in fp32 and round once, as Megatron's compiled functions do; the gradient of a row's probability, a sum over its columns,
is taken in another order. Rows that no expert uses, behind the last bound, are neither read nor written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4


@triton.jit
def _gate_and_up(gate_up, row, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """(columns, which of them there are, gate, up) of a row, in fp32."""
    column = tl.arange(0, BLOCK)
    ok = column < COLUMNS
    gate = tl.load(gate_up + row * (2 * COLUMNS) + column, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * COLUMNS) + COLUMNS + column, mask=ok, other=0.0).to(tl.float32)
    return column, ok, gate, up


@triton.jit
def _forward(gate_up, weights, ends, out, EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """gate_up [n, 2 * COLUMNS]: gate, then up; weights [n]; out [n, COLUMNS]. One program: a row."""
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(ends + EXPERTS - 1):
        column, ok, gate, up = _gate_and_up(gate_up, row, COLUMNS, BLOCK)
        result = gate / (1.0 + tl.exp(-gate)) * up * tl.load(weights + row).to(tl.float32)
        tl.store(out + row * COLUMNS + column, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _backward(gate_up, weights, ends, grad_out, grad, grad_weights, EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """grad [n, 2 * COLUMNS]: of gate, then of up; grad_weights [n], 0 for rows that are not used. One program: a row."""
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(ends + EXPERTS - 1):
        column, ok, gate, up = _gate_and_up(gate_up, row, COLUMNS, BLOCK)
        given = tl.load(grad_out + row * COLUMNS + column, mask=ok, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        activated = gate * sigmoid
        tl.store(grad_weights + row, tl.sum(given * activated * up, axis=0).to(grad_weights.dtype.element_ty))
        given *= tl.load(weights + row).to(tl.float32)
        of_gate = given * sigmoid * (1.0 + gate * (1.0 - sigmoid)) * up
        tl.store(grad + row * (2 * COLUMNS) + column, of_gate.to(grad.dtype.element_ty), mask=ok)
        tl.store(grad + row * (2 * COLUMNS) + COLUMNS + column, (given * activated).to(grad.dtype.element_ty), mask=ok)
    else:
        tl.store(grad_weights + row, 0.0)


class _ExpertSwiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up, weights, ends):
        gate_up, weights, columns = gate_up.contiguous(), weights.contiguous(), gate_up.shape[1] // 2
        out = gate_up.new_empty(len(gate_up), columns)
        if out.numel():
            block = triton.next_power_of_2(columns)
            _forward[(len(out),)](gate_up, weights, ends, out, EXPERTS=len(ends), COLUMNS=columns, BLOCK=block, num_warps=WARPS)
        ctx.save_for_backward(gate_up, weights, ends)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        gate_up, weights, ends = ctx.saved_tensors
        columns, grad, grad_weights = gate_up.shape[1] // 2, torch.empty_like(gate_up), torch.empty_like(weights)
        if grad.numel():
            sizes = dict(EXPERTS=len(ends), COLUMNS=columns, BLOCK=triton.next_power_of_2(columns))
            _backward[(len(grad),)](gate_up, weights, ends, grad_out.contiguous(), grad, grad_weights, **sizes, num_warps=WARPS)
        return grad, grad_weights, None


def expert_swiglu(gate_up: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """gate_up [n, 2 * f], gate and then up, weights [n], ends int32 [experts] -> weight * silu(gate) * up [n, f]; not set behind the last
    of `ends`, where gradients are not read."""
    return _ExpertSwiglu.apply(gate_up, weights, ends)
