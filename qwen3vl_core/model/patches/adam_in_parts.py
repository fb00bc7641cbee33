"""Transformer Engine's Adam updates its parameters in parts: so many tensors, and so many elements, at once.

Upstream: `step` hands all tensors of a parameter group to one call. Transformer Engine has room for 70,849 tensors (2.11), four or five of
each parameter. A run of 24,576 parameters, the adapters of all experts of Qwen3-VL-30B-A3B before those of a layer were one tensor, ended
with "Cannot allocate a new NVTETensor"; the experts themselves are 12,288.
Unnecessary from: unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from megatron.core import optimizer as megatron
from torch import Tensor

TENSORS_AT_ONCE = 8192
"""Parameters that are updated together."""


def patch_adam_in_parts(adam: Any, elements: int | None = None) -> None:
    """Patch this optimizer's `step`. elements: of the parameters that are updated together, a larger one alone; None: any number.

    Every element is updated by itself, so the result is the same.
    """
    adam.step = partial(_step, adam, elements)


def patch_large_adam(adam: Any) -> None:
    """Patch the `step` of Megatron's Adam if it has more parameters than are updated together; leave every other optimizer as it is."""
    if isinstance(adam, megatron.Adam) and any(len(group["params"]) > TENSORS_AT_ONCE for group in adam.param_groups):
        patch_adam_in_parts(adam)


def parts(parameters: list[Tensor], elements: int | None) -> Iterator[list[Tensor]]:
    """The parameters in their order, in lists of at most TENSORS_AT_ONCE with at most `elements` elements."""
    part: list[Tensor] = []
    count = 0
    for parameter in parameters:
        too_large = elements is not None and count + parameter.numel() > elements
        if part and (too_large or len(part) == TENSORS_AT_ONCE):
            yield part
            part, count = [], 0
        part.append(parameter)
        count += parameter.numel()
    if part:
        yield part


def _step(adam: Any, elements: int | None) -> None:
    groups = adam.param_groups
    try:
        for group in groups:
            before, after = group.get("step", 0), None
            for part in parts(group["params"], elements):
                after = {**group, "params": part, "step": before}
                adam.param_groups = [after]
                type(adam).step(adam)
            if after is not None:
                group["step"] = after["step"]
    finally:
        adam.param_groups = groups
