"""The transforms of the name map on real tensors. Each is a permutation: nothing is rounded, the inverse is exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3vl_core.checkpoint.name_map import Region


class Span(NamedTuple):
    """Rows that are contiguous in both layouts."""

    tensor: int
    """Which of the region's Hugging Face tensors."""
    row: int
    """First row in that tensor."""
    at: int
    """First row in the region's box."""
    rows: int


def spans(region: Region) -> Iterator[Span]:
    """The rows of a region's box, in order, and their position in Hugging Face's tensors. Not for `transposed`."""
    if region.transform in ("copy", "rows"):
        at = 0
        for i, shape in enumerate(region.hf_shapes):
            yield Span(i, 0, at, shape[0])
            at += shape[0]
    elif region.transform == "groups":
        counts = [shape[0] // region.groups for shape in region.hf_shapes]
        at = 0
        for group in range(region.groups):
            for i, rows in enumerate(counts):
                yield Span(i, group * rows, at, rows)
                at += rows
    elif region.transform == "heads":
        dim = region.hf_shapes[0][0] // (3 * region.groups)
        for head in range(region.groups):
            for part in range(3):
                yield Span(0, (part * region.groups + head) * dim, (head * 3 + part) * dim, dim)
    else:
        raise AssertionError(region.transform)


def box_shape(region: Region) -> tuple[int, ...]:
    """The shape of a region's box without the leading layer and expert axes: rows first."""
    lead = len(region.size) - len(region.hf_shapes[0])
    return region.size[lead:]


def rows_of(region: Region) -> tuple[int, int]:
    """(rows, elements in a row) of a region's box."""
    shape = box_shape(region)
    return shape[0], math.prod(shape[1:])


def to_megatron(region: Region, tensors: list[Tensor]) -> Tensor:
    """The Hugging Face tensors of a region (one expert's slices of stacked ones) -> its box, shape `region.size`."""
    if region.transform == "copy":
        (box,) = tensors
    elif region.transform == "transposed":
        box = tensors[0].t()
    elif region.transform == "rows":
        box = torch.cat(tensors)
    elif region.transform == "groups":
        # [kv heads, (query heads of the group, key, value) * dim, hidden]
        box = torch.cat([t.view(region.groups, -1, t.shape[-1]) for t in tensors], dim=1)
    else:
        (t,) = tensors
        box = t.view(3, region.groups, -1, *t.shape[1:]).transpose(0, 1)
    return box.reshape(region.size)


def to_hf(region: Region, box: Tensor) -> list[Tensor]:
    """The inverse: a region's box -> its Hugging Face tensors (or slices of them), in the order of `region.hf`."""
    if region.transform == "copy":
        return [box.reshape(region.hf_shapes[0])]
    if region.transform == "transposed":
        return [box.reshape(box_shape(region)).t().contiguous()]
    if region.transform == "rows":
        return list(box.reshape(box_shape(region)).split([shape[0] for shape in region.hf_shapes]))
    if region.transform == "groups":
        rows = [shape[0] // region.groups for shape in region.hf_shapes]
        parts = box.reshape(region.groups, sum(rows), region.size[-1]).split(rows, dim=1)
        return [part.reshape(shape) for part, shape in zip(parts, region.hf_shapes, strict=True)]
    (shape,) = region.hf_shapes
    by_head = box.reshape(region.groups, 3, shape[0] // (3 * region.groups), *shape[1:])
    return [by_head.transpose(0, 1).reshape(shape)]
