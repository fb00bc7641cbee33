"""Normalisation for the local layer spec: torch's modules with Megatron's constructor and its `sequence_parallel` attribute."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class LocalNorm:
    """LayerNorm or RMSNorm as `config.normalization` says.

    Megatron's `WrappedTorchNorm` refuses sequence parallelism, which only needs the weights to have the attribute that makes
    Megatron sum their gradients, each of a part of the sequence, over the tensor parallel ranks.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused) -> torch.nn.Module:  # type: ignore[misc]  # Megatron's specs want a class
        kind = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm}[config.normalization]
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
