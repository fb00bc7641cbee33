"""Rotary embedding right before core attention, in one kernel where Transformer Engine has one.

Megatron-Core 0.16 turns a packed row document by document and asks the GPU for every document's length in every layer, so
the host waits for the GPU 100 times in a step of a 2B model; its fused kernel knows one sequence for a batch. Here a
layer hands the angles of its rows, one for each token, to its core attention, which turns query and key as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.extensions import transformer_engine
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch import Tensor


def rotate(states: Tensor, angles: Tensor) -> Tensor:
    """states [s, b, heads, d] or, of a packed row, [t, heads, d]; angles [s, b or 1, 1, d] in fp32 -> states turned."""
    whole = states if states.dim() == 4 else states.unsqueeze(1)
    fused = getattr(transformer_engine, "fused_apply_rotary_pos_emb", None)
    if fused is None or not states.is_cuda:
        return _apply_rotary_pos_emb_bshd(whole, angles, rotary_interleaved=False).view_as(states)
    length, batch, heads, size = whole.shape
    # the kernel takes one angle for a place of the sequence: every token is a place of one long sequence
    places = angles.expand(length, batch, 1, size).reshape(-1, 1, 1, size)
    return fused(whole.reshape(-1, 1, heads, size), places).view_as(states)


class Rotating:
    """A core attention that turns query and key by `angles` first, where a layer has left some."""

    angles: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        angles, self.angles = self.angles, None
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        return super().forward(query, key, *args, **kwargs)


def hand_angles_on(layer: torch.nn.Module, given: dict[str, Any]) -> None:
    """Take the angles out of a layer's arguments and leave them with its core attention.

    Not with a key/value cache, whose keys Megatron keeps before they are turned, and not for packed rows that context parallel
    ranks share, whose angles Megatron cuts itself.
    """
    angles = given.get("rotary_pos_emb")
    cut = given.get("packed_seq_params") is not None and layer.config.context_parallel_size > 1
    if angles is None or given.get("inference_context") is not None or cut:
        return
    given["rotary_pos_emb"] = None
    layer.self_attention.core_attention.angles = angles
