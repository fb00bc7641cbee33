"""Gradients of embedding and output layer that are added in place: those that Megatron adds afterwards."""

from __future__ import annotations

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.weight_gradients import add_product, add_rows, add_vocabulary_gradients_in_place

import pytest
import torch

from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.training import setup, step
from tests import tiny
from tests.training import trainings


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    return tiny.save(tiny.hf_model(5, tied=request.param, layers=3, vision_layers=3), tmp_path_factory.mktemp("hf"))


def run(folder, in_place: bool, steps: int = 0, **changes):
    """Gradients of a global batch, or losses and norms of some steps."""
    options = trainings.options(folder, micro_batch_size=2, global_batch_size=4, **changes)
    process_groups.initialize()
    try:
        training = setup.build(options, open_source(folder))
        if in_place:
            add_vocabulary_gradients_in_place(training.models[0])
        if steps:
            results = [step.train_step(training, trainings.micro_batches(s, 2, count=4)) for s in range(steps)]
            return [(r.loss, r.grad_norm) for r in results]
        step._run(training, step.structured(training, trainings.micro_batches(7, 2, count=4)), forward_only=False)
        language = training.models[0].language_model
        weights = (language.embedding.word_embeddings.weight, language.output_layer.weight)
        marks = [w.grad_added_to_main_grad for w in weights if w is not None and w.requires_grad]
        assert marks == [in_place] * len(marks)
        return {name: p.main_grad.clone() for name, p in training.models[0].named_parameters() if p.requires_grad}
    finally:
        process_groups.destroy()


@pytest.mark.parametrize("changes", [{}, {"overlap_grad_reduce": True, "distributed_optimizer": True}], ids=str)
def test_gradients_in_place_equal_those_added_afterwards(folder, changes):
    afterwards, in_place = run(folder, False, **changes), run(folder, True, **changes)
    assert afterwards.keys() == in_place.keys()
    for name, gradient in afterwards.items():
        assert (in_place[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-12, name
        assert torch.equal(in_place[name], gradient) or "embed" in name or "output_layer" in name, name


@pytest.mark.parametrize("changes", [{"freeze": "language"}, {"lora_rank": 4}], ids=str)
def test_frozen_weights_have_no_gradients_in_place(folder, changes):
    afterwards, in_place = run(folder, False, **changes), run(folder, True, **changes)
    assert afterwards.keys() == in_place.keys() and all(torch.equal(in_place[name], gradient) for name, gradient in afterwards.items())


def test_steps_have_the_same_losses(folder):
    for ours, theirs in zip(run(folder, True, steps=3), run(folder, False, steps=3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("tokens", [1, 60, 5000])
def test_rows_of_the_same_token_are_summed_before_they_are_added(tokens):
    """The sums are those of torch's embedding, to the bit; 5000 are more than the vocabulary."""
    torch.manual_seed(0)
    index, rows = torch.randint(0, 90, (tokens,)), torch.randn(tokens, 8).bfloat16()
    buffer = torch.randn(100, 8)
    expected = buffer + torch.ops.aten.embedding_dense_backward(rows, index, 100, -1, False).float()
    add_rows(buffer, index, rows)
    assert torch.equal(buffer, expected)


def test_a_product_is_summed_in_fp32():
    torch.manual_seed(0)
    buffer, grad, states = torch.randn(7, 5), torch.randn(30, 7).bfloat16(), torch.randn(30, 5).bfloat16()
    expected = buffer + grad.double().t() @ states.double()
    add_product(buffer, grad, states)
    assert (buffer - expected).abs().max() < 1e-5
