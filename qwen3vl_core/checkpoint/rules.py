"""The three rules of the name map on real tensors. Each is a permutation: nothing is rounded, the way back is exact."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3vl_core.checkpoint.names import Region


def to_megatron(region: Region, tensors: list[Tensor]) -> Tensor:
    """The Hugging Face tensors of a region -> the region's box, shape `region.size`."""
    if region.rule == "copy":
        (box,) = tensors
    elif region.rule == "groups":
        # [kv heads, (query heads of the group, key, value) * dim, hidden]
        box = torch.cat([t.view(region.groups, -1, t.shape[-1]) for t in tensors], dim=1)
    else:
        (t,) = tensors
        box = t.view(3, region.groups, -1, *t.shape[1:]).transpose(0, 1)
    return box.reshape(region.size)


def to_hf(region: Region, box: Tensor) -> list[Tensor]:
    """The way back: a region's box -> its Hugging Face tensors, in the order of `region.hf`."""
    if region.rule == "copy":
        return [box.reshape(region.hf_shapes[0])]
    if region.rule == "groups":
        rows = [shape[0] // region.groups for shape in region.hf_shapes]
        parts = box.reshape(region.groups, sum(rows), region.size[-1]).split(rows, dim=1)
        return [part.reshape(shape) for part, shape in zip(parts, region.hf_shapes, strict=True)]
    (shape,) = region.hf_shapes
    by_head = box.reshape(region.groups, 3, shape[0] // (3 * region.groups), *shape[1:])
    return [by_head.transpose(0, 1).reshape(shape)]
