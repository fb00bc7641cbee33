"""Megatron's self-attention, with the norm of query and key and their rotary embedding in our own kernel if it is available."""

from __future__ import annotations

from typing import Any

from qwen3vl_core.model import kernels

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor


class QKRopeSelfAttention(SelfAttention):
    """Takes query, key and value from the fused projection by `kernels.qk_rope`, which norms and rotates them.

    The layer has passed the angles to the core attention (`apply_rope.hand_angles_on`); without them, for a key/value cache, Megatron's
    modules compute, one after the other. So they do with fewer groups than tensor parallel ranks, whose heads Megatron gathers, and
    when activations are offloaded, for Transformer Engine marks what its own modules save.
    """

    def get_query_key_value_tensors(
        self, hidden_states: Tensor, key_value_states: Tensor | None = None, output_gate: bool = False, split_qkv: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[s, b, h] -> query [s, b, heads, d], key and value [s, b, groups, d]."""
        angles, config = self.core_attention.angles, self.config
        if (
            angles is None or output_gate or not split_qkv or config.test_mode or config.cpu_offloading
            or config.num_query_groups < self.world_size or (config.qk_layernorm and config.normalization != "RMSNorm")
            or not kernels.enabled("qk_rope", hidden_states)
        ):  # fmt: skip
            return super().get_query_key_value_tensors(hidden_states, key_value_states, output_gate, split_qkv)
        from qwen3vl_core.model.kernels.qk_rope import qk_rope

        self.core_attention.angles = None
        qkv, _ = self.linear_qkv(hidden_states)
        weights = [_ready_weight(norm) if config.qk_layernorm else None for norm in (self.q_layernorm, self.k_layernorm)]
        groups, size = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        return qk_rope(qkv, angles, *weights, eps=config.layernorm_epsilon, groups=groups, size=size)


def _ready_weight(norm: Any) -> Tensor:
    """The weight of a norm that is not called, after the hooks before its call: in one, Megatron's DDP waits until a gathered weight is
    complete."""
    for hook in norm._forward_pre_hooks.values():
        hook(norm, ())
    return norm.weight
