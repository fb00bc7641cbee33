"""The experts' router, with a load balancing loss that no parallel layout changes.

Source: the Switch Transformer's loss (https://arxiv.org/abs/2101.03961), as `load_balancing_loss_func` of Hugging Face
transformers has it for one layer, divided by the experts a token; layers are added up, as in Megatron-Core.
"""

from __future__ import annotations

from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, save_to_aux_losses_tracker
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


class BalancingRouter(TopKRouter):
    """Megatron's router, with the load balancing loss of a whole micro batch.

    Where gradients are divided by the number of trained tokens, Megatron-Core 0.16 weighs this loss by the tokens of one
    rank, padding among them: with n ranks of sequence and context parallelism it counts 1/n, and where few tokens are
    trained, many times its coefficient. Here each micro batch counts with its tokens' share of the batch.
    """

    def _apply_aux_loss(self, probs: Tensor, scores_for_aux_loss: Tensor, routing_map: Tensor, with_padding_mask: bool = False) -> Tensor:
        """probs and scores [t, experts], routing_map [t, experts] bool; padding is zero in the last two. Returns probs, whose
        backward pass adds the gradient of the loss: coefficient x experts x sum over experts of (share of the tokens that
        went there) x (mean probability)."""
        coefficient = self.get_aux_loss_coeff("aux_loss")
        if coefficient == 0:
            return probs
        chosen = reduce_from_tensor_model_parallel_region(routing_map.sum(0), self.tp_cp_group)
        tokens = chosen.sum() / self.topk
        scale = coefficient * self.config.num_moe_experts / (self.topk * tokens.clamp(min=1) ** 2)
        # the other ranks of the group add the part of their tokens
        loss = scale * (scores_for_aux_loss.sum(0) * chosen).sum()
        save_to_aux_losses_tracker(
            "load_balancing_loss", loss / coefficient, self.layer_number, self.config.num_layers, reduce_group=self.tp_cp_group
        )
        if self.calculate_per_token_loss:
            loss = loss * tokens * balance_weight(self.config)
        return MoEAuxLossAutoScaler.apply(probs, loss)


def balance_weight(config) -> float:
    """What one token weighs in the load balancing loss when gradients are divided by the number of trained tokens."""
    return getattr(config, "balance_weight", 1.0)


def set_balance_weight(config, trained: float, tokens: float) -> None:
    """Of the batch that comes: its trained tokens, and all of its tokens, padding left out; of all data parallel ranks."""
    config.balance_weight = trained / max(tokens, 1.0)


def padding_mask(attention_mask: Tensor | None, index: Tensor | None, config) -> Tensor | None:
    """What Megatron calls the padding mask, [b, s of this rank], True for padding; of [b, s] with 1 for tokens.

    index: the places that this context parallel rank holds. None where nothing is padding, and without experts.
    """
    if attention_mask is None or not config.num_moe_experts:
        return None
    empty = ~attention_mask.bool()
    if index is not None:
        empty = empty[:, index]
    if config.sequence_parallel:
        size, rank = config.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()
        empty = empty.chunk(size, dim=1)[rank]
    return empty.contiguous()
