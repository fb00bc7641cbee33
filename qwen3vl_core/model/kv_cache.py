"""Token by token generation with Megatron's static key/value cache."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.inference.contexts.static_context import StaticInferenceContext
from torch import Tensor


class CachedDecoder:
    """One batch of prompts of equal length, without padding: `prefill` once, then `decode` for each new token."""

    # set by `prefill`
    context: StaticInferenceContext
    positions: Tensor
    """long [3, b, tokens so far]."""
    next_position: Tensor
    """long [b]."""

    def __init__(self, model: Any, max_sequence_length: int) -> None:
        self.model = model
        self.max_sequence_length = max_sequence_length

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, **inputs: Tensor | None) -> Tensor:
        """Prompts [b, s] with their pictures, as the model takes them -> logits of the next token [b, vocabulary].

        Raises ValueError for padding, and for a prompt that leaves no room for a token.
        """
        mask = inputs.pop("attention_mask", None)
        if mask is not None and not bool(mask.all()):
            raise ValueError("the prompts of one batch must have the same length, without padding")
        batch, length = input_ids.shape
        if length >= self.max_sequence_length:
            raise ValueError(f"a prompt of {length} tokens does not fit in the key/value cache of {self.max_sequence_length}")
        self.context = StaticInferenceContext(batch, self.max_sequence_length)
        self.positions, self.next_position = self.model.positions(
            input_ids, None, inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
        )
        logits = self.model(input_ids, position_ids=self.positions, inference_context=self.context, **inputs)
        self.context.sequence_len_offset = length
        return logits[:, -1]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """The last sampled token of each row [b] -> logits of the next one [b, vocabulary]."""
        new_positions = self.next_position.view(1, -1, 1).expand(3, -1, 1)
        # Megatron caches unrotated keys and rotates all of them in each step, so it needs all positions
        self.positions = torch.cat((self.positions, new_positions), dim=-1)
        self.next_position = self.next_position + 1
        logits = self.model(tokens[:, None], position_ids=self.positions, inference_context=self.context)
        self.context.sequence_len_offset += 1
        return logits[:, -1]

    def keep_rows(self, rows: list[int]) -> None:
        """Continue with these rows of the batch only; the caches of the others are freed."""
        index = torch.tensor(rows, device=self.next_position.device)
        caches = self.context.key_value_memory_dict
        for layer, (keys, values) in caches.items():
            # one layer at a time, so that there are never two copies of the whole cache in memory
            caches[layer] = keys.index_select(1, index), values.index_select(1, index)
        self.context.max_batch_size = len(rows)
        self.positions = self.positions.index_select(1, index)
        self.next_position = self.next_position.index_select(0, index)
