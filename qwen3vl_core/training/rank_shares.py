"""How much of a global batch each data-parallel rank has, and whether the ranks agree on it."""

from __future__ import annotations

import qwen3vl_core.model  # noqa: F401

from megatron.core import parallel_state

from qwen3vl_core.data.batch import Batch
from qwen3vl_core.errors import WorkError
from qwen3vl_core.training.throughput import patch_count, sample_lengths

COUNTS = ("patches", "tokens", "dealt")
"""Of each data-parallel rank."""


def counts(batches: list[Batch], *, counted: bool) -> list[float]:
    """[patches, tokens, checksum of the deal of each data-parallel rank], zeros but for this one, to be summed over the world.

    counted: whether this rank counts its micro batches, as one of those that have the same; their checksums are those of all.
    """
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    values = [0.0] * (len(COUNTS) * ranks)
    if ranks > 1:
        own = batches if counted else []
        tokens = sum(sum(sample_lengths(batch)) for batch in own)
        values[len(COUNTS) * rank : len(COUNTS) * (rank + 1)] = map(
            float, (sum(map(patch_count, own)), tokens, getattr(batches[0], "dealt", 0))
        )
    return values


def spread(sums: list[float]) -> tuple[float, float] | None:
    """(patches, tokens) of the largest rank over the mean, of the sum of all ranks' `counts`; None with one rank.

    Raises WorkError when ranks have dealt the samples differently: some would be trained twice, others not at all.
    """
    patches, tokens, checksums = (sums[begin :: len(COUNTS)] for begin in range(len(COUNTS)))
    if len(set(checksums)) > 1:
        raise WorkError(
            "the ranks do not agree on which samples belong to which of them: they read the data or its pictures' headers differently; "
            "install the same releases of Pillow, pillow-heif and PyAV on every machine, compare the dataset's copies, or use --no-balance"
        )
    if len(patches) == 1:
        return None
    of_patches, of_tokens = (max(each) * len(each) / sum(each) if sum(each) else 1.0 for each in (patches, tokens))
    return of_patches, of_tokens
