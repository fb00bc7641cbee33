"""The scales of delayed fp8 scaling, as plain tensors: what a resumed run must restore.

Transformer Engine keeps them in its modules' extra state, which it loads by unpickling. A checkpoint may come from an
untrusted source, so that state is written for other programs and never loaded here; these tensors are loaded instead. The
other two recipes scale by the current tensor and have no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.fp8_utils import get_fp8_recipe

DIRECTIONS = ("scaling_fwd", "scaling_bwd")
FIELDS = ("scale", "amax_history")


def _modules(models: list[torch.nn.Module]) -> Iterator[tuple[str, Any]]:
    """(chunk index.name, module) of every Transformer Engine module."""
    for index, model in enumerate(models):
        for name, module in model.named_modules():
            if isinstance(getattr(module, "fp8_meta", None), dict):
                yield f"{index}.{name}", module


def scales(models: list[torch.nn.Module]) -> dict[str, dict[str, Any]]:
    """{module: {"products": its number of products, "scaling_fwd.scale": …}} on the host; empty without delayed scaling."""
    saved: dict[str, dict[str, Any]] = {}
    for name, module in _modules(models):
        meta = module.fp8_meta
        if all(hasattr(meta.get(direction), field) for direction in DIRECTIONS for field in FIELDS):
            tensors = {f"{d}.{f}": getattr(meta[d], f).detach().cpu().clone() for d in DIRECTIONS for f in FIELDS}
            saved[name] = {"products": int(meta["num_gemms"]), **tensors}
    return saved


def set_scales(models: list[torch.nn.Module], saved: dict[str, dict[str, Any]]) -> None:
    """Restore the result of `scales`. Modules that it does not name start with fresh scales."""
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
