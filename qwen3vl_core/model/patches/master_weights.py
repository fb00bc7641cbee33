"""The half-precision weights from their fp32 masters in one call after every step of the optimizer.

Upstream: `_multi_tensor_copy_this_to_that` has no form for bf16 and copies weight by weight, which costs the host more than the GPU.
Unnecessary from: unknown; 0.19.2 still copies them one by one. The distributed optimizer copies its own way.
"""

from __future__ import annotations

from functools import partial

import torch
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params


def patch_copy_of_masters(optimizer: object) -> None:
    """Patch this one optimizer; nothing if it is of another kind."""
    if isinstance(optimizer, Float16OptimizerWithFloat16Params):
        optimizer._copy_main_params_to_model_params = partial(_copy_masters, optimizer)


def _copy_masters(optimizer: Float16OptimizerWithFloat16Params) -> None:
    weights, masters = optimizer._get_model_and_main_params_data_float16()
    torch._foreach_copy_(weights, masters)
