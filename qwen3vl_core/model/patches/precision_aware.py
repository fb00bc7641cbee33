"""The precision-aware distributed optimizer starts with a state that can be saved, and its update needs little memory.

Upstream: Megatron's `init_state_fn` calls `initialize_state` of Transformer Engine's Adam without an argument that it requires.
Transformer Engine's `step` casts all bf16 moments of a parameter group to fp32 at once, so that at the update they take more memory than
if they were always in fp32.
Unnecessary from: the argument unknown, Megatron-Core 0.19.2 still leaves it out; the casts from Transformer Engine 2.13 on, where both
moments are in bf16.
"""

from __future__ import annotations

from typing import Any

from qwen3vl_core.model.patches.adam_in_parts import patch_adam_in_parts

CAST_AT_ONCE = 1 << 26
"""Elements of the parameters that are updated together; a larger parameter alone."""


def patch_precision_aware(optimizer: Any) -> None:
    """Patch this `DistributedOptimizer`, and make the state of its parameters."""
    adam = optimizer.optimizer
    optimizer.init_state_fn = lambda inner, config=None: _initialize(inner)
    _initialize(adam)
    patch_adam_in_parts(adam, CAST_AT_ONCE)


def _initialize(adam: Any) -> None:
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.initialize_state(parameter, False)
