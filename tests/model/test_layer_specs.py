"""What the layer specs name, without building a layer."""

from __future__ import annotations

import functools
from typing import Any

from qwen3vl_core.model import specs
from qwen3vl_core.model.deepstack import DeepstackLayer
from qwen3vl_core.model.experts import ExpertLayer
from qwen3vl_core.model.router import BalancingRouter

import pytest
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec


class Grouped:
    """Stands for Transformer Engine's experts, which are not installed with a CPU."""


class First:
    """Their first linear layer."""


class Second:
    """Their second one."""


def parts(spec: Any) -> tuple[Any, Any]:
    """(class, submodules) of a spec; from Megatron-Core 0.17 on some are partial calls."""
    if isinstance(spec, functools.partial):
        return spec.func, spec.keywords["submodules"]
    return spec.module, spec.submodules


def test_with_transformer_engine_only_the_experts_of_a_layer_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine_spec(*, num_experts: int, moe_grouped_gemm: bool, qk_layernorm: bool) -> Any:
        return get_gpt_layer_local_spec(num_experts=num_experts, qk_layernorm=qk_layernorm)

    monkeypatch.setattr(specs, "use_transformer_engine", lambda: True)
    monkeypatch.setattr(specs, "get_gpt_layer_with_transformer_engine_spec", engine_spec)
    monkeypatch.setattr(specs, "engine_experts", lambda: (Grouped, First, Second))
    spec = specs.layer_spec(DeepstackLayer, causal=True, qk_layernorm=True, num_experts=4, core_attention=object)
    assert spec.module is DeepstackLayer
    layer, submodules = parts(spec.submodules.mlp)
    assert layer is ExpertLayer
    assert submodules.router is BalancingRouter
    experts, linears = parts(submodules.experts)
    assert experts is Grouped
    assert (linears.linear_fc1, linears.linear_fc2) == (First, Second)
