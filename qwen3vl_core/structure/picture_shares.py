"""Context parallelism: which pictures and frames of videos the vision tower of each rank encodes.

Frames attend to themselves only, so each rank encodes a contiguous share of them, about as many patches as the others, and the ranks
gather the features. Pictures are dealt separately from videos, as their patches are separate tensors. Every rank's share is padded to the
same number of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3vl_core.structure.buckets import LEAST_PATCHES, bucket


@dataclass(frozen=True)
class PictureShare:
    """The frames of one rank."""

    first: int
    """Its first patch among those of all ranks."""
    end: int
    frames: tuple[int, ...]
    """Patches of each frame; padding forms separate frames."""


def frame_lengths(grid: Tensor) -> list[int]:
    """Patches of each frame of pictures or videos; grid [n, 3] in patches."""
    return torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0]).tolist()


def picture_shares(lengths: Sequence[int], size: int, *, buckets: bool = False) -> list[PictureShare]:
    """The share of each of `size` ranks in frames of so many patches. buckets: padded to a bucket (`structure.buckets`)."""
    total, before = sum(lengths), 0
    frames: list[list[int]] = [[] for _ in range(size)]
    for length in lengths:
        # the rank in whose equal part of all patches the middle of the frame lies
        frames[(2 * before + length) * size // (2 * total)].append(length)
        before += length
    padded = max(map(sum, frames))
    padded = bucket(padded, LEAST_PATCHES) if buckets else padded
    # attention is quadratic in the frame: padding is split into frames no longer than the longest
    longest, first, shares = max(lengths), 0, []
    for own in frames:
        end = first + sum(own)
        whole, rest = divmod(padded - sum(own), longest)
        shares.append(PictureShare(first, end, (*own, *[longest] * whole, *[rest] * (rest > 0))))
        first = end
    return shares


def own_patches(patches: Tensor, grid: Tensor | None, size: int, rank: int, *, buckets: bool) -> Tensor:
    """The patches [n, width] of `rank`'s share of all patches, padded with zeros; grid [k, 3] as `frame_lengths` takes it.

    Raises ValueError when patches and grid differ in their number.
    """
    if grid is None or not len(grid):
        return patches
    lengths = frame_lengths(grid)
    if sum(lengths) != len(patches):
        raise ValueError(f"grid_thw counts {sum(lengths)} patches, but {len(patches)} are given")
    share = picture_shares(lengths, size, buckets=buckets)[rank]
    padding = sum(share.frames) - (share.end - share.first)
    own = patches[share.first : share.end]
    if padding:
        return F.pad(own, (0, 0, 0, padding))
    # not a view of other ranks' patches, which would be kept and sent with it
    return own.clone() if len(own) < len(patches) else own
