"""The scales of delayed fp8 scaling, as plain tensors: what a resumed run must restore.

Transformer Engine keeps them in its modules' extra state, which it reads back by unpickling. A checkpoint may come from
anyone, so that state is written for other programs and never read here; these tensors are. The other two recipes scale by
the tensor at hand and have nothing to keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.fp8_utils import get_fp8_recipe

DIRECTIONS = ("scaling_fwd", "scaling_bwd")
FIELDS = ("scale", "amax_history")


def _modules(models: list[torch.nn.Module]) -> Iterator[tuple[str, Any]]:
    """Modules of Transformer Engine by chunk and name."""
    for index, model in enumerate(models):
        for name, module in model.named_modules():
            if isinstance(getattr(module, "fp8_meta", None), dict):
                yield f"{index}.{name}", module


def scales(models: list[torch.nn.Module]) -> dict[str, dict[str, Any]]:
    """{module: {"products": its number of products, "scaling_fwd.scale": …}} on the host; empty where nothing scales with delay."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in _modules(models):
        meta = module.fp8_meta
        if all(hasattr(meta.get(direction), field) for direction in DIRECTIONS for field in FIELDS):
            tensors = {f"{d}.{f}": getattr(meta[d], f).detach().cpu().clone() for d in DIRECTIONS for f in FIELDS}
            found[name] = {"products": int(meta["num_gemms"]), **tensors}
    return found


def set_scales(models: list[torch.nn.Module], saved: dict[str, dict[str, Any]]) -> None:
    """Give modules the scales of `scales`. Modules that it does not name begin anew."""
    for name, module in _modules(models):
        values = saved.get(name)
        if values is None:
            continue
        module.fp8_meta["num_gemms"] = values["products"]
        module.fp8_meta["recipe"] = recipe = get_fp8_recipe(models[int(name.split(".", 1)[0])].config)
        module.init_fp8_meta_tensors(recipe)
        for direction in DIRECTIONS:
            for field in FIELDS:
                getattr(module.fp8_meta[direction], field).copy_(values[f"{direction}.{field}"])
