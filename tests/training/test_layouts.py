"""A parallel layout changes nothing: losses, gradient norms and what is learned equal one process's."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.ranks import run_ranks
from tests.training import trainings

LAYOUTS = {
    "DP2": (2, {}),
    "DP2 distributed optimizer": (2, {"distributed_optimizer": True}),
    "DP2 overlapped": (
        2,
        {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True, "recompute": "full",
         "recompute_layers": 3, "pad_length": 64},
    ),
    "TP2": (2, {"tp": 2}),
    "TP2 sequence parallel": (2, {"tp": 2, "sequence_parallel": True}),
    "PP2": (2, {"pp": 2}),
    "TP2 SP recompute": (2, {"tp": 2, "sequence_parallel": True, "recompute": "full"}),
    "DP2 PP2 distributed optimizer": (4, {"pp": 2, "distributed_optimizer": True}),
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    # six layers, so that a stage of three holds the three deepstack layers
    return tiny.save(tiny.hf_model(3, tied=request.param, layers=6), tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def one_process(folder):
    return run_ranks(1, trainings.train, folder)[0]


def close(results, reference, tolerance=1e-5):
    for ours, theirs in zip(results, reference, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_losses_of_one_process(folder, one_process, name):
    world, changes = LAYOUTS[name]
    for results in run_ranks(world, _train, folder, changes):
        close(results, one_process)


def _train(folder, changes):
    return trainings.train(folder, **changes)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_micro_batch_size_does_not_change_the_loss(folder, one_process, size):
    close(run_ranks(1, _train, folder, {"micro_batch_size": size})[0], one_process)


def test_recompute_does_not_change_the_loss(folder, one_process):
    for kind in ("sel", "full"):
        close(run_ranks(1, _train, folder, {"recompute": kind})[0], one_process, 1e-7)


def test_the_schedule_warms_up_then_falls(one_process):
    rates = [r[3] for r in one_process[:3]]
    assert rates[0] == pytest.approx(5e-4) and rates[1] == pytest.approx(1e-3)
    assert rates[2] < rates[1]
