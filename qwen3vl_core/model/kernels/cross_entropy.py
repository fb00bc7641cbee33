"""Cross entropy over the whole vocabulary, forward and backward, with no fp32 copy of the logits.

Forward reads the logits once and keeps each row's maximum and sum of exponentials; backward reads them again and writes their
gradient. Both compute in fp32; the gradient is rounded once. Megatron's compiled functions compute the same from fp32 exponentials
in memory; sums over the vocabulary are taken in another order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 8
"""Words of the vocabulary that a program computes at once, and its warps."""


@triton.jit
def _forward(logits, targets, losses, maxima, sums, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """One program: a row of logits [rows, VOCABULARY]."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * VOCABULARY
    largest = -float("inf")
    total = 0.0
    for start in range(0, VOCABULARY, BLOCK):
        word = start + tl.arange(0, BLOCK)
        values = tl.load(logits + word, mask=word < VOCABULARY, other=-float("inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(values, axis=0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(values - new), axis=0)
        largest = new
    target = tl.load(logits + tl.load(targets + row)).to(tl.float32)
    # not the logarithm of the whole sum: far from zero it has few digits left
    tl.store(losses + row, tl.log(total) - (target - largest))
    tl.store(maxima + row, largest)
    tl.store(sums + row, total)


@triton.jit
def _backward(logits, targets, maxima, sums, grad_losses, grad, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK words of a row."""
    blocks: tl.constexpr = (VOCABULARY + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    word = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    ok = word < VOCABULARY
    values = tl.load(logits + row * VOCABULARY + word, mask=ok, other=0.0).to(tl.float32)
    probability = tl.exp(values - tl.load(maxima + row)) / tl.load(sums + row)
    target = tl.load(targets + row)
    result = (probability - tl.where(word == target, 1.0, 0.0)) * tl.load(grad_losses + row)
    tl.store(grad + row * VOCABULARY + word, result.to(grad.dtype.element_ty), mask=ok)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets):
        logits, targets = logits.contiguous(), targets.contiguous()
        vocabulary, rows = logits.shape[-1], targets.numel()
        losses, maxima, sums = (torch.empty(targets.shape, dtype=torch.float32, device=logits.device) for _ in range(3))
        if rows:
            _forward[(rows,)](logits, targets, losses, maxima, sums, VOCABULARY=vocabulary, BLOCK=BLOCK, num_warps=WARPS)
        ctx.save_for_backward(logits, targets, maxima, sums)
        return losses

    @staticmethod
    def backward(ctx, grad_losses):
        logits, targets, maxima, sums = ctx.saved_tensors
        grad, rows, vocabulary = torch.empty_like(logits), targets.numel(), logits.shape[-1]
        if rows:
            grid = (rows * triton.cdiv(vocabulary, BLOCK),)
            _backward[grid](
                logits, targets, maxima, sums, grad_losses.contiguous(), grad, VOCABULARY=vocabulary, BLOCK=BLOCK, num_warps=WARPS
            )
        return grad, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [..., vocabulary], targets [...] in its range, which is not checked -> losses [...] in fp32."""
    return _CrossEntropy.apply(logits, targets)
