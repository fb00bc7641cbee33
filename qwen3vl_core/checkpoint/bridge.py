"""`run_config.yaml`: what Megatron-Bridge reads beside the weights of layout `bridge` to build the model. Imports no torch.

Source: https://github.com/NVIDIA-NeMo/Megatron-Bridge (0.3), `training/model_load_save.py` and `utils/instantiate_utils.py`: a
`_target_` is called with the other entries as arguments; with `_call_: false` it is used without being called. Megatron-Bridge builds
the class of `model` and loads the weights into it; `checkpoint` says whether there is more to load than the weights.
"""

from __future__ import annotations

import math
from typing import Any

from qwen3vl_core.sizes import Architecture

RUN_CONFIG = "run_config.yaml"
PROVIDERS = "megatron.bridge.models.qwen_vl.qwen3_vl_provider."
DENSE_CONFIGS = "transformers.models.qwen3_vl.configuration_qwen3_vl.Qwen3VL"
MOE_CONFIGS = "transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe.Qwen3VLMoe"
# the vocabulary is stored without padding: it must be a multiple of what the config states, at most this
MOST_DIVISIBLE = 128


def _not_called(name: str) -> dict[str, Any]:
    return {"_target_": name, "_call_": False}


def run_config(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """The file's content as plain values. dtype: of the weights, as torch names it without `torch.`."""
    a = architecture
    text, vision = dict(a.raw["text_config"]), dict(a.raw["vision_config"])
    for config in (text, vision):
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    configs = MOE_CONFIGS if a.is_moe else DENSE_CONFIGS
    hf = {
        "hf_text_config": {"_target_": f"{configs}TextConfig.from_dict", "_call_": True, "config_dict": text},
        "vision_config": {"_target_": f"{configs}VisionConfig.from_dict", "_call_": True, "config_dict": vision},
    }
    tokens = {name: getattr(a, name) for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")}
    tokens |= {name: text[name] for name in ("bos_token_id", "eos_token_id") if text.get(name) is not None}
    sizes = dict(
        num_layers=a.num_layers, hidden_size=a.hidden_size, ffn_hidden_size=a.ffn_hidden_size, num_attention_heads=a.num_heads,
        num_query_groups=a.num_kv_heads, kv_channels=a.head_dim, vocab_size=a.vocab_size,
        make_vocab_size_divisible_by=math.gcd(a.vocab_size, MOST_DIVISIBLE), share_embeddings_and_output_weights=a.tied,
        seq_length=a.max_position_embeddings, layernorm_epsilon=a.rms_norm_eps, rotary_base=a.rope_theta,
        mrope_section=list(a.mrope_section), init_method_std=text.get("initializer_range", 0.02),
    )  # fmt: skip
    options: dict[str, Any] = dict(
        normalization="RMSNorm", gated_linear_unit=True, qk_layernorm=True, position_embedding_type="mrope", add_bias_linear=False,
        add_qkv_bias=bool(text.get("attention_bias", False)), hidden_dropout=0.0, attention_dropout=0.0,
        activation_func=_not_called("torch.nn.functional.silu"),
    )  # fmt: skip
    vision_fields: dict[str, Any] = dict(
        patch_size=a.vision.patch_size, temporal_patch_size=a.vision.temporal_patch_size, spatial_merge_size=a.vision.spatial_merge_size,
    )  # fmt: skip
    if a.is_moe:
        options |= dict(
            head_dim=a.head_dim, num_moe_experts=a.num_experts, moe_router_topk=a.experts_per_token,
            moe_ffn_hidden_size=a.expert_ffn_hidden_size, moe_router_pre_softmax=not a.norm_topk_prob,
            moe_aux_loss_coeff=a.router_aux_loss_coef, moe_grouped_gemm=True,
            moe_router_load_balancing_type="aux_loss", moe_token_dispatcher_type="alltoall", decoder_sparse_step=1, mlp_only_layers=[],
        )  # fmt: skip
    else:
        vision_fields |= dict(
            in_channels=a.vision.in_channels, num_position_embeddings=a.vision.num_position_embeddings,
            out_hidden_size=a.vision.out_hidden_size, deepstack_visual_indexes=list(a.vision.deepstack_layers),
        )  # fmt: skip
    layout = dict(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, expert_model_parallel_size=1,
        sequence_parallel=False, freeze_language_model=False, freeze_vision_model=False, freeze_vision_projection=False,
    )  # fmt: skip
    precision = dict(fp16=dtype == "float16", bf16=dtype == "bfloat16", params_dtype=_not_called(f"torch.{dtype}"))
    provider = PROVIDERS + ("Qwen3VLMoEModelProvider" if a.is_moe else "Qwen3VLModelProvider")
    return {
        "model": {"_target_": provider} | sizes | options | vision_fields | tokens | layout | precision | hf,
        "checkpoint": {"ckpt_format": "torch_dist", "save_optim": False, "save_rng": False, "fully_parallel_save": False},
    }


def run_config_text(architecture: Architecture, dtype: str) -> str:
    """`run_config` as YAML."""
    import yaml

    return yaml.safe_dump(run_config(architecture, dtype), sort_keys=False)
