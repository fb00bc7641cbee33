"""Helpers for conversions: tensors of a folder, Megatron's own loader."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qwen3vl_core.checkpoint import convert, torch_dist
from qwen3vl_core.options import ConvertOptions


def run(source: Path, target: Path, **options: Any) -> None:
    convert.run(ConvertOptions(source=str(source), target=str(target), **options))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Hugging Face folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def loaded_by_megatron(model, folder: Path) -> dict[str, Any]:
    """Load a checkpoint into this model with Megatron-LM's strict loader; returns what the loader returns.

    The strictness that Megatron-LM uses by default raises for every key that is asked for and not there (it allows the namespace of
    arguments, as Megatron-LM's start-up does).
    """
    from megatron.core import dist_checkpointing

    for parameter in model.parameters():
        parameter.data.zero_()
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(torch_dist.find(folder).data))
    model.load_state_dict(loaded["model"], strict=False)
    return loaded


def without_digests(folder: Path) -> Path:
    """A converted folder as other programs write it: damage is found by what reads the files."""
    for file in folder.rglob("digests.json"):
        file.unlink()
    return folder
