"""A mixture-of-experts model equals `Qwen3VLMoeForConditionalGeneration` in fp32: logits and gradients."""

from __future__ import annotations

import pytest
import torch

import qwen3vl_core
from tests import tiny
from tests.model.parity import TOLERANCE, check_gradients, check_same_gradients, gradients_of, reference_logits


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    reference = tiny.hf_moe_model(seed=2)
    folder = tiny.save(reference, tmp_path_factory.mktemp("moe"))
    return reference, qwen3vl_core.load(folder)


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
    check_gradients(pair, tiny.BATCHES[name]().inputs(), tmp_path, least=60)


@pytest.mark.parametrize("name", ["three pictures of different sizes", "text-only and picture rows mixed"])
@pytest.mark.parametrize("pad_left", [False, True], ids=["padded right", "padded left"])
def test_the_load_balancing_loss_equals_hugging_faces_of_each_layer(pair, name, pad_left, tmp_path):
    """Its gradient is among the others when the model trains; padding does not count. Hugging Face adds up the chosen experts
    of a token, Megatron takes their mean; Hugging Face counts all layers as one, Megatron each by itself."""
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

    reference, model = pair
    inputs = tiny.BATCHES[name]().inputs(pad_left=pad_left)
    text = reference.config.text_config
    coefficient, experts, chosen = 0.5, text.num_experts, text.num_experts_per_tok
    for m in (reference, model):
        m.zero_grad()
    routed: list[torch.Tensor] = []
    gates = [layer.mlp.gate for layer in reference.model.language_model.layers]
    hooks = [gate.register_forward_hook(lambda gate, given, made: routed.append(made[0])) for gate in gates]
    logits = reference_logits(reference, inputs)
    for hook in hooks:
        hook.remove()
    assert len(routed) == text.num_hidden_layers
    balance = sum(load_balancing_loss_func((one,), experts, chosen, inputs["attention_mask"]) for one in routed) / chosen
    attended = inputs["attention_mask"].bool()
    loss = torch.nn.functional.cross_entropy(logits[attended], torch.arange(int(attended.sum())) % 150)
    (loss + coefficient * balance).backward()

    before = model.config.moe_aux_loss_coeff
    model.config.moe_aux_loss_coeff = coefficient
    try:
        ours = model.train()(**inputs)[inputs["attention_mask"].bool()]
        torch.nn.functional.cross_entropy(ours, torch.arange(len(ours)) % 150).backward()
    finally:
        model.eval()
        model.config.moe_aux_loss_coeff = before
    check_same_gradients(model, gradients_of(reference, tmp_path), least=60)
    router = next(p for n, p in model.named_parameters() if n.endswith("0.mlp.router.weight"))
    assert router.grad.norm() > 0
