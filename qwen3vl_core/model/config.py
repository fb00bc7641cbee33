"""Megatron's `TransformerConfig` of each tower, from the architecture and the options of a run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from qwen3vl_core.model import cpu
from qwen3vl_core.model.kernels import switched_off
from qwen3vl_core.model.specs import use_transformer_engine

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen3vl_core.layout.rules import vision_layers_per_recompute
from qwen3vl_core.sizes import Architecture

# hybrid: e4m3 in the forward pass, e5m2 for gradients; blockwise scales are fine enough for e4m3 everywhere
FP8_FORMAT = {"tensorwise": "hybrid", "delayed": "hybrid", "blockwise": "e4m3"}
# fp8 matrix products need rows in multiples of this
FP8_ROWS = 16


def recompute_fields(kind: str, layers: int, count: int, *, experts: bool = False) -> dict[str, Any]:
    """Megatron's fields for `--recompute kind` on a tower of `count` layers; `layers` as `--recompute-layers`.

    sel: fused attention keeps no scores, so the MLPs (or experts) are what is worth recomputing.
    """
    if kind == "sel":
        return {"recompute_granularity": "selective", "recompute_modules": ["moe" if experts else "mlp"]}
    if kind == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": layers or 1}
    if kind == "offload":
        return {"cpu_offloading": True, "cpu_offloading_num_layers": layers or count - 1, "cpu_offloading_weights": False}
    return {}


tanh_gelu = functools.partial(F.gelu, approximate="tanh")


def _shared(dtype: torch.dtype, tp: int, attention: AttnBackend) -> dict[str, Any]:
    """The fields that both towers share. Fusions that need CUDA extensions are off; Transformer Engine brings its own."""
    return dict(
        layernorm_epsilon=1e-6, hidden_dropout=0.0, attention_dropout=0.0,
        params_dtype=dtype, bf16=dtype is torch.bfloat16, fp16=dtype is torch.float16, pipeline_dtype=dtype,
        tensor_model_parallel_size=tp,
        # weights always come from a checkpoint, so random initialization is skipped
        perform_initialization=False, use_cpu_initialization=cpu.on_cpu(),
        bias_activation_fusion=False, bias_dropout_fusion=False, apply_rope_fusion=False,
        masked_softmax_fusion=False, gradient_accumulation_fusion=False, persist_layer_norm=False,
        attention_softmax_in_fp32=True, attention_backend=attention,
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
    recompute_layers: int = 0,
    attention: str = "auto",
    fp8_recipe: str | None = None,
    **overrides: Any,
) -> TransformerConfig:
    """Language tower. `overrides` are further fields of `TransformerConfig`, whose own checks raise ValueError or AssertionError.

    dtype: of weights and activations; tp, pp, cp, ep, etp: as `process_groups.initialize`; vp: model chunks of one pipeline stage;
    first_stage_layers: layers of the first stage, 0: as many as the others; recompute, recompute_layers, attention: as the options
    of those names; fp8_recipe: None unless the layers use fp8 matrix products.
    """
    values = _shared(dtype, tp, AttnBackend[attention]) | dict(
        num_layers=architecture.num_layers, hidden_size=architecture.hidden_size,
        num_attention_heads=architecture.num_heads, num_query_groups=architecture.num_kv_heads,
        kv_channels=architecture.head_dim, ffn_hidden_size=architecture.ffn_hidden_size,
        normalization="RMSNorm", gated_linear_unit=True, activation_func=F.silu, add_bias_linear=False,
        qk_layernorm=True, mrope_section=list(architecture.mrope_section),
        pipeline_model_parallel_size=pp, context_parallel_size=cp, sequence_parallel=sequence_parallel,
        variable_seq_lengths=pp > 1,
    )  # fmt: skip
    if use_transformer_engine() and not cpu.on_cpu():
        # SiLU and product in one kernel; a loss that keeps no fp32 logits (Transformer Engine's synchronizes with the host in backward)
        values |= dict(bias_activation_fusion=not architecture.is_moe, cross_entropy_loss_fusion=True, cross_entropy_fusion_impl="native")
    values |= recompute_fields(recompute, recompute_layers, architecture.num_layers, experts=architecture.is_moe)
    if fp8_recipe:
        values |= dict(fp8=FP8_FORMAT[fp8_recipe], fp8_recipe=fp8_recipe)
        # each expert's tokens are padded to a multiple that fp8 products need
        values |= dict(moe_router_padding_for_quantization=True) if architecture.is_moe else {}
    if architecture.is_moe:
        values |= dict(
            num_moe_experts=architecture.num_experts, moe_router_topk=architecture.experts_per_token,
            moe_ffn_hidden_size=architecture.expert_ffn_hidden_size, expert_model_parallel_size=ep, expert_tensor_parallel_size=etp,
            moe_router_score_function="softmax",
            # softmax over the top-k experts equals softmax over all, renormalized over the top k
            moe_router_pre_softmax=not architecture.norm_topk_prob,
            moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=architecture.router_aux_loss_coef,
            moe_token_dispatcher_type="alltoall", moe_grouped_gemm=use_transformer_engine(), moe_layer_freq=1,
        )  # fmt: skip
    if vp > 1:
        # the other order of sends and receives gives incorrect results without an error
        values |= dict(virtual_pipeline_model_parallel_size=vp, overlap_p2p_comm=True, batch_p2p_comm=False)
    if first_stage_layers:
        values["num_layers_in_first_pipeline_stage"] = first_stage_layers
    values["layernorm_epsilon"] = architecture.rms_norm_eps
    if pp > 1:
        # Megatron requires the alltoall dispatcher with variable lengths even without experts
        values["moe_token_dispatcher_type"] = "alltoall"
    return TransformerConfig(**(values | overrides))


@contextlib.contextmanager
def without_fp8(config: TransformerConfig) -> Iterator[None]:
    """Layers of `config` compute in bf16 inside: single tokens in generation are not a multiple of 16 rows."""
    saved, config.fp8 = config.fp8, None
    try:
        yield
    finally:
        config.fp8 = saved


def vision_config(architecture: Architecture, language: TransformerConfig) -> TransformerConfig:
    """Vision tower: the same precision and tensor parallel size as the language tower; entirely on the first pipeline
    stage; never sequence parallel, because the number of packed patches need not be divisible by the tensor parallel size, and
    never fp8, because it need not be a multiple of 16. Its activations stay on the GPU when the language tower's are offloaded."""
    vision = architecture.vision
    # not "sel": an MLP with a bias returns the bias parameter itself, which Megatron's recompute treats as an activation
    recompute = "full" if language.recompute_granularity == "full" else "none"
    # Megatron's fused bias and GELU kernel uses the tanh form, as this tower does
    fused = use_transformer_engine() and not switched_off("vision_fusions")
    vision_layers = vision_layers_per_recompute(language.recompute_num_layers or 1, vision.num_layers)
    shared = _shared(language.params_dtype, language.tensor_model_parallel_size, language.attention_backend)
    return TransformerConfig(
        **(shared | dict(bias_activation_fusion=fused, bias_dropout_fusion=fused)),
        **recompute_fields(recompute, vision_layers, vision.num_layers),
        num_layers=vision.num_layers, hidden_size=vision.hidden_size, num_attention_heads=vision.num_heads,
        num_query_groups=vision.num_heads, kv_channels=vision.hidden_size // vision.num_heads,
        ffn_hidden_size=vision.ffn_hidden_size, normalization="LayerNorm", gated_linear_unit=False,
        activation_func=F.gelu if fused else tanh_gelu, add_bias_linear=True, qk_layernorm=False,
    )  # fmt: skip


def merger_config(architecture: Architecture, vision: TransformerConfig) -> TransformerConfig:
    """Mergers: from a block of merge x merge patches to one token of the language tower."""
    patches = architecture.vision.spatial_merge_size**2
    return TransformerConfig(
        **_shared(vision.params_dtype, vision.tensor_model_parallel_size, vision.attention_backend),
        num_layers=1, hidden_size=architecture.vision.out_hidden_size, num_attention_heads=vision.num_attention_heads,
        kv_channels=vision.kv_channels, ffn_hidden_size=vision.hidden_size * patches,
        normalization="LayerNorm", gated_linear_unit=False, activation_func=F.gelu, add_bias_linear=True,
    )  # fmt: skip
