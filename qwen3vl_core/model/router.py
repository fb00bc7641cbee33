"""The experts' router, with a load balancing loss that does not depend on the parallel layout.

Source: the Switch Transformer's loss (https://arxiv.org/abs/2101.03961), as `load_balancing_loss_func` of Hugging Face
transformers computes it for one layer, divided by the experts per token; summed over layers, as in Megatron-Core.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, save_to_aux_losses_tracker
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class BalancingRouter(TopKRouter):
    """Megatron's router, with the load balancing loss of a whole micro batch.

    When gradients are divided by the number of trained tokens, Megatron-Core 0.16 weights this loss by the tokens of one
    rank, including padding: with n ranks of sequence and context parallelism its weight is 1/n, and if few tokens are
    trained, many times its coefficient. Here each micro batch is weighted by its share of the batch's tokens.
    """

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Megatron's routing of logits [s, b, experts] with a padding mask [s, b], True for padding; counts the tokens of each expert."""
        probs, routing_map = super().routing(logits, padding_mask)
        # a recomputed layer runs twice, and has gradients in one of the two only
        if self.training and torch.is_grad_enabled() and (counts := expert_tokens(self.config)) is not None:
            counted = routing_map if padding_mask is None else routing_map & ~padding_mask.reshape(-1, 1)
            counts[self.layer_number - 1] += counted.sum(0)
        return probs, routing_map

    def _apply_aux_loss(self, probs: Tensor, scores_for_aux_loss: Tensor, routing_map: Tensor, with_padding_mask: bool = False) -> Tensor:
        """probs and scores [t, experts], routing_map [t, experts] bool; padding is zero in the last two. Returns probs, whose
        backward pass adds the gradient of the loss: coefficient x experts x sum over experts of (fraction of tokens routed to
        it) x (mean probability)."""
        coefficient = self.get_aux_loss_coeff("aux_loss")
        if coefficient == 0:
            return probs
        expert_tokens = reduce_from_tensor_model_parallel_region(routing_map.sum(0), self.tp_cp_group)
        tokens = expert_tokens.sum() / self.topk
        scale = coefficient * self.config.num_moe_experts / (self.topk * tokens.clamp(min=1) ** 2)
        # the other ranks of the group add the part of their tokens
        loss = scale * (scores_for_aux_loss.sum(0) * expert_tokens).sum()
        save_to_aux_losses_tracker(
            "load_balancing_loss", loss / coefficient, self.layer_number, self.config.num_layers, reduce_group=self.tp_cp_group
        )
        if self.calculate_per_token_loss:
            loss = loss * tokens * balance_weight(self.config)
        return MoEAuxLossAutoScaler.apply(probs, loss)


def balance_weight(config: TransformerConfig) -> Tensor | float:
    """Weight of one token in the load balancing loss when gradients are divided by the number of trained tokens."""
    return getattr(config, "balance_weight", 1.0)


def set_balance_weight(config: TransformerConfig, counts: Tensor) -> None:
    """counts: float64 [2] of the next batch, its trained tokens, and all its tokens without padding, summed over data parallel ranks.

    The weight stays on the device, in one tensor, which CUDA graphs read.
    """
    weight = (counts[0] / counts[1].clamp(min=1.0)).float()
    if isinstance(balance_weight(config), float):
        config.balance_weight = weight
    else:
        config.balance_weight.copy_(weight)


def expert_tokens(config: TransformerConfig) -> Tensor | None:
    """int64 [layers, experts]: tokens that this rank has routed to each expert in training since they were last set to zero, without
    padding; None before `count_expert_tokens`."""
    return getattr(config, "expert_tokens", None)


def count_expert_tokens(config: TransformerConfig, device: torch.device) -> None:
    """Count from now on. The counts stay in one tensor on the device, into which CUDA graphs add."""
    config.expert_tokens = torch.zeros(config.num_layers, config.num_moe_experts, dtype=torch.int64, device=device)


def padding_mask(attention_mask: Tensor | None, index: Tensor | None, config: TransformerConfig) -> Tensor | None:
    """Megatron's padding mask [b, s of this rank], True for padding, from an attention mask [b, s], 1 for tokens.

    index: sequence indices that this context parallel rank holds. None without padding, and without experts.
    """
    if attention_mask is None or not config.num_moe_experts:
        return None
    padding = ~attention_mask.bool()
    if index is not None:
        padding = padding[:, index]
    if config.sequence_parallel:
        size, rank = config.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()
        padding = padding.chunk(size, dim=1)[rank]
    return padding.contiguous()
