"""Megatron's MLP, with SwiGLU in our own kernel if it is available."""

from __future__ import annotations

from typing import Any

from qwen3vl_core.model import kernels

import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from torch import Tensor


class SwigluMLP(MLP):
    """A dense MLP of the language tower. Not if activations are offloaded: Megatron's own function marks them."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[s, b, h] -> [s, b, h] and no bias."""
        c = self.config
        fits = c.activation_func is F.silu and c.gated_linear_unit and not c.add_bias_linear and per_token_scale is None
        if not fits or c.cpu_offloading or not kernels.enabled("swiglu", hidden_states):
            return super().forward(hidden_states, per_token_scale, **kwargs)
        from qwen3vl_core.model.kernels.swiglu import swiglu

        gate_up, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(swiglu(gate_up))
