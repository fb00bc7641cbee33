"""Megatron's `TransformerConfig` of each tower, from the architecture and the choices of a run."""

from __future__ import annotations

import functools

from qwen3vl_core.model import cpu
from qwen3vl_core.model.specs import use_transformer_engine

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen3vl_core.sizes import Architecture

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECOMPUTE = {
    "none": {},
    "sel": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}

tanh_gelu = functools.partial(F.gelu, approximate="tanh")


def _shared(dtype: torch.dtype, tp: int, recompute: str) -> dict:
    """What both towers have in common. Fusions that need CUDA extensions are off; Transformer Engine brings its own."""
    return dict(
        layernorm_epsilon=1e-6, hidden_dropout=0.0, attention_dropout=0.0,
        params_dtype=dtype, bf16=dtype is torch.bfloat16, fp16=dtype is torch.float16, pipeline_dtype=dtype,
        tensor_model_parallel_size=tp,
        # weights always come from a checkpoint, so nothing is drawn at random first
        perform_initialization=False, use_cpu_initialization=cpu.on_cpu(),
        bias_activation_fusion=False, bias_dropout_fusion=False, apply_rope_fusion=False,
        masked_softmax_fusion=False, gradient_accumulation_fusion=False, persist_layer_norm=False,
        attention_softmax_in_fp32=True,
        **RECOMPUTE[recompute],
    )  # fmt: skip


def transformer_config(
    architecture: Architecture,
    *,
    dtype: torch.dtype = torch.float32,
    tp: int = 1,
    pp: int = 1,
    cp: int = 1,
    ep: int = 1,
    etp: int = 1,
    vp: int = 1,
    first_stage_layers: int = 0,
    sequence_parallel: bool = False,
    recompute: str = "none",
    **overrides,
) -> TransformerConfig:
    """Language tower. `overrides` are further fields of `TransformerConfig`.

    vp: model chunks of one pipeline stage; first_stage_layers: of the first stage, 0: as many as any other.
    """
    values = _shared(dtype, tp, recompute) | dict(
        num_layers=architecture.num_layers, hidden_size=architecture.hidden_size,
        num_attention_heads=architecture.num_heads, num_query_groups=architecture.num_kv_heads,
        kv_channels=architecture.head_dim, ffn_hidden_size=architecture.ffn_hidden_size,
        normalization="RMSNorm", gated_linear_unit=True, activation_func=F.silu, add_bias_linear=False,
        qk_layernorm=True, mrope_section=list(architecture.mrope_section),
        pipeline_model_parallel_size=pp, context_parallel_size=cp, sequence_parallel=sequence_parallel,
        variable_seq_lengths=pp > 1,
    )  # fmt: skip
    if architecture.is_moe:
        values |= dict(
            num_moe_experts=architecture.num_experts, moe_router_topk=architecture.experts_per_token,
            moe_ffn_hidden_size=architecture.expert_ffn_hidden_size, expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
            moe_router_score_function="softmax",
            # softmax over the chosen experts is softmax over all, divided by the sum of the chosen
            moe_router_pre_softmax=not architecture.norm_topk_prob,
            moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=architecture.router_aux_loss_coef,
            moe_token_dispatcher_type="alltoall", moe_grouped_gemm=use_transformer_engine(), moe_layer_freq=1,
        )  # fmt: skip
    if vp > 1:
        # the other order of sends and receives is silently wrong
        values |= dict(virtual_pipeline_model_parallel_size=vp, overlap_p2p_comm=True, batch_p2p_comm=False)
    if first_stage_layers:
        values["num_layers_in_first_pipeline_stage"] = first_stage_layers
    values["layernorm_epsilon"] = architecture.rms_norm_eps
    if pp > 1:
        # Megatron asks for the alltoall dispatcher with variable lengths even where there are no experts
        values["moe_token_dispatcher_type"] = "alltoall"
    return TransformerConfig(**(values | overrides))


def vision_config(architecture: Architecture, language: TransformerConfig) -> TransformerConfig:
    """Vision tower: the same precision and tensor parallel size as the language tower; whole on the first pipeline
    stage; never sequence parallel, for its packed patches need not divide by the tensor parallel size."""
    vision = architecture.vision
    recompute = {None: "none", "selective": "sel", "full": "full"}[language.recompute_granularity]
    return TransformerConfig(
        **_shared(language.params_dtype, language.tensor_model_parallel_size, recompute),
        num_layers=vision.num_layers, hidden_size=vision.hidden_size, num_attention_heads=vision.num_heads,
        num_query_groups=vision.num_heads, kv_channels=vision.hidden_size // vision.num_heads,
        ffn_hidden_size=vision.ffn_hidden_size, normalization="LayerNorm", gated_linear_unit=False,
        activation_func=tanh_gelu, add_bias_linear=True, qk_layernorm=False,
    )  # fmt: skip


def merger_config(architecture: Architecture, vision: TransformerConfig) -> TransformerConfig:
    """Mergers: from a block of merge x merge patches to one token of the language tower."""
    patches = architecture.vision.spatial_merge_size**2
    return TransformerConfig(
        **_shared(vision.params_dtype, vision.tensor_model_parallel_size, "none"),
        num_layers=1, hidden_size=architecture.vision.out_hidden_size, num_attention_heads=vision.num_attention_heads,
        kv_channels=vision.kv_channels, ffn_hidden_size=vision.hidden_size * patches,
        normalization="LayerNorm", gated_linear_unit=False, activation_func=F.gelu, add_bias_linear=True,
    )  # fmt: skip
