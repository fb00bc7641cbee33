"""Adapters of all experts of a layer in one tensor, as beside Transformer Engine's experts: trained and saved as single ones are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwen3vl_core.checkpoint import torch_dist
from tests import tiny
from tests.ranks import Failure, run_each, run_ranks
from tests.training import stacked_experts, trainings
from tests.training.test_gradients import BALANCE, compare

LORA = {"lora_rank": 4, "lora_alpha": 8.0} | BALANCE
LAYOUTS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "one rank": (1, False, {}),
    "one rank, bounds on the device": (1, True, {}),
    "full recompute": (1, True, {"recompute": "full"}),
    "EP2": (2, False, {"ep": 2}),
    "ETP2": (2, False, {"etp": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny.hf_moe_model(4, experts=4, layers=2, vision_layers=2, hidden=32, head_dim=8, expert_ffn=16, deepstack=(0,))
    return tiny.save(model, tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="module")
def found(folder):
    results = {}
    for world in (1, 2):
        jobs = {
            name: (on_device, trainings.gradients, folder, LORA | changes)
            for name, (ranks, on_device, changes) in LAYOUTS.items() if ranks == world
        }  # fmt: skip
        results |= run_each(world, stacked_experts.called, jobs)
    return results


@pytest.fixture(scope="module")
def reference(folder):
    ranks = run_ranks(1, trainings.gradients, folder, LORA)
    return ranks[0][0], trainings.whole(ranks)


@pytest.mark.parametrize("name", LAYOUTS)
def test_they_have_the_gradients_of_single_experts(found, reference, name):
    ranks = found[name]
    assert not isinstance(ranks, Failure), ranks
    compare((ranks[0][0], trainings.whole(ranks)), reference)


SAVED: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "stacked": (1, {}),
    "stacked EP2, distributed optimizer": (2, {"ep": 2, "distributed_optimizer": True}),
    "stacked ETP2": (2, {"etp": 2}),
}


@pytest.fixture(scope="module")
def halves(folder, tmp_path_factory):
    """Losses of the second half of each run, by (who saved, who went on)."""
    root = tmp_path_factory.mktemp("runs")
    losses = {}
    for load in (False, True):
        for name, (world, changes) in SAVED.items():
            for saved in SAVED if load else [name]:
                options = LORA | changes
                form = () if name == "single" else (stacked_experts.called, False)
                arguments = (folder, root / saved, options, *([{}] if load else []))
                losses[saved, name, load] = run_ranks(world, *form, trainings.train_in_two_halves, *arguments)
    return root, losses


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("name", SAVED)
def test_runs_of_both_forms_resume_from_each_others_checkpoints(halves, saved, name):
    _, losses = halves
    expected = losses[saved, saved, False]
    resumed = losses[saved, name, True]
    if saved == name:
        assert resumed == expected
    for ours, theirs in zip(resumed[0], expected[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_their_checkpoints_have_the_same_tensors(halves):
    root, _ = halves
    single, *others = (torch_dist.RegionReader(torch_dist.find(root / name).data) for name in SAVED)
    for other in others:
        assert set(other.tensors) >= set(single.tensors), "a distributed optimizer has its weights beside them"
        for key, tensor in single.tensors.items():
            shape = tuple(tensor.size)
            assert tuple(other.tensors[key].size) == shape
            ours, theirs = (r.read(key, (0,) * len(shape), shape).float() for r in (other, single))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
