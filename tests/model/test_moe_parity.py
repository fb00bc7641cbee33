"""A mixture-of-experts model equals `Qwen3VLMoeForConditionalGeneration` in fp32: logits and gradients."""

from __future__ import annotations

import pytest
import torch

import qwen3vl_core
from tests import tiny

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    reference = tiny.hf_moe_model(seed=2)
    folder = tiny.save(reference, tmp_path_factory.mktemp("moe"))
    return reference, qwen3vl_core.load(folder)


def reference_logits(reference, inputs):
    reference.model.rope_deltas = None
    return reference(**inputs, mm_token_type_ids=tiny.token_types(inputs["input_ids"])).logits


@pytest.mark.parametrize("name", tiny.BATCHES)
def test_logits_equal_hugging_face(pair, name):
    reference, model = pair
    inputs = tiny.BATCHES[name]().inputs()
    with torch.no_grad():
        expected, logits = reference_logits(reference, inputs), model(**inputs)
    real = inputs["attention_mask"].bool()
    assert (logits - expected)[real].abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["three pictures of different sizes", "text-only and picture rows mixed"])
def test_every_gradient_equals_hugging_face(pair, name, tmp_path):
    reference, model = pair
    inputs = tiny.BATCHES[name]().inputs()
    real = inputs["attention_mask"][..., None]
    weights = torch.randn(*inputs["input_ids"].shape, tiny.VOCABULARY, generator=torch.Generator().manual_seed(9)) * real
    for m in (reference, model):
        m.zero_grad()
    (reference_logits(reference, inputs) * weights).sum().backward()
    (model(**inputs) * weights).sum().backward()
    state = {n: p.detach().clone() for n, p in reference.named_parameters()}
    with torch.no_grad():
        # gradients travel through the name map as weights do, so that each parameter meets its counterpart
        for parameter in reference.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        expected = qwen3vl_core.load(tiny.save(reference, tmp_path)).state_dict()
        for n, p in reference.named_parameters():
            p.copy_(state[n])
    compared = 0
    for parameter_name, parameter in model.named_parameters():
        ours = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        theirs = expected[parameter_name]
        assert (ours - theirs).norm() <= TOLERANCE * theirs.norm() + 1e-9, parameter_name
        compared += theirs.norm() > 0
    assert compared > 60
