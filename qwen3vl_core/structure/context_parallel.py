"""Context parallelism: which tokens of a sequence each rank holds.

The sequence is split into 2n parts and rank r of n holds parts r and 2n-1-r, so that causal attention costs the same on every
rank. In a packed sequence each document is split this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def document_index(length: int, size: int, rank: int) -> Tensor:
    """Indices of one document's tokens that `rank` of `size` holds: [length / size], ascending in each half.

    Raises ValueError when the document cannot be split.
    """
    if length % (2 * size):
        raise ValueError(f"{length} tokens cannot be split into 2 x {size} equal parts: pad to {-(-length // (2 * size)) * 2 * size}")
    chunks = torch.arange(length).chunk(2 * size)
    return torch.cat((chunks[rank], chunks[2 * size - 1 - rank]))


def token_index(length: int, documents: Sequence[int] | None, size: int, rank: int) -> Tensor:
    """Sequence indices that `rank` of `size` holds: [length / size].

    documents: tokens of each document of a packed sequence.
    """
    if not documents:
        return document_index(length, size, rank)
    starts = accumulate(documents, initial=0)
    return torch.cat([document_index(tokens, size, rank) + start for start, tokens in zip(starts, documents, strict=False)])


def gathered_order(length: int, documents: Sequence[int] | None, size: int) -> Tensor:
    """Sequence index of each token after concatenating the parts of all ranks: [length]."""
    return torch.cat([token_index(length, documents, size, rank) for rank in range(size)])
