"""Layer specs: the local one on a CPU, Transformer Engine's on CUDA. `use_transformer_engine` decides."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import os
from typing import Any

from qwen3vl_core.model import kernels
from qwen3vl_core.model.apply_rope import Rotating
from qwen3vl_core.model.attention import FlashCoreAttention, LocalCoreAttention
from qwen3vl_core.model.experts import ExpertLayer, engine_experts
from qwen3vl_core.model.norm import LocalNorm
from qwen3vl_core.model.router import BalancingRouter
from qwen3vl_core.model.self_attention import QKRopeSelfAttention
from qwen3vl_core.model.weight_gradients import add_vocabulary_gradients_in_place

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec


def use_transformer_engine() -> bool:
    """True on CUDA with Transformer Engine installed; otherwise the local spec is used."""
    if not torch.cuda.is_available():
        return False
    try:
        import transformer_engine.pytorch  # noqa: F401
    except ImportError:
        return False
    return True


def has_flash_attention() -> bool:
    """Whether a flash-attn package is installed, which Transformer Engine then calls."""
    return any(importlib.util.find_spec(name) is not None for name in ("flash_attn", "flash_attn_3"))


def choose_attention(backend: AttnBackend) -> type | None:
    """The core attention module that replaces Transformer Engine's, None to keep it; called before a model is built.

    Without a flash-attn package PyTorch's flash attention is used. Megatron passes its choice to Transformer Engine in
    environment variables, and raises if they are set to another backend: they are removed, so that the option decides.
    """
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        os.environ.pop(name, None)
    return FlashCoreAttention if backend == AttnBackend.flash and not has_flash_attention() else None


@functools.cache
def _rotating_engine_attention() -> type:
    """Transformer Engine's attention that first rotates query and key."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    return type("RotatingTEDotProductAttention", (Rotating, TEDotProductAttention), {})


def _with(spec: Any, module: type | None = None, **submodules: Any) -> Any:
    """The spec of a layer of experts, or of its experts, with another class and submodules. From Megatron-Core 0.17 on it is a partial
    call of the class."""
    if isinstance(spec, functools.partial):
        changed = dataclasses.replace(spec.keywords["submodules"], **submodules)
        return functools.partial(module or spec.func, *spec.args, **{**spec.keywords, "submodules": changed})
    return dataclasses.replace(spec, module=module or spec.module, submodules=dataclasses.replace(spec.submodules, **submodules))


def layer_spec(
    module: type, *, causal: bool, qk_layernorm: bool, num_experts: int = 0, core_attention: type | None = None
) -> ModuleSpec:  # fmt: skip
    """One transformer layer of class `module`: the language tower's (causal, RMSNorm) or the vision tower's.

    num_experts: of a mixture-of-experts layer; computed one at a time by the local spec, in one grouped matrix product by
    Transformer Engine. core_attention: replaces Transformer Engine's.
    """
    mask_type = AttnMaskType.causal if causal else AttnMaskType.no_mask
    if use_transformer_engine():
        spec = get_gpt_layer_with_transformer_engine_spec(
            num_experts=num_experts or None, moe_grouped_gemm=num_experts > 0, qk_layernorm=qk_layernorm
        )
        spec.submodules.self_attention.submodules.core_attention = core_attention or _rotating_engine_attention()
    else:
        spec = get_gpt_layer_local_spec(num_experts=num_experts or None, qk_layernorm=qk_layernorm, normalization="RMSNorm")
        submodules = spec.submodules
        submodules.input_layernorm = submodules.pre_mlp_layernorm = LocalNorm
        attention = submodules.self_attention.submodules
        attention.core_attention = LocalCoreAttention
        if qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = LocalNorm
        if num_experts:
            # with experts Transformer Engine has a separate norm module too, so its name in checkpoints is unchanged
            submodules.sharded_state_dict_keys_map = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if num_experts:
        layer = spec.submodules.mlp
        if use_transformer_engine():
            parts = layer.keywords["submodules"] if isinstance(layer, functools.partial) else layer.submodules
            grouped, first, second = engine_experts()
            experts = _with(parts.experts, grouped, linear_fc1=first, linear_fc2=second)
            spec.submodules.mlp = _with(layer, ExpertLayer, router=BalancingRouter, experts=experts)
        else:
            spec.submodules.mlp = _with(layer, router=BalancingRouter)
    spec = copy.copy(spec)
    spec.module = module
    spec.submodules.self_attention.module = QKRopeSelfAttention
    spec.submodules.self_attention.params = {"attn_mask_type": mask_type}
    return spec


def final_norm() -> type:
    """Norm module of the active backend, with Megatron's constructor `(config, hidden_size, eps)`."""
    if use_transformer_engine():
        from megatron.core.extensions.transformer_engine import TENorm

        return TENorm
    return LocalNorm


def parallel_linears() -> tuple[type, type]:
    """Column and row parallel linear of the active backend."""
    if use_transformer_engine():
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        return TEColumnParallelLinear, TERowParallelLinear
    return ColumnParallelLinear, RowParallelLinear


def add_gradients_in_place(model: torch.nn.Module) -> None:
    """Let Transformer Engine accumulate a weight's gradient directly in the fp32 buffer of Megatron's DDP (`main_grad`),
    without a separate bf16 gradient that is rounded, read and added, and Megatron's embedding and output layer, too
    (`weight_gradients`). Not for frozen weights, which have no buffer.

    Called for a model to be trained, after its frozen parts are set.
    """
    if not kernels.switched_off("weight_gradients"):
        add_vocabulary_gradients_in_place(model)
    if not kernels.switched_off("linear_gradients"):
        add_linear_gradients_in_place(model)


def add_linear_gradients_in_place(model: torch.nn.Module) -> None:
    """The same for the linear layers of Transformer Engine alone, which have it built in."""
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    for module in model.modules():
        if isinstance(module, TransformerEngineBaseModule) and hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = any(p.requires_grad for p in module.parameters(recurse=False) if p.dim() > 1)
