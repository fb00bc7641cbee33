"""RMSNorm of query and key and their rotary embedding in one kernel, forward and backward.

The kernel reads the output of the fused projection in Megatron's layout, heads in groups of q ... q k v, and writes query, key and
value; the backward kernel writes the gradient of the projection's output. So no split, copy or concatenation is left.

Rounding is that of the modules it replaces: Transformer Engine's RMSNorm computes in fp32 and rounds its output once, its rotary
embedding computes in fp32 and rounds once, and so do their gradients. What differs is the order in which the squares of a head
are summed, and in which the gradients of the norms' weights are: in fp32 over fixed blocks of tokens, so that a repeated call gives
the same bits. Both halves of the angles must be equal, as those of `model/mrope.py` are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_PROGRAMS = 2048
"""Most programs of the backward kernel, each of which leaves one partial gradient of the norms' weights."""
FORWARD, BACKWARD = (16, 4), (8, 4)
"""Query heads of a group that a program computes at once (tokens x heads), and its warps. The backward kernel needs twice the registers."""


@triton.jit
def _rotation(angles, row, row_ok, column, column_ok, batch, stride_s, stride_b):
    """cos and sin [rows, 1, columns] of tokens `row` of [s, b]."""
    row = row.to(tl.int64)
    at = (row // batch) * stride_s + (row % batch) * stride_b
    angle = tl.load(angles + at[:, None, None] + column[None, None, :], mask=row_ok[:, None, None] & column_ok[None, None, :], other=0.0)
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def _normed(first, second, weight_first, weight_second, eps, size, rounded: tl.constexpr):
    """RMSNorm over both halves of each head [rows, heads, columns], rounded to the type `rounded`."""
    squares = tl.sum(first * first + second * second, axis=2)
    scale = (1.0 / tl.sqrt_rn(squares / size + eps))[:, :, None]
    first = (weight_first * (first * scale)).to(rounded).to(tl.float32)
    second = (weight_second * (second * scale)).to(rounded).to(tl.float32)
    return first, second


@triton.jit
def _normed_gradient(first, second, grad_first, grad_second, weight_first, weight_second, eps, size):
    """Gradients of the norm's input, and of its weight by element."""
    squares = tl.sum(first * first + second * second, axis=2)
    scale = (1.0 / tl.sqrt_rn(squares / size + eps))[:, :, None]
    first, second = first * scale, second * scale
    of_weight_first, of_weight_second = grad_first * first, grad_second * second
    grad_first, grad_second = grad_first * weight_first, grad_second * weight_second
    mean = (tl.sum(grad_first * first + grad_second * second, axis=2) / size)[:, :, None]
    return scale * (grad_first - mean * first), scale * (grad_second - mean * second), of_weight_first, of_weight_second


@triton.jit(do_not_specialize=["rows", "batch", "stride_s", "stride_b"])
def _forward(
    qkv, angles, q_weight, k_weight, query, key, value,
    rows, batch, stride_s, stride_b, eps,
    GROUPS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_HEADS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """HEADS: query heads of a group; HALF: half of a head. One program: ROWS tokens, all heads."""
    size: tl.constexpr = 2 * HALF
    rounded: tl.constexpr = query.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, COLUMNS)
    row_ok, column_ok = row < rows, column < HALF
    cos, sin = _rotation(angles, row, row_ok, column, column_ok, batch, stride_s, stride_b)
    one_ok = row_ok[:, None, None] & column_ok[None, None, :]
    ok = one_ok & (head < HEADS)[None, :, None]
    if NORM:
        qw_first = tl.load(q_weight + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
        qw_second = tl.load(q_weight + HALF + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
        kw_first = tl.load(k_weight + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
        kw_second = tl.load(k_weight + HALF + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
    # 64 bits for the first token of the block only
    start = (tl.program_id(0) * ROWS).to(tl.int64) * (GROUPS * size)
    row = tl.arange(0, ROWS)[:, None, None] * (GROUPS * size)
    in_head = head[None, :, None] * size + column[None, None, :]
    qkv += start * (HEADS + 2)
    query += start * HEADS
    key += start
    value += start
    for group in range(GROUPS):
        q_at = qkv + row * (HEADS + 2) + group * ((HEADS + 2) * size) + in_head
        k_at = qkv + row * (HEADS + 2) + group * ((HEADS + 2) * size) + HEADS * size + column[None, None, :]
        q_first = tl.load(q_at, mask=ok, other=0.0).to(tl.float32)
        q_second = tl.load(q_at + HALF, mask=ok, other=0.0).to(tl.float32)
        k_first = tl.load(k_at, mask=one_ok, other=0.0).to(tl.float32)
        k_second = tl.load(k_at + HALF, mask=one_ok, other=0.0).to(tl.float32)
        v_first = tl.load(k_at + size, mask=one_ok, other=0.0)
        v_second = tl.load(k_at + size + HALF, mask=one_ok, other=0.0)
        if NORM:
            q_first, q_second = _normed(q_first, q_second, qw_first, qw_second, eps, size, rounded)
            k_first, k_second = _normed(k_first, k_second, kw_first, kw_second, eps, size, rounded)
        q_to = query + row * HEADS + group * (HEADS * size) + in_head
        one_to = row + group * size + column[None, None, :]
        tl.store(q_to, (q_first * cos - q_second * sin).to(rounded), mask=ok)
        tl.store(q_to + HALF, (q_second * cos + q_first * sin).to(rounded), mask=ok)
        tl.store(key + one_to, (k_first * cos - k_second * sin).to(rounded), mask=one_ok)
        tl.store(key + one_to + HALF, (k_second * cos + k_first * sin).to(rounded), mask=one_ok)
        tl.store(value + one_to, v_first, mask=one_ok)
        tl.store(value + one_to + HALF, v_second, mask=one_ok)


@triton.jit(do_not_specialize=["rows", "batch", "stride_s", "stride_b"])
def _backward(
    qkv, angles, q_weight, k_weight, grad_query, grad_key, grad_value, grad_qkv, partials,
    rows, batch, stride_s, stride_b, eps,
    GROUPS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_HEADS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the projection's output, and to `partials` [programs, 2, 2 * HALF] those of both norms' weights."""
    size: tl.constexpr = 2 * HALF
    rounded: tl.constexpr = grad_qkv.dtype.element_ty
    head = tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, COLUMNS)
    column_ok = column < HALF
    in_head = head[None, :, None] * size + column[None, None, :]
    if NORM:
        qw_first = tl.load(q_weight + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
        qw_second = tl.load(q_weight + HALF + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
        kw_first = tl.load(k_weight + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
        kw_second = tl.load(k_weight + HALF + column, mask=column_ok, other=0.0).to(tl.float32)[None, None, :]
        q_sum_first = tl.zeros((ROWS, BLOCK_HEADS, COLUMNS), dtype=tl.float32)
        q_sum_second = tl.zeros((ROWS, BLOCK_HEADS, COLUMNS), dtype=tl.float32)
        k_sum_first = tl.zeros((ROWS, 1, COLUMNS), dtype=tl.float32)
        k_sum_second = tl.zeros((ROWS, 1, COLUMNS), dtype=tl.float32)
    for step in range(STEPS):
        first_row = (tl.program_id(0) * STEPS + step) * ROWS
        row = first_row + tl.arange(0, ROWS)
        row_ok = row < rows
        cos, sin = _rotation(angles, row, row_ok, column, column_ok, batch, stride_s, stride_b)
        one_ok = row_ok[:, None, None] & column_ok[None, None, :]
        ok = one_ok & (head < HEADS)[None, :, None]
        start = first_row.to(tl.int64) * (GROUPS * size)
        row = tl.arange(0, ROWS)[:, None, None] * (GROUPS * size)
        if NORM:
            from_qkv = qkv + start * (HEADS + 2)
        to_qkv = grad_qkv + start * (HEADS + 2)
        from_query, from_key, from_value = grad_query + start * HEADS, grad_key + start, grad_value + start
        for group in range(GROUPS):
            q_at = row * (HEADS + 2) + group * ((HEADS + 2) * size) + in_head
            k_at = row * (HEADS + 2) + group * ((HEADS + 2) * size) + HEADS * size + column[None, None, :]
            q_from = from_query + row * HEADS + group * (HEADS * size) + in_head
            one_from = row + group * size + column[None, None, :]
            gq_first = tl.load(q_from, mask=ok, other=0.0).to(tl.float32)
            gq_second = tl.load(q_from + HALF, mask=ok, other=0.0).to(tl.float32)
            gk_first = tl.load(from_key + one_from, mask=one_ok, other=0.0).to(tl.float32)
            gk_second = tl.load(from_key + one_from + HALF, mask=one_ok, other=0.0).to(tl.float32)
            gv_first = tl.load(from_value + one_from, mask=one_ok, other=0.0)
            gv_second = tl.load(from_value + one_from + HALF, mask=one_ok, other=0.0)
            if NORM:
                q_first = tl.load(from_qkv + q_at, mask=ok, other=0.0).to(tl.float32)
                q_second = tl.load(from_qkv + q_at + HALF, mask=ok, other=0.0).to(tl.float32)
                k_first = tl.load(from_qkv + k_at, mask=one_ok, other=0.0).to(tl.float32)
                k_second = tl.load(from_qkv + k_at + HALF, mask=one_ok, other=0.0).to(tl.float32)
            # rotated back, and rounded as the norm's output gradient would be
            uq_first = (gq_first * cos + gq_second * sin).to(rounded)
            uq_second = (gq_second * cos - gq_first * sin).to(rounded)
            uk_first = (gk_first * cos + gk_second * sin).to(rounded)
            uk_second = (gk_second * cos - gk_first * sin).to(rounded)
            if NORM:
                nq_first, nq_second, wq_first, wq_second = _normed_gradient(
                    q_first, q_second, uq_first.to(tl.float32), uq_second.to(tl.float32), qw_first, qw_second, eps, size
                )
                nk_first, nk_second, wk_first, wk_second = _normed_gradient(
                    k_first, k_second, uk_first.to(tl.float32), uk_second.to(tl.float32), kw_first, kw_second, eps, size
                )
                q_sum_first += wq_first
                q_sum_second += wq_second
                k_sum_first += wk_first
                k_sum_second += wk_second
                uq_first, uq_second = nq_first.to(rounded), nq_second.to(rounded)
                uk_first, uk_second = nk_first.to(rounded), nk_second.to(rounded)
            tl.store(to_qkv + q_at, uq_first, mask=ok)
            tl.store(to_qkv + q_at + HALF, uq_second, mask=ok)
            tl.store(to_qkv + k_at, uk_first, mask=one_ok)
            tl.store(to_qkv + k_at + HALF, uk_second, mask=one_ok)
            tl.store(to_qkv + k_at + size, gv_first, mask=one_ok)
            tl.store(to_qkv + k_at + size + HALF, gv_second, mask=one_ok)
    if NORM:
        to = partials + tl.program_id(0) * (2 * size) + column
        tl.store(to, tl.sum(tl.sum(q_sum_first, axis=0), axis=0), mask=column_ok)
        tl.store(to + HALF, tl.sum(tl.sum(q_sum_second, axis=0), axis=0), mask=column_ok)
        tl.store(to + size, tl.sum(tl.sum(k_sum_first, axis=0), axis=0), mask=column_ok)
        tl.store(to + size + HALF, tl.sum(tl.sum(k_sum_second, axis=0), axis=0), mask=column_ok)


class _Shape:
    """Sizes of [s, b, groups * (heads + 2) * size] and of the blocks that a kernel computes."""

    def __init__(self, qkv: Tensor, groups: int, size: int, angles: Tensor) -> None:
        self.length, self.batch, width = qkv.shape
        self.rows, self.groups, self.size = self.length * self.batch, groups, size
        self.heads = width // (groups * size) - 2
        if width != groups * (self.heads + 2) * size or self.heads < 1 or size % 2:
            raise ValueError(f"a projection of width {width} does not hold {groups} groups of heads of {size}")
        if angles.shape[0] != self.length or angles.shape[1] not in (1, self.batch) or angles.shape[2:] != (1, size):
            raise ValueError(f"angles {list(angles.shape)} do not fit [{self.length}, {self.batch} or 1, 1, {size}]")
        self.strides = angles.stride(0), angles.stride(1) if angles.shape[1] > 1 else 0

    def constants(self, norm: bool, heads_at_once: int, warps: int) -> dict[str, Any]:
        block = triton.next_power_of_2(self.heads)
        return dict(
            GROUPS=self.groups, HEADS=self.heads, HALF=self.size // 2, NORM=norm, ROWS=max(1, heads_at_once // block),
            BLOCK_HEADS=block, COLUMNS=triton.next_power_of_2(self.size // 2), num_warps=warps,
        )  # fmt: skip


class _QKRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, angles, q_weight, k_weight, eps, groups, size):
        qkv = qkv.contiguous()
        s, norm = _Shape(qkv, groups, size, angles), q_weight is not None
        query = qkv.new_empty(s.length, s.batch, groups * s.heads, size)
        key, value = (qkv.new_empty(s.length, s.batch, groups, size) for _ in range(2))
        constants = s.constants(norm, *FORWARD)
        _forward[(triton.cdiv(s.rows, constants["ROWS"]),)](
            qkv, angles, q_weight, k_weight, query, key, value, s.rows, s.batch, *s.strides, eps, **constants
        )
        # without a norm the gradient does not depend on the input
        ctx.save_for_backward(qkv if norm else None, angles, q_weight, k_weight)
        ctx.shape, ctx.eps, ctx.norm = s, eps, norm
        return query, key, value

    @staticmethod
    def backward(ctx, grad_query, grad_key, grad_value):
        qkv, angles, q_weight, k_weight = ctx.saved_tensors
        s, norm = ctx.shape, ctx.norm
        grad_query, grad_key, grad_value = (grad.contiguous() for grad in (grad_query, grad_key, grad_value))
        grad_qkv = grad_key.new_empty(s.length, s.batch, s.groups * (s.heads + 2) * s.size)
        constants = s.constants(norm, *BACKWARD)
        blocks = triton.cdiv(s.rows, constants["ROWS"])
        steps = triton.next_power_of_2(triton.cdiv(blocks, MOST_PROGRAMS))
        programs = triton.cdiv(blocks, steps)
        partials = torch.empty(programs, 2, s.size, dtype=torch.float32, device=grad_qkv.device) if norm else None
        _backward[(programs,)](
            qkv, angles, q_weight, k_weight, grad_query, grad_key, grad_value, grad_qkv, partials,
            s.rows, s.batch, *s.strides, ctx.eps, STEPS=steps, **constants,
        )  # fmt: skip
        of_weights: tuple[Tensor | None, ...] = (None, None)
        if partials is not None and any(ctx.needs_input_grad[2:4]):
            of_weights = partials.sum(0).to(q_weight.dtype).unbind(0)
        return grad_qkv, None, *of_weights, None, None, None


def qk_rope(
    qkv: Tensor, angles: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *, eps: float, groups: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated query [s, b, heads, size] and key [s, b, groups, size], and value [s, b, groups, size].

    qkv [s, b, groups * (heads of a group + 2) * size]; angles [s, b or 1, 1, size] in fp32, both halves equal; q_weight and
    k_weight [size]: None for no norm. A packed row is one with b = 1. Raises ValueError when shapes do not fit.
    """
    return _QKRope.apply(qkv, angles, q_weight, k_weight, eps, groups, size)
