"""Rotary embedding right before core attention, in one kernel where Transformer Engine has one.

Megatron-Core 0.16 rotates a packed row document by document and reads every document's length from the GPU in every layer, so
the host waits for the GPU 100 times in a step of a 2B model; its fused kernel supports one position sequence per batch. Here a
layer passes the angles of its rows, one per token, to its core attention, which rotates query and key without splitting them.
"""

from __future__ import annotations

from typing import Any

from megatron.core.extensions import transformer_engine
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch import Tensor


def rotate(states: Tensor, angles: Tensor) -> Tensor:
    """states [s, b, heads, d], or [t, heads, d] for a packed row; angles [s, b or 1, 1, d] in fp32 -> rotated states."""
    states_sbhd = states if states.dim() == 4 else states.unsqueeze(1)
    fused = getattr(transformer_engine, "fused_apply_rotary_pos_emb", None)
    if fused is None or not states.is_cuda:
        return _apply_rotary_pos_emb_bshd(states_sbhd, angles, rotary_interleaved=False).view_as(states)
    length, batch, heads, size = states_sbhd.shape
    # the kernel takes one angle per sequence position, so the batch is flattened into one long sequence
    flat_angles = angles.expand(length, batch, 1, size).reshape(-1, 1, 1, size)
    return fused(states_sbhd.reshape(-1, 1, heads, size), flat_angles).view_as(states)


class Rotating:
    """A core attention that first rotates query and key by `angles`, if the layer has set them."""

    angles: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """query [s, b, heads, d] and key [s, b, groups, d], packed [t, …, d]; the rest and the result as the core attention's."""
        angles, self.angles = self.angles, None
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        return super().forward(query, key, *args, **kwargs)  # type: ignore[misc]  # of the core attention after it in the bases


def hand_angles_on(layer: Any, arguments: dict[str, Any]) -> None:
    """Move the angles from a layer's arguments to its core attention.

    Not with a key/value cache, in which Megatron stores unrotated keys.
    """
    angles = arguments.get("rotary_pos_emb")
    if angles is None or arguments.get("inference_context") is not None:
        return
    arguments["rotary_pos_emb"] = None
    layer.self_attention.core_attention.angles = angles
