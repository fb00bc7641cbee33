"""Context parallelism: which tokens of a sequence each rank holds.

The sequence is cut into 2n parts and rank r of n holds part r and part 2n-1-r, so that every rank has as many earlier
tokens to attend to as any other. In a packed sequence each document is cut so.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def document_index(length: int, size: int, rank: int) -> Tensor:
    """Places of one document's tokens that `rank` of `size` holds: [length / size], ascending in each half.

    Raises ValueError when the document cannot be cut.
    """
    if length % (2 * size):
        raise ValueError(f"{length} tokens cannot be cut into 2 x {size} equal parts: pad to {-(-length // (2 * size)) * 2 * size}")
    parts = torch.arange(length).chunk(2 * size)
    return torch.cat((parts[rank], parts[2 * size - 1 - rank]))


def token_index(length: int, cu_seqlens: Tensor | None, size: int, rank: int) -> Tensor:
    """Places along the sequence that `rank` of `size` holds: [length / size].

    cu_seqlens [documents + 1]: where each document of a packed sequence begins, and the end of the last.
    """
    if cu_seqlens is None:
        return document_index(length, size, rank)
    bounds = cu_seqlens.tolist()
    return torch.cat([document_index(end - start, size, rank) + start for start, end in pairwise(bounds)])


def gathered_order(length: int, cu_seqlens: Tensor | None, size: int) -> Tensor:
    """Places, in the whole sequence, of what the ranks' parts hold when they are put one after the other: [length]."""
    return torch.cat([token_index(length, cu_seqlens, size, rank) for rank in range(size)])
