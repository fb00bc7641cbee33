"""The global gradient norm without a GPU synchronisation: Megatron's `ChainedOptimizer.get_grad_norm` in two halves."""

from __future__ import annotations

import math
from typing import Any

from qwen3vl_core.model import cpu

import torch
import torch.distributed as dist
from megatron.core.optimizer.clip_grads import l2_norm_impl, multi_tensor_applier
from torch import Tensor


def _gradients(optimizer: Any) -> list[Tensor]:
    """This rank's gradients, none counted on two ranks; Megatron-Core gave the method another name in 0.19."""
    name = "get_grads_for_grad_norm"
    gradients = getattr(optimizer, name if hasattr(optimizer, name) else "get_main_grads_for_grad_norm")()
    # the GPU's kernel sums squares in fp32; Megatron's own, for a CPU, rounds the norm of a bf16 gradient to bf16
    return [gradient.float() for gradient in gradients] if cpu.on_cpu() else gradients


def squared_norms(optimizer: Any) -> Tensor:
    """fp32 [optimizers]: squared gradient norm of each optimizer of a `ChainedOptimizer`, summed over the ranks that share it.

    Call `prepare_grads` first.
    """
    optimizers = optimizer.chained_optimizers
    if len(optimizers) > 1 and optimizer.grads_states_parallel_group_is_shared():
        gradients = [gradient for each in optimizers for gradient in _gradients(each)]
        groups = [(gradients, optimizer.get_grad_stats_parallel_group())]
    else:
        groups = [(_gradients(each), each.get_grad_stats_parallel_group()) for each in optimizers]
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
    """The global norm from the squared norm of each optimizer."""
    norms = [square ** (1.0 / 2.0) for square in squares]
    return norms[0] if len(norms) == 1 else math.sqrt(sum(norm**2 for norm in norms))
