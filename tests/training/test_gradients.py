"""Every parallel layout has the loss and all gradients of one process."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests import tiny
from tests.ranks import Failure, run_each
from tests.training import trainings

TP, SP = {"tp": 2}, {"tp": 2, "sequence_parallel": True}
LAYOUTS = {
    "one process": (1, {}),
    "one sample a micro batch": (1, {"micro_batch_size": 1}),
    "rows padded": (1, {"pad_length": 96}),
    "TP2": (2, TP),
    "TP2 SP": (2, SP),
    "PP2": (2, {"pp": 2}),
    "PP2 uneven first stage": (2, {"pp": 2, "pp0_layers": 6}),
    "PP2 VP2": (2, {"pp": 2, "vp": 2}),
    "CP2": (2, {"cp": 2}),
    "DP2": (2, {}),
    # sample 0 of each global batch is text: with one sample a micro batch one rank sees no picture where the other does
    "DP2 one sample a micro batch": (2, {"micro_batch_size": 1}),
    "TP2 PP2": (4, TP | {"pp": 2}),
    "TP2 SP PP2 VP2": (4, SP | {"pp": 2, "vp": 2}),
    "TP2 SP CP2": (4, SP | {"cp": 2}),
    "PP2 CP2": (4, {"pp": 2, "cp": 2}),
    "PP2 VP2 CP2": (4, {"pp": 2, "vp": 2, "cp": 2}),
    "PP4": (4, {"pp": 4}),
    "CP4": (4, {"cp": 4}),
    "DP2 CP2 recompute": (4, {"cp": 2, "recompute": "full"}),
    "DP2 TP2 SP one sample a micro batch": (4, SP | {"micro_batch_size": 1}),
    "DP2 PP2 uneven first stage recompute": (4, {"pp": 2, "pp0_layers": 2, "recompute": "full"}),
}
PACKED = ["one process", "TP2 SP", "PP2", "PP2 VP2", "CP2", "DP2", "TP2 SP CP2", "PP2 CP2"]
EXPERTS = {
    "one process": (1, {}),
    "rows padded": (1, {"pad_length": 96}),
    "EP2": (2, {"ep": 2}),
    "DP2": (2, {}),
    "CP2": (2, {"cp": 2}),
    "PP2 VP2": (2, {"pp": 2, "vp": 2}),
    "TP2 SP": (2, SP),
    "ETP2": (2, {"etp": 2}),
    "TP2 SP EP2": (2, SP | {"ep": 2}),
    "TP2 SP ETP2": (2, SP | {"etp": 2}),
    "EP2 one sample a micro batch": (2, {"ep": 2, "micro_batch_size": 1}),
    "EP4": (4, {"ep": 4, "micro_batch_size": 1}),
    "PP2 EP2 selective recompute": (4, {"pp": 2, "ep": 2, "recompute": "sel"}),
    "CP2 EP2": (4, {"cp": 2, "ep": 2}),
    "TP2 SP CP2 EP4": (4, SP | {"cp": 2, "ep": 4}),
    "TP2 SP EP2 ETP2": (4, SP | {"ep": 2, "etp": 2}),
    "PP2 VP2 EP2": (4, {"pp": 2, "vp": 2, "ep": 2, "micro_batch_size": 1}),
    "TP2 SP PP2 ETP2 recompute": (4, SP | {"pp": 2, "etp": 2, "recompute": "full"}),
}
PACKED_EXPERTS = ["EP2", "TP2 SP CP2 EP4", "PP2 EP2 selective recompute"]
LOSS, GRADIENT = 2e-6, 1e-5
ALL = bool(os.environ.get("QWEN3VL_LAYOUTS"))
# of the layouts of four processes those that hold most at once; QWEN3VL_LAYOUTS=all computes each
OF_FOUR = {
    "TP2 SP PP2 VP2", "TP2 SP CP2", "PP2 VP2 CP2", "DP2 PP2 uneven first stage recompute", "TP2 SP CP2 EP4",
    "PP2 EP2 selective recompute", "TP2 SP PP2 ETP2 recompute",
}  # fmt: skip


def computed(layouts: dict) -> list[str]:
    """Names of the layouts that are compared with one process."""
    return [name for name, (world, _) in layouts.items() if name != "one process" and (world < 4 or ALL or name in OF_FOUR)]


BALANCE = {"aux_loss_coeff": 0.05}


class Computed:
    """What each layout has computed: all layouts of one number of ranks one after the other in the same processes, and of
    those only the ones that were asked for."""

    def __init__(self, folder, asked: list[tuple[int, tuple]]) -> None:
        self.folder, self.asked = folder, dict.fromkeys(asked)
        self.found: dict[tuple, Any] = {}

    def get(self, world: int, changes: dict, packed: bool = False):
        """((loss, trained tokens, norm of the gradients), gradients by name) of every rank's one opinion."""
        key = (world, frozen(changes), packed)
        if key not in self.found:
            jobs = {k: (self.folder, dict(k[1]), k[2]) for k in [*self.asked, key] if k[0] == world and k not in self.found}
            self.found |= run_each(world, trainings.gradients, jobs)
        ranks = self.found[key]
        assert not isinstance(ranks, Failure), ranks
        assert all(figures == ranks[0][0] for figures, _ in ranks), "every rank knows the same loss"
        return ranks[0][0], trainings.whole(ranks)


