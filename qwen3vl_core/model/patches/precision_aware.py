"""The precision-aware distributed optimizer starts with a state that can be saved, and its update needs little memory.

Upstream: Megatron's `init_state_fn` calls `initialize_state` of Transformer Engine's Adam without an argument that it requires.
Transformer Engine's `step` casts all bf16 moments of a parameter group to fp32 at once, so that at the update they take more memory than
if they were always in fp32.
Unnecessary from: the argument unknown, Megatron-Core 0.19.2 still leaves it out; the casts from Transformer Engine 2.13 on, where both
moments are in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

CAST_AT_ONCE = 1 << 26
"""Elements of the parameters that are updated together; a larger parameter alone."""


def patch_precision_aware(optimizer: Any) -> None:
    """Patch this `DistributedOptimizer`, and make the state of its parameters."""
    adam = optimizer.optimizer
    optimizer.init_state_fn = lambda inner, config=None: _initialize(inner)
    _initialize(adam)
    optimizer.optimizer.step = partial(_step, adam)


def _initialize(adam: Any) -> None:
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.initialize_state(parameter, False)


def parts(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in their order, in lists of at most CAST_AT_ONCE elements."""
    part: list[Tensor] = []
    for parameter in parameters:
        if part and sum(p.numel() for p in part) + parameter.numel() > CAST_AT_ONCE:
            yield part
            part = []
        part.append(parameter)
    if part:
        yield part


def _step(adam: Any) -> None:
    """`adam.step()`, part by part. Every element is updated by itself, so that the result is the same."""
    groups = adam.param_groups
    try:
        for group in groups:
            before, after = group.get("step", 0), None
            for part in parts(group["params"]):
                after = {**group, "params": part, "step": before}
                adam.param_groups = [after]
                type(adam).step(adam)
            if after is not None:
                group["step"] = after["step"]
    finally:
        adam.param_groups = groups
