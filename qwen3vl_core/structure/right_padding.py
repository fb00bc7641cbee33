"""Padding anywhere in a row, made into padding at its end.

A causal mask alone is exact for rows whose padding stands at the end: no real token looks at what comes after it. Rows
padded at the front (as for generation) are moved to the left, and the result is moved back; then no attention backend
needs a mask of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RightPadding:
    """`order` [b, s]: which column of the given row stands at each column of the aligned one."""

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
        """[b, s] or [b, s, v] with each token where the caller has it."""
        back = torch.argsort(self.order, dim=1)
        if values.dim() == 3:
            return values.gather(1, back[..., None].expand(-1, -1, values.shape[-1]))
        return values.gather(1, back)