def frozen(changes: dict) -> tuple:
    return tuple(sorted(changes.items()))


def asked(request, layouts: dict, plain: str, packed: str, more: dict) -> list[tuple]:
    """The jobs of the tests that are to run."""
    jobs = []
    for item in request.session.items:
        name = getattr(item, "originalname", None)
        if item.path == request.path and name in (plain, packed):
            world, changes = layouts[item.callspec.params["name"]]
            jobs.append((world, frozen(changes | more), name == packed))
    return jobs


@pytest.fixture(scope="module")
def dense(request, tmp_path_factory):
    # four chunks of two layers: the first holds both deepstack layers
    model = tiny.hf_model(4, layers=8, hidden=32, head_dim=8, ffn=48, deepstack=(0, 2))
    folder = tiny.save(model, tmp_path_factory.mktemp("hf"))
    names = "test_a_layout_has_the_gradients_of_one_process", "test_a_packed_batch_has_the_gradients_of_its_documents"
    return Computed(folder, asked(request, LAYOUTS, *names, {}))


@pytest.fixture(scope="module")
def experts(request, tmp_path_factory):
    model = tiny.hf_moe_model(4, layers=8, hidden=32, head_dim=8, expert_ffn=16, deepstack=(0, 2))
    folder = tiny.save(model, tmp_path_factory.mktemp("moe"))
    names = (
        "test_a_layout_of_experts_has_the_gradients_of_one_process",
        "test_a_packed_batch_of_experts_has_the_gradients_of_one_process",
    )
    return Computed(folder, asked(request, EXPERTS, *names, BALANCE))


def compare(ours, reference):
    (loss, tokens, norm), gradients = ours
    (expected_loss, expected_tokens, expected_norm), expected = reference
    assert loss == pytest.approx(expected_loss, rel=LOSS) and tokens == expected_tokens
    assert gradients.keys() == expected.keys()
    worst = {k: float((gradients[k] - expected[k]).norm() / (expected[k].norm() + 1e-9)) for k in expected}
    wrong = {k: v for k, v in worst.items() if v > GRADIENT}
    assert not wrong, wrong
    assert norm == pytest.approx(expected_norm, rel=GRADIENT)
    whole = torch.cat([v.flatten() for v in gradients.values()]).double().norm()
    assert norm == pytest.approx(float(whole), rel=GRADIENT)
    assert all(float(v.norm()) > 0 for v in expected.values())


@pytest.mark.parametrize("name", computed(LAYOUTS))
def test_a_layout_has_the_gradients_of_one_process(dense, name):
    compare(dense.get(*LAYOUTS[name]), dense.get(1, {}))


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_batch_has_the_gradients_of_its_documents(dense, name):
    """Documents in one `thd` row see themselves only, each with its own mRoPE from 0."""
    world, changes = LAYOUTS[name]
    compare(dense.get(world, changes, True), dense.get(1, {}))


def test_text_only_micro_batches_on_one_of_two_ranks():
    """Layouts with one sample per micro batch show that the gradients of the vision tower do not deadlock."""
    seen = [["pixel_values" in b.inputs for b in trainings.micro_batches(7, 1, rank, 2, trainings.FEW_SAMPLES)] for rank in range(2)]
    assert any(a != b for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("name", computed(EXPERTS))
def test_a_layout_of_experts_has_the_gradients_of_one_process(experts, name):
    """The load balancing loss, defined over a micro batch, among them: padding that a layout needs does not count in it."""
    world, changes = EXPERTS[name]
    size = {"micro_batch_size": changes["micro_batch_size"]} if "micro_batch_size" in changes else {}
    compare(experts.get(world, changes | BALANCE), experts.get(1, size | BALANCE))


@pytest.mark.parametrize("name", PACKED_EXPERTS)
def test_a_packed_batch_of_experts_has_the_gradients_of_one_process(experts, name):
    world, changes = EXPERTS[name]
    compare(experts.get(world, changes | BALANCE, True), experts.get(1, BALANCE))


def test_the_weight_of_the_load_balancing_loss_does_not_depend_on_the_trained_tokens(experts):
    """Twice the coefficient adds twice as much to the gradients, and the reported loss is the language loss alone."""
    (loss, *_), plain = experts.get(1, {"aux_loss_coeff": 0.0})
    added = []
    for coefficient in (0.05, 0.1):
        (balanced, *_), gradients = experts.get(1, {"aux_loss_coeff": coefficient})
        assert balanced == pytest.approx(loss, rel=LOSS)
        added.append({k: gradients[k] - plain[k] for k in plain})
    routers = [k for k in plain if "router" in k]
    assert routers and all(float(added[0][k].norm()) > 1e-3 * float(plain[k].norm()) for k in routers)
    for key in routers:
        assert float((added[1][key] - 2 * added[0][key]).norm()) < 1e-3 * float(added[1][key].norm())


def test_documents_that_cannot_be_split_are_refused():
    from qwen3vl_core.structure.context_parallel import token_index

    with pytest.raises(ValueError, match="6 tokens cannot be split into 2 x 2 equal parts: pad to 8"):
        token_index(14, (8, 6), 2, 0)
