"""Megatron's GPT model, with the loss in our own kernel if it is available."""

from __future__ import annotations

from qwen3vl_core.model import kernels

from megatron.core.models.gpt import GPTModel
from torch import Tensor


class LanguageModel(GPTModel):
    """The language tower. With tensor parallelism Megatron's loss is used, which exchanges sums over parts of the vocabulary."""

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """labels [b, s], logits [s, b, vocabulary] -> the loss of each token [b, s] in fp32."""
        if self.config.tensor_model_parallel_size > 1 or not kernels.enabled("cross_entropy", logits):
            return super().compute_language_model_loss(labels, logits)
        from qwen3vl_core.model.kernels.cross_entropy import cross_entropy

        return cross_entropy(logits, labels.transpose(0, 1)).transpose(0, 1).contiguous()
