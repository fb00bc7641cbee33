"""Angles of the rotary embeddings: three axes in the language tower, two in the vision tower.

Sources: `Qwen3VLTextRotaryEmbedding` and `Qwen3VLVisionRotaryEmbedding` in Hugging Face transformers. Megatron-Core's own
`MultimodalRotaryEmbedding` concatenates the three sections; Qwen3-VL interleaves them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class InterleavedMRope(torch.nn.Module):
    """Drop-in for `GPTModel.rotary_pos_emb`: positions [3, b, s] -> angles [s, b, 1, head_dim]."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        # no buffer: a bf16 model would round the frequencies
        self.inverse_frequencies = 1.0 / theta**exponents

    def forward(self, position_ids: Tensor, mrope_section: tuple[int, int, int], cp_group: Any = None, **unused: Any) -> Tensor:
        """In each triple of frequencies the second follows the height and the third the width, as far as `mrope_section`
        reaches; all others follow the time axis."""
        if self.inverse_frequencies.device != position_ids.device:
            # once: a CUDA graph may not copy from pageable memory
            self.inverse_frequencies = self.inverse_frequencies.to(position_ids.device)
        angles_3bsd = position_ids[..., None].float() * self.inverse_frequencies
        angles_bsd = angles_3bsd[0].clone()
        for axis in (1, 2):
            columns = slice(axis, mrope_section[axis] * 3, 3)
            angles_bsd[..., columns] = angles_3bsd[axis, ..., columns]
        angles_bsd = torch.cat((angles_bsd, angles_bsd), dim=-1)
        return angles_bsd.transpose(0, 1).unsqueeze(2).contiguous()


def vision_angles(coordinates: Tensor, head_dim: int, theta: float) -> Tensor:
    """Axial rotation: [patches, 2] -> [patches, 1, 1, head_dim], the first half of the frequencies by row, then by column."""
    half = head_dim // 2
    frequencies = 1.0 / theta ** (torch.arange(0, half, 2, dtype=torch.float32, device=coordinates.device) / half)
    angles = (coordinates[..., None].float() * frequencies).flatten(1)
    return torch.cat((angles, angles), dim=-1)[:, None, None]
