"""The small models whose checkpoints other releases wrote. Their weights compress well and differ in every row and column."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch

from tests import tiny

SHAPE = dict(layers=3, vision_layers=3, hidden=16, head_dim=8, heads=2, kv_heads=1, ffn=24, deepstack=(0, 1))
RELEASES = ("0.12.3", "0.13.1", "0.14.0", "0.15.3", "0.16.1", "0.17.1", "0.18.2", "0.19.2")
# names of the vision tower and how the tensors are cut, for each model of a release
STYLES = {
    "0.12.3": (("hf", "listed"), ("swift", "stacked")),
    "0.13.1": (("swift", "stacked"), ("swift", "listed")),
    "0.14.0": (("pai", "listed"), ("pai", "stacked")),
    "0.15.3": (("hf", "single"), ("bridge", "single")),
    "0.16.1": (("bridge", "listed"), ("hf", "stacked")),
    "0.17.1": (("swift", "stacked"), ("bridge", "stacked")),
    "0.18.2": (("bridge", "single"), ("swift", "listed")),
    "0.19.2": (("bridge", "stacked"), ("swift", "single")),
}
KINDS = ("dense", "moe")


def source(folder: Path, kind: str) -> Path:
    """The Hugging Face model of one kind, the same each time."""
    made = tiny.hf_model(tied=False, **SHAPE) if kind == "dense" else tiny.hf_moe_model(experts=4, expert_ffn=8, **SHAPE)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            rows, columns = torch.arange(parameter.shape[0]), torch.arange(parameter[0].numel())
            salt = zlib.crc32(name.encode()) % 251
            pattern = (rows[:, None] * 31 + columns * 17 + salt) % 251
            parameter.copy_((pattern / 128 - 1).view(parameter.shape))
    return tiny.save(made, folder)
