"""Reduces per-token losses to the loss of a micro batch."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3vl_core.structure.micro_batch import IGNORED


def token_loss(labels: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sum over the trained tokens, their count, both as float64 [2] for reporting); Megatron divides by the count of the global batch."""
    trained = labels != IGNORED
    total = (losses.float() * trained).sum()
    count = trained.sum()
    return total, count.to(torch.int), torch.stack((total.detach().double(), count.double()))
