"""Comparison with Hugging Face's model: logits, gradients under our names, and cached generation."""

from __future__ import annotations

from pathlib import Path

import torch

import qwen3vl_core
from tests import tiny

TOLERANCE = 1e-5


def reference_logits(reference, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    reference.model.rope_deltas = None
    return reference(**inputs, mm_token_type_ids=tiny.token_types(inputs["input_ids"])).logits


def check_gradients(pair, inputs: dict[str, torch.Tensor], folder: Path, least: int) -> None:
    """Gradients of a random weighting of the real tokens' logits. least: minimum number of parameters with a gradient."""
    reference, model = pair
    real = inputs["attention_mask"][..., None]
    weights = torch.randn(*inputs["input_ids"].shape, tiny.VOCABULARY, generator=torch.Generator().manual_seed(9)) * real
    for m in (reference, model):
        m.zero_grad()
    (reference_logits(reference, inputs) * weights).sum().backward()
    (model(**inputs) * weights).sum().backward()
    check_same_gradients(model, gradients_of(reference, folder), least)


def gradients_of(reference, folder: Path) -> dict[str, torch.Tensor]:
    """The reference's gradients under our names: converted by the name map like weights."""
    weights = {n: p.detach().clone() for n, p in reference.named_parameters()}
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        gradients = qwen3vl_core.load(tiny.save(reference, folder)).state_dict()
        for n, p in reference.named_parameters():
            p.copy_(weights[n])
    return gradients


def check_same_gradients(model, expected: dict[str, torch.Tensor], least: int) -> None:
    compared = 0
    for name, parameter in model.named_parameters():
        ours = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        theirs = expected[name]
        assert (ours - theirs).norm() <= TOLERANCE * theirs.norm() + 1e-9, name
        compared += theirs.norm() > 0
    assert compared > least


def cached_beside_full(model, inputs: dict[str, torch.Tensor], steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(logits with cached keys and values, those of one pass over everything) of the prompt's last token and of each step after it."""
    pixels = {k: inputs[k] for k in ("pixel_values", "image_grid_thw")}
    decoder = model.cached_decoder(64)
    cached = [decoder.prefill(inputs["input_ids"], **pixels)]
    tokens = [cached[-1].argmax(-1)]
    for _ in range(steps):
        cached.append(decoder.decode(tokens[-1]))
        tokens.append(cached[-1].argmax(-1))
    ids = torch.cat([inputs["input_ids"], *(t[:, None] for t in tokens)], dim=1)
    with torch.no_grad():
        full = model(ids, **pixels)
    prompt = inputs["input_ids"].shape[1]
    return [(logits, full[:, prompt - 1 + index]) for index, logits in enumerate(cached)]
