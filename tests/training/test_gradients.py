"""Every parallel form of the model has the loss and every gradient of one process."""

from __future__ import annotations

import pytest
import torch

from qwen3vl_core.checkpoint.torch_dist import RegionReader
from tests import tiny
from tests.ranks import run_ranks
from tests.training import trainings

LAYOUTS = {
    "TP2": (2, {"tp": 2}),
    "TP2 SP": (2, {"tp": 2, "sequence_parallel": True}),
    "PP2": (2, {"pp": 2}),
    "PP2 uneven first stage": (2, {"pp": 2, "pp0_layers": 8}),
    "PP2 VP2": (2, {"pp": 2, "vp": 2}),
    "CP2": (2, {"cp": 2}),
    "DP2": (2, {}),
    "TP2 SP CP2": (4, {"tp": 2, "sequence_parallel": True, "cp": 2}),
    "TP2 SP PP2": (4, {"tp": 2, "sequence_parallel": True, "pp": 2}),
    "PP2 CP2": (4, {"pp": 2, "cp": 2}),
    "DP2 CP2 recompute": (4, {"cp": 2, "recompute": "full"}),
}
LOSS, GRADIENT = 2e-6, 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # four chunks of three layers: the first holds the three deepstack layers
    return tiny.save(tiny.hf_model(4, layers=12, hidden=32, head_dim=8, ffn=48), tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def one_process(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("one")
    return run_ranks(1, trainings.gradients, folder, target, {})[0], read(target)


def read(folder):
    reader = RegionReader(folder)
    return {key: reader.read(key) for key in reader.tensors}


def compare(figures, gradients, reference, tolerance=GRADIENT):
    (loss, tokens), expected = reference
    assert figures[0] == pytest.approx(loss, rel=LOSS) and figures[1] == tokens
    assert gradients.keys() == expected.keys()
    worst = {k: float((gradients[k] - expected[k]).norm() / (expected[k].norm() + 1e-9)) for k in expected}
    wrong = {k: v for k, v in worst.items() if v > tolerance}
    assert not wrong, wrong
    assert all(float(v.norm()) > 0 for v in expected.values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_the_gradients_of_one_process(folder, one_process, tmp_path, name):
    world, changes = LAYOUTS[name]
    for figures in run_ranks(world, trainings.gradients, folder, tmp_path / "g", changes):
        compare(figures, read(tmp_path / "g"), one_process)


@pytest.mark.parametrize("name", ["one process", "CP2", "TP2 SP", "TP2 SP CP2", "PP2", "DP2"])
def test_a_packed_batch_has_the_gradients_of_its_documents(folder, one_process, tmp_path, name):
    """Documents in one `thd` row see themselves only, each with its own mRoPE from 0."""
    world, changes = LAYOUTS.get(name, (1, {}))
    for figures in run_ranks(world, trainings.gradients, folder, tmp_path / "g", changes | {"micro_batch_size": 4}, True):
        compare(figures, read(tmp_path / "g"), one_process)


def test_a_micro_batch_of_text_only_on_one_rank_does_not_hang_the_other(folder, tmp_path):
    """Sample 0 of each global batch is text: with micro batches of one sample the first rank sees no picture in some."""
    seen = [["pixel_values" in b.inputs for b in trainings.micro_batches(7, 1, rank, 2)] for rank in range(2)]
    assert any(a != b for a, b in zip(*seen, strict=True))
    one = run_ranks(1, trainings.gradients, folder, tmp_path / "one", {"micro_batch_size": 1})[0]
    for figures in run_ranks(2, trainings.gradients, folder, tmp_path / "two", {"micro_batch_size": 1}):
        compare(figures, read(tmp_path / "two"), (one, read(tmp_path / "one")))


MOE_LAYOUTS = {
    "EP2": (2, {"ep": 2}),
    "DP2": (2, {}),
    "TP2 SP EP2": (2, {"tp": 2, "sequence_parallel": True, "ep": 2}),
    "TP2 SP ETP2": (2, {"tp": 2, "sequence_parallel": True, "etp": 2}),
    "PP2 EP2": (4, {"pp": 2, "ep": 2}),
    "CP2 EP2": (4, {"cp": 2, "ep": 2}),
    "EP4": (4, {"ep": 4}),
    "TP2 SP PP2 ETP2 recompute": (4, {"tp": 2, "sequence_parallel": True, "pp": 2, "etp": 2, "recompute": "full"}),
}


@pytest.fixture(scope="module")
def moe_folder(tmp_path_factory):
    return tiny.save(tiny.hf_moe_model(4, layers=6, hidden=32, head_dim=8, expert_ffn=16), tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="module")
def moe_one_process(moe_folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("one")
    return run_ranks(1, trainings.gradients, moe_folder, target, {"aux_loss_coeff": 0.0})[0], read(target)


@pytest.mark.parametrize("name", MOE_LAYOUTS)
def test_a_layout_of_experts_has_the_gradients_of_one_process(moe_folder, moe_one_process, tmp_path, name):
    """Without the load balancing loss, which is defined over a micro batch and so depends on how a batch is cut."""
    world, changes = MOE_LAYOUTS[name]
    for figures in run_ranks(world, trainings.gradients, moe_folder, tmp_path / "g", changes | {"aux_loss_coeff": 0.0}):
        compare(figures, read(tmp_path / "g"), moe_one_process)


def test_the_load_balancing_loss_reaches_the_router(moe_folder, moe_one_process, tmp_path):
    figures = run_ranks(1, trainings.gradients, moe_folder, tmp_path / "g", {"aux_loss_coeff": 0.1})[0]
    assert figures[0] == pytest.approx(moe_one_process[0][0], rel=LOSS), "the reported loss is the language loss alone"
    plain, balanced = moe_one_process[1], read(tmp_path / "g")
    routers = [k for k in plain if "router" in k]
    assert routers and all(float((plain[k] - balanced[k]).norm()) > 1e-3 * float(plain[k].norm()) for k in routers)


def test_documents_that_cannot_be_cut_are_named():
    from qwen3vl_core.model.slices import token_index

    with pytest.raises(ValueError, match="6 tokens cannot be cut into 2 x 2 equal parts: pad to 8"):
        token_index(14, torch.tensor([0, 8, 14]), 2, 0)
