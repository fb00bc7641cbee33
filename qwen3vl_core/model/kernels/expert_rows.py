"""Rows of tokens for their experts, and their sums for the tokens, each in one pass over memory.

PyTorch writes the rows of all experts of a token before it adds them up, and reads them again; these kernels read them once. Rows that
no expert uses, behind the last bound, are neither read nor written. Sums are fp32, in the order of the places, and rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 4
"""Columns of a row that a program moves, and its warps."""


@triton.jit
def _pick(rows, token, ends, out, EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """out [n, COLUMNS]: row token[i] of rows at i, up to the last of ends [EXPERTS]. One program: BLOCK columns of a row."""
    blocks: tl.constexpr = (COLUMNS + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    if row < tl.load(ends + EXPERTS - 1):
        column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        ok = column < COLUMNS
        values = tl.load(rows + tl.load(token + row) * COLUMNS + column, mask=ok)
        tl.store(out + row * COLUMNS + column, values, mask=ok)


@triton.jit
def _sum(rows, places, out, PLACES: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """out [t, COLUMNS]: the sum of the rows at places [t, PLACES], -1 for none. One program: BLOCK columns of a token."""
    blocks: tl.constexpr = (COLUMNS + BLOCK - 1) // BLOCK
    token = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for number in tl.static_range(PLACES):
        place = tl.load(places + token * PLACES + number)
        end = tl.where(place >= 0, COLUMNS, 0)
        total += tl.load(rows + place * COLUMNS + column, mask=column < end, other=0.0).to(tl.float32)
    tl.store(out + token * COLUMNS + column, total.to(out.dtype.element_ty), mask=column < COLUMNS)


def _block(columns: int) -> int:
    return min(BLOCK, triton.next_power_of_2(columns))


def pick(rows: Tensor, token: Tensor, ends: Tensor) -> Tensor:
    """rows [t, h], token int64 [n], ends int32 [experts] -> [n, h], row token[i] at i; not set behind the last of `ends`."""
    rows, columns = rows.contiguous(), rows.shape[1]
    out, block = rows.new_empty(len(token), columns), _block(columns)
    if out.numel():
        grid = (len(token) * triton.cdiv(columns, block),)
        _pick[grid](rows, token, ends, out, EXPERTS=len(ends), COLUMNS=columns, BLOCK=block, num_warps=WARPS)
    return out


def sums(rows: Tensor, places: Tensor) -> Tensor:
    """rows [n, h], places int64 [t, k], -1 for none -> [t, h], the sum of each token's rows."""
    rows, columns = rows.contiguous(), rows.shape[1]
    out, block = rows.new_empty(len(places), columns), _block(columns)
    if out.numel():
        grid = (len(places) * triton.cdiv(columns, block),)
        _sum[grid](rows, places, out, PLACES=places.shape[1], COLUMNS=columns, BLOCK=block, num_warps=WARPS)
    return out
