"""A checkpoint saved by a training run in any parallel layout converts back bitwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qwen3vl_core
from qwen3vl_core.checkpoint import convert
from qwen3vl_core.checkpoint.hf import HFReader
from qwen3vl_core.checkpoint.inspect import inspect
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.options import ConvertOptions
from tests import tiny
from tests.ranks import Failure, run_each
from tests.training import trainings

SP = {"tp": 2, "sequence_parallel": True}
DENSE = {
    "one process bf16": (1, {"precision": "bf16"}),
    "TP2": (2, {"tp": 2}),
    "PP2 uneven first stage": (2, {"pp": 2, "pp0_layers": 3}),
    "PP2 VP2": (2, {"pp": 2, "vp": 2}),
    "CP2 distributed optimizer": (2, {"cp": 2, "distributed_optimizer": True}),
    "DP2 distributed optimizer bf16": (2, {"distributed_optimizer": True, "precision": "bf16"}),
    "TP2 SP PP2 distributed optimizer": (4, SP | {"pp": 2, "distributed_optimizer": True}),
}
EXPERTS = {
    "one process": (1, {}),
    "EP2 distributed optimizer": (2, {"ep": 2, "distributed_optimizer": True}),
    "TP2 SP": (2, SP),
    "ETP2": (2, {"etp": 2}),
    "PP2 VP2": (2, {"pp": 2, "vp": 2}),
    "TP2 SP EP2 ETP2": (4, SP | {"ep": 2, "etp": 2}),
}


def saved(source: Path, folder: Path, layouts: dict) -> dict[str, Path]:
    """Checkpoints, by layout, of runs that started from `source`, saved before their first step."""
    made = {}
    for world in (1, 2, 4):
        jobs = {name: (source, folder / name, changes) for name, (size, changes) in layouts.items() if size == world}
        for name, result in run_each(world, trainings.save_the_beginning, jobs).items():
            assert not isinstance(result, Failure), f"{name}: {result}"
            made[name] = folder / name
    return made


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    # chunks of one layer hold the one deepstack layer
    source = tiny.save(tiny.hf_model(6, tied=False, layers=4, hidden=32, head_dim=8, ffn=48, deepstack=(1,)), tmp_path_factory.mktemp("hf"))
    return source, saved(source, tmp_path_factory.mktemp("saved"), DENSE)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    model = tiny.hf_moe_model(6, layers=4, hidden=32, head_dim=8, expert_ffn=16, experts=4, deepstack=(1,))
    source = tiny.save(model, tmp_path_factory.mktemp("moe"))
    return source, saved(source, tmp_path_factory.mktemp("saved"), EXPERTS)


def test_inspect_shows_the_layout_that_saved_it(experts):
    found = {name: inspect(checkpoint).parallel for name, checkpoint in experts[1].items()}
    assert found["TP2 SP EP2 ETP2"] == "TP 2 PP 1 CP 1 EP 2 ETP 2" and found["PP2 VP2"] == "TP 1 PP 2 VP 2 CP 1 EP 1 ETP 1"


def check(source: Path, checkpoint: Path, target: Path, dtype: torch.dtype) -> None:
    """The checkpoint, converted back or loaded directly, is the model that the run started from."""
    convert.run(ConvertOptions(source=str(checkpoint), target=str(target)))
    base, back = open_source(source), open_source(target)
    for there, here in zip(base.regions(), back.regions(), strict=True):
        # the files may keep their experts in another form: compared as Megatron keeps them
        assert torch.equal(base.read_box(there).to(dtype), back.read_box(here)), there.hf
    assert {entry.dtype for entry in HFReader(target).entries.values()} == {dtype}
    expected, loaded = (qwen3vl_core.load(path).state_dict() for path in (target, checkpoint))
    assert all(torch.equal(value, loaded[key]) for key, value in expected.items() if torch.is_tensor(value))


@pytest.mark.parametrize("name", DENSE)
def test_the_checkpoint_of_a_run_without_training_converts_back_bitwise(dense, tmp_path, name):
    source, checkpoints = dense
    check(source, checkpoints[name], tmp_path / "back", torch.bfloat16 if "bf16" in name else torch.float32)


@pytest.mark.parametrize("name", EXPERTS)
def test_the_checkpoint_of_a_moe_run_without_training_converts_back_bitwise(experts, tmp_path, name):
    source, checkpoints = experts
    check(source, checkpoints[name], tmp_path / "back", torch.float32)
