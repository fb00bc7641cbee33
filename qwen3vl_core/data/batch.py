"""What a model is trained on: one encoded sample, and a micro batch of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qwen3vl_core.data.pictures import CHANNELS, PictureRules

IGNORED = -100
"""Label of a position that is not trained (torch's cross entropy knows the same number)."""


@dataclass(frozen=True)
class Encoded:
    """One sample, ready to be put into a batch; arrays only, so that it travels between processes cheaply."""

    key: str
    ids: np.ndarray
    """int64 [s], pictures' placeholders repeated once for each of their tokens."""
    labels: np.ndarray
    """int64 [s], already shifted: labels[i] is the token to predict at position i, or IGNORED."""
    patches: np.ndarray
    """uint8 [n, 3 * patch * patch] of all pictures, in order."""
    grids: np.ndarray
    """int64 [k, 3], (1, rows, columns) in patches of each picture."""

    @property
    def tokens(self) -> int:
        """Trained tokens."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Batch:
    """A micro batch on the host."""

    input_ids: torch.Tensor
    """long [b, s], padded right."""
    labels: torch.Tensor
    """long [b, s], already shifted: labels[i] is the token to predict at position i; IGNORED is not trained."""
    lengths: torch.Tensor
    """long [b], tokens of each row before the padding."""
    patches: torch.Tensor
    """uint8 [n, 3 * patch * patch]: one frame, merge order."""
    image_grid_thw: torch.Tensor
    """long [k, 3] in patches; k is 0 for a batch without pictures."""
    keys: list[str]
    rules: PictureRules

    @property
    def tokens(self) -> int:
        """Trained tokens."""
        return int((self.labels != IGNORED).sum())

    @property
    def attention_mask(self) -> torch.Tensor:
        """long [b, s]: 1 for tokens, 0 for padding."""
        return (torch.arange(self.input_ids.shape[1]) < self.lengths[:, None]).long()

    def model_inputs(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the model is called with: what the Hugging Face processor gives, made on `device`.

        input_ids and attention_mask long [b, s]; with pictures also pixel_values `dtype` [n, 3 * frames * patch * patch]
        and image_grid_thw long [k, 3].
        """
        inputs = {
            "input_ids": self.input_ids.to(device, non_blocking=True),
            "attention_mask": self.attention_mask.to(device, non_blocking=True),
        }
        if len(self.image_grid_thw):
            inputs["pixel_values"] = pixel_values(self.patches.to(device, non_blocking=True), self.rules, dtype)
            inputs["image_grid_thw"] = self.image_grid_thw.to(device, non_blocking=True)
        return inputs


def pixel_values(patches: torch.Tensor, rules: PictureRules, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [n, 3 * p * p] of one frame -> `dtype` [n, 3 * frames * p * p], normalised as Hugging Face does, where `patches` is.

    The arithmetic is fp32 whatever `dtype` is: scaling 8-bit values in bf16 would round each of them twice.
    """
    mean, std = (torch.tensor(values, device=patches.device)[:, None] for values in (rules.mean, rules.std))
    values = patches.view(-1, CHANNELS, rules.patch_size**2).float().mul_(rules.rescale).sub_(mean).div_(std).to(dtype)
    frames = values[:, :, None].expand(-1, -1, rules.temporal_patch_size, -1)
    return frames.reshape(len(patches), rules.temporal_patch_size * rules.patch_bytes)


def collate(samples: list[Encoded], pad_token_id: int, rules: PictureRules) -> Batch:
    """One micro batch, padded to its longest sample."""
    longest = max(len(sample.ids) for sample in samples)
    input_ids = torch.full((len(samples), longest), pad_token_id)
    labels = torch.full((len(samples), longest), IGNORED)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample.ids)] = torch.from_numpy(sample.ids)
        labels[row, : len(sample.ids)] = torch.from_numpy(sample.labels)
    return Batch(
        input_ids=input_ids,
        labels=labels,
        lengths=torch.tensor([len(sample.ids) for sample in samples]),
        patches=torch.from_numpy(np.concatenate([sample.patches for sample in samples])),
        image_grid_thw=torch.from_numpy(np.concatenate([sample.grids for sample in samples])),
        keys=[sample.key for sample in samples],
        rules=rules,
    )
