"""Copies the fp32 master weights to the half-precision weights in one call after every optimizer step.

Upstream: `_multi_tensor_copy_this_to_that` does not support bf16 and copies weight by weight, which takes the host longer than the GPU.
Unnecessary from: unknown; 0.19.2 still copies them one by one. The distributed optimizer has its own copy method.
"""

from __future__ import annotations

from functools import partial

import torch
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params


def patch_copy_of_masters(optimizer: object) -> None:
    """Patch this optimizer instance; does nothing for optimizers of another class."""
    if isinstance(optimizer, Float16OptimizerWithFloat16Params):
        optimizer._copy_main_params_to_model_params = partial(_copy_masters, optimizer)


def _copy_masters(optimizer: Float16OptimizerWithFloat16Params) -> None:
    weights, masters = optimizer._get_model_and_main_params_data_float16()
    torch._foreach_copy_(weights, masters)
