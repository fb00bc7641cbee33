"""What Megatron-LM reads beside the weights of a checkpoint: `common.pt`. Imports no torch."""

from __future__ import annotations

import argparse
from typing import Any

from qwen3vl_core.sizes import Architecture


def megatron_common(
    a: Architecture, *, tp: int = 1, pp: int = 1, vp: int = 1, cp: int = 1, ep: int = 1, etp: int = 1, sequence_parallel: bool = False
) -> dict[str, Any]:
    """The arguments that Megatron-LM compares with its own, and the layout that wrote the checkpoint.

    Without `checkpoint_version` 3.0 Megatron-LM would reorder query, key and value.
    """
    args = argparse.Namespace(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vp if vp > 1 else None,
        context_parallel_size=cp, expert_model_parallel_size=ep, expert_tensor_parallel_size=etp, sequence_parallel=sequence_parallel,
        num_layers=a.num_layers, hidden_size=a.hidden_size, num_attention_heads=a.num_heads, num_query_groups=a.num_kv_heads,
        kv_channels=a.head_dim, ffn_hidden_size=a.ffn_hidden_size, padded_vocab_size=a.vocab_size,
        untie_embeddings_and_output_weights=not a.tied, num_experts=a.num_experts or None, moe_router_topk=a.experts_per_token,
        moe_ffn_hidden_size=a.expert_ffn_hidden_size or None, use_dist_ckpt=True, dist_ckpt_format="torch_dist",
    )  # fmt: skip
    return {"args": args, "checkpoint_version": 3.0}
