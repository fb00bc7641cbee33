"""Experts whose layers hold all of them, as Transformer Engine's do, of Megatron's modules for a CPU; their adapters are stacked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

from qwen3vl_core.model import experts, specs

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP


class GroupedLinear(torch.nn.Module):
    """One layer of all experts: `weight0`, `weight1`, ... as Transformer Engine names them."""

    def __init__(self, layers: list[Any], groups: Any) -> None:
        super().__init__()
        self.tp_group, self._pg_collection, self.count = layers[0].tp_group, groups, len(layers)
        for i, layer in enumerate(layers):
            self.register_parameter(f"weight{i}", layer.weight)

    def forward(self, x: torch.Tensor, splits: list[int] | torch.Tensor) -> tuple[torch.Tensor, None]:
        weights = [getattr(self, f"weight{i}") for i in range(self.count)]
        if isinstance(splits, torch.Tensor):
            return experts.product(x, splits, weights[::-1], in_place=True), None
        return torch.cat([F.linear(rows, weight) for rows, weight in zip(x.split(splits), weights, strict=True)]), None

    def sharded_state_dict(self, *unused: Any) -> dict[str, Any]:
        """Of the weights nothing: those of the experts have their names in a checkpoint."""
        return {}


class GroupedExperts(SequentialMLP):
    def __init__(self, count: int, config: Any, submodules: Any, pg_collection: Any = None) -> None:
        super().__init__(count, config, submodules, pg_collection)
        # Module looks a name up in its modules first: without the list the layers are what adapters are attached to
        self.__dict__["each"] = self._modules.pop("local_experts")
        self.linear_fc1 = GroupedLinear([e.linear_fc1 for e in self.each], pg_collection)
        self.linear_fc2 = GroupedLinear([e.linear_fc2 for e in self.each], pg_collection)

    def forward(self, rows: torch.Tensor, splits: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, None]:
        bounds = splits if splits.dtype == torch.int32 else splits.tolist()
        gate, up = self.linear_fc1(rows, bounds)[0].chunk(2, -1)
        return self.linear_fc2(F.silu(gate) * up * probs[:, None], bounds)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict[str, Any]:
        self._modules["local_experts"] = self.each
        try:
            state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        finally:
            self._modules.pop("local_experts")
        for name in ("linear_fc1", "linear_fc2"):
            # Megatron's experts share one prefix in a checkpoint
            own = getattr(self, name).sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
            for value in own.values():
                value.key = value.key.replace(f"{prefix}{name}.", f"{prefix}experts.{name}.")
            state |= own
        return state


def with_layer(spec: Any, module: type | None = None, original: Callable = specs._with, **submodules: Any) -> Any:
    parts = spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules
    return original(spec, experts.ExpertLayer, experts=original(parts.experts, GroupedExperts), **submodules)


def called(on_device: bool, function: Callable, *arguments: Any) -> Any:
    """What the function returns with such experts. on_device: rows have bounds on the device; else counts on the host."""
    patches = (
        mock.patch.object(specs, "_with", with_layer), mock.patch.object(experts, "on_device", lambda config: on_device),
        mock.patch.object(SequentialMLP, "forward", None),
    )  # fmt: skip
    for patch in patches:
        patch.start()
    try:
        return function(*arguments)
    finally:
        for patch in patches:
            patch.stop()
