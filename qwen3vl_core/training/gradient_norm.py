"""The norm of all gradients, without waiting for the GPU: Megatron's `ChainedOptimizer.get_grad_norm` in two halves."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer.clip_grads import l2_norm_impl, multi_tensor_applier
from torch import Tensor


def squared_norms(optimizer: Any) -> Tensor:
    """fp32 [parts]: the square of the norm of each part of a `ChainedOptimizer`'s gradients, added up over the ranks that share it.

    `prepare_grads` comes first.
    """
    parts = optimizer.chained_optimizers
    if len(parts) > 1 and optimizer.grads_states_parallel_group_is_shared():
        joined = [gradient for part in parts for gradient in part.get_main_grads_for_grad_norm()]
        groups = [(joined, optimizer.get_grad_stats_parallel_group())]
    else:
        groups = [(part.get_main_grads_for_grad_norm(), part.get_grad_stats_parallel_group()) for part in parts]
    squares = []
    for gradients, group in groups:
        overflow = torch.zeros(1, dtype=torch.int, device="cuda")
        if gradients:
            norm, _ = multi_tensor_applier(l2_norm_impl, overflow, [gradients], False)
        else:
            norm = torch.zeros(1, dtype=torch.float, device="cuda")
        square = norm**2.0
        dist.all_reduce(square, group=group)
        squares.append(square)
    return torch.cat([square.reshape(1) for square in squares])


def norm_of(squares: list[float]) -> float:
    """The norm of all parts together."""
    norms = [square ** (1.0 / 2.0) for square in squares]
    return norms[0] if len(norms) == 1 else math.sqrt(sum(norm**2 for norm in norms))
