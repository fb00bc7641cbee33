"""Moves padding anywhere in a row to its end.

A causal mask alone is exact for rows padded at the end: no token attends to later ones. Left-padded rows (as for generation)
are shifted to the left, and the outputs are shifted back, so no attention backend needs a padding mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RightPadding:
    """`order` [b, s]: the column of the original row for each column of the right-padded one."""

    order: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor | None) -> RightPadding | None:
        """None where every row's padding, if any, is already at its end."""
        if attention_mask is None:
            return None
        mask = attention_mask.bool()
        if not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            return None
        return cls(torch.argsort((~mask).to(torch.int8), dim=1, stable=True))

    def apply(self, values: Tensor) -> Tensor:
        """[..., b, s] with each row's real tokens first."""
        return values.gather(-1, self.order.expand(*values.shape[:-1], -1))

    def restore(self, values: Tensor) -> Tensor:
        """[b, s] or [b, s, v] with each token at its original column."""
        back = torch.argsort(self.order, dim=1)
        if values.dim() == 3:
            return values.gather(1, back[..., None].expand(-1, -1, values.shape[-1]))
        return values.gather(1, back)
