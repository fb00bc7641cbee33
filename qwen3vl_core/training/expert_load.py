"""How evenly the experts are used in a step: figures of the tokens that every expert got, over all micro batches, layers and ranks."""

from __future__ import annotations

from typing import Any

from qwen3vl_core.model.router import expert_tokens

import torch
import torch.distributed as dist
from torch import Tensor


def start(config: Any) -> None:
    """A step begins: set the counts to zero."""
    counts = expert_tokens(config)
    if counts is not None:
        counts.zero_()


def world_counts(config: Any) -> Tensor | None:
    """int64 [layers, experts]: the step's tokens of each expert, without padding, over all ranks; None for a model without experts.

    Each token of a layer is routed by one rank: sequence and context parallel ranks have parts of a row, pipeline stages layers.
    """
    counts = expert_tokens(config)
    if counts is None:
        return None
    counts = counts.clone()
    dist.all_reduce(counts)
    return counts


def figures(counts: Tensor) -> Tensor:
    """float64 [2] of counts [layers, experts]: tokens of the fullest expert over the mean, in the layer where that is largest; and
    the number of experts, of all layers, that got no token."""
    tokens = counts.double()
    means = tokens.mean(1)
    largest = (tokens.amax(1) / means.clamp(min=1e-9)).amax()
    return torch.stack([largest, (counts == 0).sum().double()])
