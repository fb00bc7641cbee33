"""Experts of one rank, or of ranks that gather each other's tokens, in a whole step: loss and every gradient are those of Megatron's
experts in one process. The kernels and graphs around them are compared on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests import tiny
from tests.ranks import Failure, run_each
from tests.training import gathered, trainings
from tests.training.test_gradients import BALANCE, compare

LAYOUTS: dict[str, tuple[int, Any]] = {
    "one rank": (1, {}),
    "one rank, full recompute": (1, {"recompute": "full"}),
    "EP2": (2, {"ep": 2}),
    "EP2 selective recompute": (2, {"ep": 2, "recompute": "sel"}),
    "EP4 full recompute": (4, {"ep": 4, "recompute": "full", "micro_batch_size": 1}),
    "EP2 one sample a micro batch": (2, {"ep": 2, "micro_batch_size": 1}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny.hf_moe_model(4, layers=3, hidden=32, head_dim=8, expert_ffn=16, deepstack=(0, 2))
    return tiny.save(model, tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="module")
def found(folder):
    results = {}
    for world in (1, 2, 4):
        jobs = {name: (folder, changes | BALANCE) for name, (ranks, changes) in LAYOUTS.items() if ranks == world}
        results |= run_each(world, gathered.gradients, jobs)
    return results


@pytest.fixture(scope="module")
def references(folder):
    jobs = {size: (folder, {"micro_batch_size": size} | BALANCE) for size in (1, 2)}
    return run_each(1, trainings.gradients, jobs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_has_the_gradients_of_megatrons_experts(found, references, name):
    ranks, reference = found[name], references[LAYOUTS[name][1].get("micro_batch_size", 2)]
    assert not isinstance(ranks, Failure), ranks
    assert not isinstance(reference, Failure), reference
    compare((ranks[0][0], trainings.whole(ranks)), (reference[0][0], trainings.whole(reference)))
