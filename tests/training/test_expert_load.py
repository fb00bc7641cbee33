"""The tokens of each expert in a step are those that transformers' router chooses, in every layout."""

from __future__ import annotations

import pytest
import torch

from qwen3vl_core.training import expert_load
from tests import tiny
from tests.model.parity import reference_logits
from tests.ranks import Failure, run_each
from tests.training import trainings
from tests.training.test_gradients import SP

STEPS, LAYERS, EXPERTS, CHOSEN = 2, 4, 8, 2
JOBS = {
    "one process": (1, {}, False),
    "padded rows": (1, {"pad_length": 96}, False),
    "packed": (1, {}, True),
    "full recompute": (1, {"recompute": "full"}, False),
    "selective recompute": (1, {"recompute": "sel"}, True),
    "LoRA, full recompute": (1, {"lora_rank": 2, "recompute": "full"}, False),
    "no balance loss": (1, {"aux_loss_coeff": 0.0}, False),
    "EP2 packed": (2, {"ep": 2}, True),
    "EP2 one sample a micro batch": (2, {"ep": 2, "micro_batch_size": 1}, False),
    "TP2 SP": (2, SP, False),
    "CP2 packed": (2, {"cp": 2}, True),
    "PP2": (2, {"pp": 2}, False),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny.hf_moe_model(4, layers=LAYERS, hidden=32, head_dim=8, expert_ffn=16, deepstack=(0, 1), experts=EXPERTS, chosen=CHOSEN)


@pytest.fixture(scope="module")
def expected(model):
    """Of each step, tokens [layers, experts] by the indices of transformers' routers."""
    steps = []
    for number in range(STEPS):
        counts = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64)
        for batch in trainings.micro_batches(number, 2, count=trainings.FEW_SAMPLES):
            chosen = []
            gates = [layer.mlp.gate for layer in model.model.language_model.layers]
            hooks = [gate.register_forward_hook(lambda gate, given, made, into=chosen: into.append(made[2])) for gate in gates]
            with torch.no_grad():
                reference_logits(model, batch.inputs)
            for hook in hooks:
                hook.remove()
            real = batch.attention_mask.bool().flatten()
            for layer, indices in enumerate(chosen):
                counts[layer] += torch.bincount(indices[real].flatten(), minlength=EXPERTS)
        steps.append(counts)
    assert not torch.equal(*steps)
    return steps


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    folder = tiny.save(model, tmp_path_factory.mktemp("moe"))
    results = {}
    for world in (1, 2):
        jobs = {name: (folder, changes, packed, STEPS) for name, (ranks, changes, packed) in JOBS.items() if ranks == world}
        results |= run_each(world, trainings.expert_counts, jobs)
    return results


@pytest.mark.parametrize("name", JOBS)
def test_the_tokens_of_each_expert_are_those_of_transformers(found, expected, name):
    ranks = found[name]
    assert not isinstance(ranks, Failure), ranks
    for of_rank in ranks:
        for (counts, figures), tokens in zip(of_rank, expected, strict=True):
            # a step's own: neither the previous step's nor those of the evaluation after it
            assert counts == tokens.tolist()
            per_mean = tokens.double() / tokens.double().mean(1, keepdim=True)
            assert figures == pytest.approx((per_mean.max().item(), int((tokens == 0).sum())))


def test_an_expert_without_tokens_is_idle_and_the_most_uneven_layer_counts():
    counts = torch.tensor([[4, 4, 4, 4], [0, 10, 6, 0]])
    assert expert_load.figures(counts).tolist() == [2.5, 2.0]
    assert expert_load.figures(torch.full((2, 4), 3)).tolist() == [1.0, 0.0]
