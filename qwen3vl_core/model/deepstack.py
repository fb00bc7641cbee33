"""How deepstack features leave the vision tower and enter the language tower without a copy of `TransformerBlock`.

Megatron's block hands a `context` tensor from layer to layer, unused in a decoder without cross-attention. The vision
tower's layers collect their outputs in it; the language tower's layers read theirs from it. Recompute and pipeline
schedules work unchanged, because to Megatron these are ordinary layers.

Source: `Qwen3VLTextModel._deepstack_process` in Hugging Face transformers.
"""

from __future__ import annotations

from typing import Any

from qwen3vl_core.model.apply_rope import hand_angles_on
from qwen3vl_core.model.mlp import SwigluMLP

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


class CollectingLayer(TransformerLayer):
    """A vision layer. `context` [n * s, 1, h] gathers the outputs of the deepstack layers, oldest first; the last layer
    returns them concatenated before its own output, [(n + 1) * s, 1, h], because a block returns hidden states only."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Megatron's arguments -> (hidden states [s, 1, h], or in the last layer [(n + 1) * s, 1, h]; context)."""
        collected = kwargs["context"]
        kwargs["context"] = None
        hand_angles_on(self, kwargs)
        hidden, _ = super().forward(*args, **kwargs)
        if self.layer_number - 1 in self.config.deepstack_layers:
            collected = torch.cat((collected, hidden))
        if self.layer_number == self.config.num_layers:
            return torch.cat((collected, hidden)), collected
        return hidden, collected


class DeepstackLayer(TransformerLayer):
    """A language layer. Layer i of the first n adds part i of `context` [n * s, b, h] to its output; the parts hold the
    features at vision tokens and zeros elsewhere, and are split along the sequence as the hidden states are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # not in the layer spec: Megatron passes the process group to its own class only
        if type(self.mlp) is MLP:
            self.mlp.__class__ = SwigluMLP

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Megatron's arguments -> (hidden states [s, b, h], context)."""
        features = kwargs.get("context")
        kwargs["context"] = None
        hand_angles_on(self, kwargs)
        hidden, _ = super().forward(*args, **kwargs)
        if features is not None:
            length = hidden.shape[0]
            start = (self.layer_number - 1) * length
            if start < features.shape[0]:
                hidden = hidden + features[start : start + length]
        return hidden, features


def with_gradient(hidden: Tensor, config: TransformerConfig, learns: bool) -> Tensor:
    """The input of a tower whose layers are trained while its embeddings are frozen.

    Recomputed layers get gradients only if their input requires one, so the input is made to require an unused gradient.
    """
    if learns and torch.is_grad_enabled() and config.recompute_granularity and not hidden.requires_grad:
        return hidden.detach().requires_grad_()
    return hidden
