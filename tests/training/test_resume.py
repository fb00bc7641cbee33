"""A run that is resumed goes on as if it had never stopped."""

from __future__ import annotations

import json

import pytest
import torch

from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.cli import main
from tests import tiny
from tests.ranks import run_ranks
from tests.training import trainings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.hf_model(5, layers=6), tmp_path_factory.mktemp("hf"))


LAYOUTS = {
    "fp32": (1, {}),
    "bf16": (1, {"precision": "bf16"}),
    "fp16": (1, {"precision": "fp16"}),
    "DP2 distributed optimizer bf16": (2, {"distributed_optimizer": True, "precision": "bf16"}),
    "TP2 sequence parallel": (2, {"tp": 2, "sequence_parallel": True}),
    "PP2": (2, {"pp": 2}),
    "frozen vision": (1, {"freeze": "vision"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_losses_after_a_resume_are_bitwise_those_of_the_run_that_went_on(folder, tmp_path, name):
    world, changes = LAYOUTS[name]
    went_on = run_ranks(world, trainings.train_in_two_halves, folder, tmp_path, changes)
    resumed = run_ranks(world, trainings.train_in_two_halves, folder, tmp_path, changes, {})
    assert resumed == went_on


OTHERS = {
    "distributed to plain": ("DP2 distributed optimizer", "fp32"),
    "plain to distributed": ("fp32", "DP2 distributed optimizer"),
    "distributed to TP2": ("DP2 distributed optimizer", "TP2 sequence parallel"),
    "TP2 to distributed PP2": ("TP2 sequence parallel", "PP2 distributed optimizer"),
    "distributed to plain, bf16": ("DP2 distributed optimizer bf16", "bf16"),
    "plain to distributed, bf16": ("bf16", "DP2 distributed optimizer bf16"),
}
LAYOUTS_THEN = LAYOUTS | {
    "DP2 distributed optimizer": (2, {"distributed_optimizer": True}),
    "PP2 distributed optimizer": (2, {"pp": 2, "distributed_optimizer": True}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_layout_and_another_kind_of_optimizer_go_on_from_a_checkpoint(folder, tmp_path, name):
    """Weights and optimizer state fit every layout, and the plain optimizer as well as the one that splits its state."""
    (world, save), (other, then) = (LAYOUTS_THEN[key] for key in OTHERS[name])
    went_on = run_ranks(world, trainings.train_in_two_halves, folder, tmp_path, save)[0]
    resumed = run_ranks(other, trainings.train_in_two_halves, folder, tmp_path, then, {})[0]
    # bf16 rounds each gradient, and in another order when the ranks are others
    tolerance = 2e-3 if "bf16" in name else 1e-5
    for ours, theirs in zip(resumed, went_on, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return tiny.save(tiny.hf_moe_model(5, experts=4), tmp_path_factory.mktemp("moe"))


@pytest.mark.parametrize(
    "there, here", [((2, {"ep": 2}), (1, {})), ((1, {}), (2, {"ep": 2, "distributed_optimizer": True}))], ids=["gathered", "spread"]
)
def test_experts_are_gathered_and_spread_between_save_and_resume(experts, tmp_path, there, here):
    """With expert parallelism there are two optimizers, without it one."""
    went_on = run_ranks(there[0], trainings.train_in_two_halves, experts, tmp_path, there[1])[0]
    resumed = run_ranks(here[0], trainings.train_in_two_halves, experts, tmp_path, here[1], {})[0]
    for ours, theirs in zip(resumed, went_on, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_checkpoint_of_a_run_converts_back(folder, tmp_path, capsys):
    run_ranks(2, trainings.train_in_two_halves, folder, tmp_path / "checkpoints", {"tp": 2, "precision": "bf16"})
    assert main(["convert", str(tmp_path), str(tmp_path / "hf"), "--verify"]) == 0
    assert "iteration 2" in capsys.readouterr().out
    there, back = open_source(tmp_path), open_source(tmp_path / "hf")
    assert there.iteration == 2 and there.kind == "megatron" and back.kind == "hf"
    base = open_source(folder)
    changed = 0
    for a, b in zip(base.regions(), back.regions(), strict=True):
        for before, after in zip(base.read_hf(a), back.read_hf(b), strict=True):
            assert after.dtype == torch.bfloat16
            changed += not torch.equal(before.bfloat16(), after)
    assert changed > 50
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_interrupted_save_leaves_the_checkpoint_before_it(folder, tmp_path):
    run_ranks(1, trainings.train_in_two_halves, folder, tmp_path, {})
    (tmp_path / "iter_0000009.tmp").mkdir()
    assert torch_dist.find(tmp_path).iteration == 2
