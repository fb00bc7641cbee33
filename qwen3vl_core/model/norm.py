"""Normalisation for the local layer spec: torch's modules with Megatron's constructor and its `sequence_parallel` attribute."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class LocalNorm:
    """LayerNorm or RMSNorm as `config.normalization` says.

    Megatron's `WrappedTorchNorm` refuses sequence parallelism, which only needs the weights to have the attribute that makes
    Megatron sum their gradients, each of a part of the sequence, over the tensor parallel ranks.
    """

    # a class, because Megatron's specs do not accept functions
    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any
    ) -> torch.nn.Module:
        kind = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}[config.normalization]
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
