"""Weight gradients of all experts of a layer, added to fp32 buffers by the matrix product itself.

PyTorch's grouped product writes them in bf16, from where they are read and added. They are larger than all else that a layer of experts
moves: of A3B 1.2 GB in bf16 and 2.4 GB in fp32 for 8192 tokens, so the addition takes about as long as the product. Products are
accumulated in fp32, as in PyTorch's, and not rounded to bf16 before the addition.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK_OUT, BLOCK_IN, BLOCK_ROWS, WARPS, STAGES = 128, 128, 64, 8, 4
"""Of a program's tile: rows and columns of a weight, rows of the tokens at once; its warps, and loads in flight."""


@triton.jit
def _add(
    gradient, x, ends, buffer, OUT: tl.constexpr, IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """buffer [experts, OUT, IN] += gradient [n, OUT] transposed times x [n, IN], over the rows of each expert. One program: a tile."""
    expert, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    tiles_in: tl.constexpr = (IN + BLOCK_IN - 1) // BLOCK_IN
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert)
    if start < end:
        out = tile // tiles_in * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        into = tile % tiles_in * BLOCK_IN + tl.arange(0, BLOCK_IN)
        total = tl.zeros([BLOCK_OUT, BLOCK_IN], dtype=tl.float32)
        for first in range(start, end, BLOCK_ROWS):
            row = first + tl.arange(0, BLOCK_ROWS)
            used = (row < end)[:, None]
            place = row.to(tl.int64)[:, None]
            left = tl.load(gradient + place * OUT + out[None, :], mask=used & (out < OUT)[None, :], other=0.0)
            right = tl.load(x + place * IN + into[None, :], mask=used & (into < IN)[None, :], other=0.0)
            total = tl.dot(tl.trans(left), right, total)
        at = buffer + expert * (OUT * IN) + out[:, None] * IN + into[None, :]
        ok = (out < OUT)[:, None] & (into < IN)[None, :]
        tl.store(at, tl.load(at, mask=ok) + total, mask=ok)


def add_gradients(gradient: Tensor, x: Tensor, ends: Tensor, buffer: Tensor) -> None:
    """gradient [n, out] and x [n, in] of rows that end at `ends` (int32 [experts]) for each expert; added to buffer fp32 [experts, out,
    in]."""
    experts, out, into = buffer.shape
    assert gradient.is_contiguous() and x.is_contiguous() and buffer.is_contiguous()
    grid = (triton.cdiv(out, BLOCK_OUT) * triton.cdiv(into, BLOCK_IN), experts)
    _add[grid](
        gradient, x, ends, buffer, OUT=out, IN=into, BLOCK_OUT=BLOCK_OUT, BLOCK_IN=BLOCK_IN, BLOCK_ROWS=BLOCK_ROWS, num_warps=WARPS,
        num_stages=STAGES,
    )  # fmt: skip
