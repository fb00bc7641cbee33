"""`Structure`: all inputs of a forward pass on a micro batch except pixels and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3vl_core.sizes import Architecture
from qwen3vl_core.structure.buckets import (
    COARSE,
    COUNTS,
    LEAST_COUNT,
    LEAST_MAX_SEQLEN,
    LEAST_TRAINED,
    bucket,
    power_of_two_bucket,
    round_up,
)
from qwen3vl_core.structure.context_parallel import token_index
from qwen3vl_core.structure.picture_shares import frame_lengths, picture_shares
from qwen3vl_core.structure.positions import mrope_positions, packed_positions, vision_coordinates
from qwen3vl_core.structure.right_padding import RightPadding

IGNORED = -100
"""Label of a position that is not trained (the default ignore_index of torch's cross entropy)."""


@dataclass(frozen=True)
class VisionStructure:
    """The pictures of a micro batch, then its videos. P: patches that this rank encodes, padded to a bucket if buckets are used."""

    coordinates: Tensor
    """int32 [P, 2]: row and column of each patch in its frame."""
    sizes: Tensor
    """int32 [P, 2]: rows and columns of that frame."""
    cu_seqlens: Tensor
    """int32 [frames + 1]: the start of each frame, and the end of the last. Padding forms separate frames."""
    token_indices: Tensor
    """long [shares * P / merge²]: token index of each feature along the flattened [s, b]; s * b for padding. Those of the first context
    parallel rank come first."""
    max_seqlen: int
    """Upper bound of the patches of a frame."""
    frames: tuple[int, ...]
    """Patches of each frame."""
    shares: int = 1
    """Context parallel ranks that each encode a share of the frames (`structure.picture_shares`) and gather the features."""

    def to(self, device: torch.device | str) -> VisionStructure:
        """The same structure on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: value.to(device) for name, value in moved.items()})


@dataclass(frozen=True)
class Structure:
    """A micro batch of b rows of s tokens, on the host or on a device. Rows are padded at their end."""

    input_ids: Tensor
    """long [b, s]."""
    position_ids: Tensor
    """long [3, b, s], mRoPE."""
    mask: Tensor | None = None
    """long [b, s], 1 for tokens and 0 for padding: the experts' load balancing ignores padding. None: no padding."""
    cu_seqlens: Tensor | None = None
    """int32 [documents + 1] of a packed row (b is 1): the start of each document, and the end of the last; padded with empty documents."""
    max_seqlen: int = 0
    """Upper bound of the tokens of a document of a packed row."""
    documents: tuple[int, ...] = ()
    """Tokens of each document of a packed row."""
    local: Tensor | None = None
    """long [s / cp]: sequence indices that this context parallel rank holds. None without context parallelism."""
    labels: Tensor | None = None
    """long [b, s] of a training batch, already shifted; IGNORED for untrained tokens."""
    trained: Tensor | None = None
    """long [n]: indices of the trained tokens among this rank's tokens of a row (b is 1), padded with 0, if logits are computed for
    these only."""
    trained_labels: Tensor | None = None
    """long [1, n]: their labels; IGNORED for padding."""
    vision: VisionStructure | None = None
    """None for text alone."""
    right_padding: RightPadding | None = None
    """How left-padded rows were shifted."""

    @property
    def loss_labels(self) -> Tensor:
        """Labels of this rank's tokens for which a training batch computes a loss: [1, n] or [b, s / cp]."""
        labels = self.labels if self.trained is None else self.trained_labels
        assert labels is not None
        return labels if self.trained is not None or self.local is None else labels[:, self.local]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name."""
        parts = {"": self, "vision.": self.vision, "right_padding.": self.right_padding}
        named = {prefix + f.name: getattr(part, f.name) for prefix, part in parts.items() if part is not None for f in fields(part)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def with_tensors(self, named: Mapping[str, Tensor | None]) -> Structure:
        """The same structure with other tensors under the names of `tensors`."""

        def with_prefix(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}

        own: dict[str, Any] = {name: value for name, value in named.items() if "." not in name}
        vision = None if self.vision is None else replace(self.vision, **with_prefix("vision."))
        right_padding = None if self.right_padding is None else replace(self.right_padding, **with_prefix("right_padding."))
        return replace(self, **own, vision=vision, right_padding=right_padding)

    def mapped(self, change: Callable[[Tensor], Tensor | None]) -> Structure:
        """The same structure with each of `tensors` changed."""
        return self.with_tensors({name: change(value) for name, value in self.tensors().items()})

    def to(self, device: torch.device | str) -> Structure:
        """The same structure on a device; from pinned memory the copy does not block the host."""
        return self.mapped(lambda value: value.to(device, non_blocking=True))

    def shape(self) -> tuple[Any, ...]:
        """Key of a CUDA graph captured for this micro batch: all that it depends on except the tensors' values."""
        limits = (self.max_seqlen, self.vision.max_seqlen if self.vision else 0)
        return *((name, tuple(value.shape)) for name, value in sorted(self.tensors().items())), *limits


@dataclass(frozen=True)
class StructureRules:
    """How the batches of a run become structures."""

    architecture: Architecture
    length_multiple: int = 1
    """The length of a row, or of each document of a packed row, is a multiple of this."""
    least_length: int = 0
    """Rows are padded to at least this many tokens."""
    cp_size: int = 1
    cp_rank: int = 0
    buckets: bool = False
    """Round sizes up to buckets, join rows into one packed row, and compute logits of trained tokens only, as CUDA graphs need."""
    seq_length: int = 0
    """Target length of packed rows."""
    equal_rows: bool = False
    """Every packed row is exactly `seq_length` tokens, rounded up: ranks that share experts gather each other's."""
    all_logits: bool = False
    """Compute the logits of every token, also with `buckets`; for measuring."""


def vision_token_indices(ids: Tensor, a: Architecture) -> tuple[Tensor, Tensor]:
    """Indices of the picture tokens and of the video tokens of ids [b, s] along the flattened [s, b], in the order of their features."""
    batch = ids.shape[0]
    rows_columns = [(ids == token).nonzero(as_tuple=True) for token in (a.image_token_id, a.video_token_id)]
    pictures, videos = (columns * batch + rows for rows, columns in rows_columns)
    return pictures, videos


def vision_structure(
    a: Architecture,
    ids: Tensor,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    *,
    buckets: bool = False,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> VisionStructure | None:
    """Made on the host, from right-padded ids [b, s] and the grids [n, 3] of pictures and videos; None for text alone.

    cp_size, cp_rank: the context parallel ranks that share the frames, and this one. Raises ValueError when tokens and grids do not match.
    """
    grids = [None if grid is None or not len(grid) else grid.cpu() for grid in (image_grid_thw, video_grid_thw)]
    if all(grid is None for grid in grids):
        return None
    merge = a.vision.spatial_merge_size**2
    end = ids.numel()
    coordinates, sizes = [], []
    frames: list[list[int]] = [[] for _ in range(cp_size)]
    indices: list[list[Tensor]] = [[] for _ in range(cp_size)]
    for grid, token_indices in zip(grids, vision_token_indices(ids.cpu(), a), strict=True):
        features = 0 if grid is None else int(grid.prod(-1).sum()) // merge
        if token_indices.numel() != features:
            raise ValueError(f"{token_indices.numel()} vision tokens in input_ids, but {features} features")
        if grid is None:
            continue
        shares = picture_shares(frame_lengths(grid), cp_size, buckets=buckets)
        for rank, share in enumerate(shares):
            frames[rank] += share.frames
            own = token_indices[share.first // merge : share.end // merge]
            indices[rank].append(F.pad(own, (0, sum(share.frames) // merge - len(own)), value=end))
        share = shares[cp_rank]
        own_patches, padding = slice(share.first, share.end), sum(share.frames) - (share.end - share.first)
        rows_columns = vision_coordinates(grid, a.vision.spatial_merge_size).to(torch.int32)
        coordinates.append(F.pad(rows_columns[own_patches], (0, 0, 0, padding)))
        sizes_of_patches = torch.repeat_interleave(grid[:, 1:], grid.prod(-1), dim=0).to(torch.int32)
        sizes.append(F.pad(sizes_of_patches[own_patches], (0, 0, 0, padding), value=1))
    max_seqlen, cu_seqlens = max(map(max, frames)), F.pad(torch.tensor(frames[cp_rank]).cumsum(0), (1, 0)).to(torch.int32)
    if buckets:
        max_seqlen = power_of_two_bucket(max_seqlen, LEAST_MAX_SEQLEN)
        count = bucket(max(map(len, frames)), LEAST_COUNT, COUNTS)
        cu_seqlens = F.pad(cu_seqlens, (0, count - len(frames[cp_rank])), value=int(cu_seqlens[-1]))
    token_indices = torch.cat([part for of_rank in indices for part in of_rank])
    return VisionStructure(
        torch.cat(coordinates), torch.cat(sizes), cu_seqlens, token_indices, max_seqlen, tuple(frames[cp_rank]), cp_size
    )  # fmt: skip


def _padded_rows(
    rules: StructureRules, ids: Tensor, mask: Tensor | None, labels: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows padded to a length that `rules` allow."""
    padding = round_up(max(ids.shape[1], rules.least_length), rules.length_multiple) - ids.shape[1]
    if not padding:
        return ids, mask, labels
    mask = None if mask is None else F.pad(mask, (0, padding))
    labels = None if labels is None else F.pad(labels, (0, padding), value=IGNORED)
    return F.pad(ids, (0, padding)), mask, labels


def build_structure(
    rules: StructureRules,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    with_vision: bool = True,
) -> Structure:
    """The structure of the Hugging Face processor's outputs, on the host.

    input_ids, attention_mask and labels [b, s]; grids [n, 3] in patches; position_ids [3, b, s] if known; cu_seqlens
    [documents + 1] of a packed row (b is 1), whose attention_mask only marks the tokens that the experts' load balancing ignores.
    with_vision: make `Structure.vision` too. Raises ValueError when tokens and grids do not match.
    """
    if cu_seqlens is None:
        input_ids, attention_mask, labels = _padded_rows(rules, input_ids, attention_mask, labels)
    a, mask, right_padding = rules.architecture, attention_mask, None
    positions_of = partial(
        mrope_positions, image_token_id=a.image_token_id, video_token_id=a.video_token_id, merge_size=a.vision.spatial_merge_size
    )
    if cu_seqlens is not None:
        position_ids = packed_positions(
            input_ids, cu_seqlens, lambda ids, mask: positions_of(ids, mask, image_grid_thw, video_grid_thw)
        )  # fmt: skip
    else:
        right_padding = RightPadding.of(attention_mask)
        if position_ids is None:
            position_ids, _ = positions_of(input_ids, attention_mask, image_grid_thw, video_grid_thw)
        if right_padding is not None:
            assert attention_mask is not None  # it says where the padding is
            position_ids, input_ids, mask = (right_padding.apply(t) for t in (position_ids, input_ids, attention_mask))
            labels = None if labels is None else right_padding.apply(labels)
    documents = () if cu_seqlens is None else tuple(end - start for start, end in pairwise(cu_seqlens.tolist()))
    max_seqlen = max(documents, default=0)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(torch.int32)
        if rules.buckets:
            max_seqlen = min(power_of_two_bucket(max_seqlen, LEAST_MAX_SEQLEN), input_ids.shape[1])
            empty = bucket(len(documents), LEAST_COUNT, COUNTS) - len(documents)
            cu_seqlens = F.pad(cu_seqlens, (0, empty), value=int(cu_seqlens[-1]))
    local = None
    if rules.cp_size > 1:
        local = token_index(input_ids.shape[1], documents or None, rules.cp_size, rules.cp_rank)
    vision = None
    if with_vision:
        vision = vision_structure(
            a, input_ids, image_grid_thw, video_grid_thw, buckets=rules.buckets, cp_size=rules.cp_size, cp_rank=rules.cp_rank
        )  # fmt: skip
    return Structure(
        input_ids, position_ids, mask, cu_seqlens, max_seqlen, documents, local, labels, vision=vision, right_padding=right_padding
    )  # fmt: skip


def select_trained(structure: Structure) -> Structure:
    """Compute logits of the trained tokens only, if they are fewer than this rank's tokens of the row (b is 1)."""
    assert structure.labels is not None  # a training batch
    labels = structure.labels[0] if structure.local is None else structure.labels[0, structure.local]
    trained = (labels != IGNORED).nonzero()[:, 0]
    padding = bucket(max(len(trained), 1), LEAST_TRAINED, COARSE) - len(trained)
    if len(trained) + padding >= len(labels):
        return structure
    trained_labels = F.pad(labels[trained], (0, padding), value=IGNORED)[None]
    return replace(structure, trained=F.pad(trained, (0, padding)), trained_labels=trained_labels)
