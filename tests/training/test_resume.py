"""A resumed run continues as if it had not been stopped: bitwise in its own layout, within rounding in another."""

from __future__ import annotations

import json

import pytest
import torch

from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.cli import main
from tests import tiny
from tests.ranks import Failure, run_each
from tests.training import trainings

DO, BF16, SP = {"distributed_optimizer": True}, {"precision": "bf16"}, {"tp": 2, "sequence_parallel": True}
LORA = {"lora_rank": 4, "lora_vision": True}
# micro batches
FEW = {"micro_batch_size": 4}
# (model, ranks, options)
FORMS = {
    "fp32": ("dense", 1, {}),
    "bf16": ("dense", 1, BF16),
    "fp16": ("dense", 1, {"precision": "fp16"}),
    "frozen vision": ("dense", 1, {"freeze": "vision"}),
    "experts": ("experts", 1, {}),
    "LoRA": ("dense", 1, LORA),
    "DP2 distributed optimizer": ("dense", 2, DO),
    "DP2 distributed optimizer bf16": ("dense", 2, DO | BF16),
    "TP2 sequence parallel": ("dense", 2, SP),
    "PP2": ("dense", 2, {"pp": 2}),
    "experts EP2": ("experts", 2, {"ep": 2}),
    "LoRA bf16, TP2 SP, dropout": ("dense", 2, LORA | SP | BF16 | {"lora_dropout": 0.2}),
    "LoRA experts EP2": ("experts", 2, LORA | DO | {"ep": 2}),
}
# layouts that only resume from a checkpoint of another
THEN = {
    "PP2 distributed optimizer": ("dense", 2, DO | {"pp": 2}),
    "experts EP2 distributed optimizer": ("experts", 2, DO | {"ep": 2}),
    "LoRA TP2 SP": ("dense", 2, LORA | SP),
}
OTHERS = [
    ("DP2 distributed optimizer", "fp32"),
    ("fp32", "DP2 distributed optimizer"),
    ("DP2 distributed optimizer", "TP2 sequence parallel"),
    ("TP2 sequence parallel", "PP2 distributed optimizer"),
    ("DP2 distributed optimizer bf16", "bf16"),
    ("bf16", "DP2 distributed optimizer bf16"),
    # with expert parallelism there are two optimizers, without it one
    ("experts EP2", "experts"),
    ("experts", "experts EP2 distributed optimizer"),
    ("LoRA", "LoRA TP2 SP"),
]


class Halves:
    """The first half of each form with its checkpoint and the second after it, and what goes on from there: all forms of one number of
    ranks one after the other in the same processes."""

    def __init__(self, folders, root) -> None:
        self.folders, self.root = folders, root
        self.saved, self.loaded = {}, {}
        for world in (1, 2):
            names = [name for name, (_, ranks, _) in FORMS.items() if ranks == world]
            jobs = {name: (folders[FORMS[name][0]], self.checkpoints(name), FEW | FORMS[name][2]) for name in names}
            self.saved |= run_each(world, trainings.train_in_two_halves, jobs)
        for world in (1, 2):
            pairs = [pair for pair in [(name, name) for name in FORMS] + OTHERS if (FORMS | THEN)[pair[1]][1] == world]
            jobs = {(one, then): self._job(one, then) for one, then in pairs}
            self.loaded |= run_each(world, trainings.train_in_two_halves, jobs)

    def checkpoints(self, name):
        return self.root / name.replace(" ", "-")

    def _job(self, one, then):
        model, _, options = (FORMS | THEN)[then]
        return self.folders[model], self.checkpoints(one), FEW | options, {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    small = dict(layers=2, vision_layers=2, hidden=32, head_dim=8, deepstack=(0,))
    return {
        "dense": tiny.save(tiny.hf_model(5, ffn=48, **small), tmp_path_factory.mktemp("hf")),
        "experts": tiny.save(tiny.hf_moe_model(5, experts=4, expert_ffn=16, **small), tmp_path_factory.mktemp("moe")),
    }


@pytest.fixture(scope="module")
def halves(folders, tmp_path_factory) -> Halves:
    return Halves(folders, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("name", FORMS)
def test_losses_after_a_resume_are_bitwise_those_of_an_uninterrupted_run(halves, name):
    went_on, resumed = halves.saved[name], halves.loaded[name, name]
    assert not isinstance(went_on, Failure), went_on
    assert resumed == went_on


@pytest.mark.parametrize(("one", "then"), OTHERS)
def test_other_layouts_and_optimizers_resume_from_a_checkpoint(halves, one, then):
    """Weights and optimizer state fit every layout, and the plain optimizer as well as the one that splits its state."""
    resumed = halves.loaded[one, then]
    assert not isinstance(resumed, Failure), resumed
    # bf16 rounds each gradient, and in another order when the ranks are others
    tolerance = 2e-3 if "bf16" in one else 1e-5
    for ours, theirs in zip(resumed[0], halves.saved[one][0], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)


def test_a_lora_checkpoint_contains_only_adapters_and_their_optimizer(halves):
    tensors = torch_dist.RegionReader(torch_dist.find(halves.checkpoints("LoRA")).data).tensors
    assert len(tensors) > 15 and all(".adapter." in key for key in tensors)


def test_a_checkpoint_of_a_run_converts_back(halves, folders, tmp_path, capsys):
    checkpoints = halves.checkpoints("DP2 distributed optimizer bf16")
    assert main(["convert", str(checkpoints), str(tmp_path / "hf"), "--verify"]) == 0
    assert "iteration 2" in capsys.readouterr().out
    there, back = open_source(checkpoints), open_source(tmp_path / "hf")
    assert there.iteration == 2 and there.kind == "megatron" and back.kind == "hf"
    base = open_source(folders["dense"])
    changed = 0
    for a, b in zip(base.regions(), back.regions(), strict=True):
        for before, after in zip(base.read_hf(a), back.read_hf(b), strict=True):
            assert after.dtype == torch.bfloat16
            changed += not torch.equal(before.bfloat16(), after)
    assert changed > 25
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_interrupted_save_keeps_the_previous_checkpoint(halves):
    (halves.checkpoints("fp32") / "iter_0000009.tmp").mkdir()
    assert torch_dist.find(halves.checkpoints("fp32")).iteration == 2
