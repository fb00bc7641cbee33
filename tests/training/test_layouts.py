"""Whole runs on real data: every layout has the losses of one process, and a run may resume in another layout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.ranks import run_each
from tests.training import runs

# the long form: QWEN3VL_LAYOUTS=all pytest tests/training/test_layouts.py
ALL = bool(os.environ.get("QWEN3VL_LAYOUTS"))
SP = {"tp": 2, "sequence_parallel": True}
DO = {"distributed_optimizer": True}
DENSE = {
    "DP2": (2, {}),
    "TP2": (2, {"tp": 2}),
    "DP2 distributed optimizer": (2, DO),
    "CP2": (2, {"cp": 2}),
    # another run goes on from its second step
    "TP2 SP PP2": (4, SP | {"pp": 2, "save_interval": 2}),
}
MORE_DENSE = {
    "TP2 SP": (2, SP),
    "PP2": (2, {"pp": 2}),
    "PP2 uneven first stage": (2, {"pp": 2, "pp0_layers": 4}),
    "TP2 SP CP2": (4, SP | {"cp": 2}),
    "PP2 CP2": (4, {"pp": 2, "cp": 2}),
    "DP2 TP2 SP distributed optimizer, overlapped": (4, SP | DO | {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "DP2 PP2 distributed optimizer, recompute": (4, DO | {"pp": 2, "recompute": "full"}),
    "micro batches of one": (1, {"micro_batch_size": 1}),
    "one micro batch": (1, {"micro_batch_size": 4}),
    "recompute sel": (1, {"recompute": "sel"}),
    "recompute full": (1, {"recompute": "full"}),
}
EXPERTS = {"TP2 SP EP2": (2, SP | {"ep": 2})}
MORE_EXPERTS = {
    "DP2": (2, {}),
    "EP2 distributed optimizer": (2, DO | {"ep": 2}),
    "ETP2": (2, {"etp": 2}),
    "TP2 SP ETP2": (2, SP | {"etp": 2}),
    "PP2 EP2": (4, {"pp": 2, "ep": 2}),
    "CP2 EP2": (4, {"cp": 2, "ep": 2}),
    "EP4": (4, {"ep": 4, "micro_batch_size": 1}),
    "TP2 SP PP2 ETP2 recompute": (4, SP | {"pp": 2, "etp": 2, "recompute": "full"}),
}
# sequence and context parallelism pad each document, and so pack others together, unless a row holds an epoch
PACKED = {"packed, TP2": (2, {"tp": 2}), "packed, PP2": (2, {"pp": 2})}
EPOCHS = {
    "packed, CP2": (2, {"cp": 2}),
    "packed, TP2 SP": (2, SP),
    "packed, TP2 SP CP2": (4, SP | {"cp": 2}),
    "packed, PP2 CP2": (4, {"pp": 2, "cp": 2}),
}
LORA = {"LoRA, TP2 SP PP2": (4, SP | {"pp": 2})}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return runs.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    jobs = {"dense": (tmp_path_factory.mktemp("dense"),), "experts": (tmp_path_factory.mktemp("experts"), 4)}
    return {kind: made[0] for kind, made in run_each(1, runs.small_model, jobs).items()}


class Trained:
    """Runs of one kind of model, each made once."""

    def __init__(self, folder: Path, load: Path, data: Path, **changes) -> None:
        self.folder, self.data = folder, data
        pictures = {"sample_images": [str(data.parent / f"{number}.png") for number in (1, 2)], "sample_interval": 4, "sample_tokens": 6}
        self.values = {"load": str(load), "lr": 1e-3, "train_iters": 4, "save_interval": 2 if ALL else 4} | pictures | changes
        self.made: dict[str, Path] = {}

    def run(self, name: str, world: int = 1, **changes) -> Path:
        if name not in self.made:
            self.made[name] = self.folder / name.replace(" ", "-")
            runs.plan(self.made[name], self.data, **(self.values | changes))
            assert runs.train(self.made[name], world=world)[0] == 0, runs.log(self.made[name])
        return self.made[name]


@pytest.fixture(scope="module")
def dense(models, data, tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs"), models["dense"], data)


@pytest.fixture(scope="module")
def packed(models, data, tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs"), models["dense"], data, packing=True, micro_batch_size=1, global_batch_size=2)


@pytest.fixture(scope="module")
def epochs(models, data, tmp_path_factory) -> Trained:
    """Every row holds all the samples."""
    values = dict(packing=True, micro_batch_size=1, global_batch_size=2, seq_length=4096)
    return Trained(tmp_path_factory.mktemp("runs"), models["dense"], data, **values)


@pytest.fixture(scope="module")
def experts(models, data, tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs"), models["experts"], data, aux_loss_coeff=0.05)


@pytest.fixture(scope="module")
def lora(models, data, tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs"), models["dense"], data, lora_rank=4, lora_vision=True)


def close(ours: Path, theirs: Path, tolerance: float = 1e-5):
    """Losses and gradient norms of every step, the same tokens and samples, and the same captions at the end."""
    pairs = list(zip(runs.rows(ours), runs.rows(theirs), strict=True))
    assert len(pairs) >= 4
    for a, b in pairs:
        assert (a["step"], a["tokens"], a["lr"]) == (b["step"], b["tokens"], b["lr"])
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=20 * tolerance)
    captions = [runs.captions(run) for run in (ours, theirs)]
    assert captions[0] == captions[1] and len(captions[0]) == 2


CASES = [("dense", name, *DENSE[name]) for name in DENSE] + [("experts", name, *EXPERTS[name]) for name in EXPERTS]
MORE = [
    (kind, name, *layouts[name]) for kind, layouts in
    (("dense", MORE_DENSE), ("experts", MORE_EXPERTS), ("packed", PACKED), ("epochs", EPOCHS), ("lora", LORA)) for name in layouts
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "world", "changes"), CASES + (MORE if ALL else []), ids=lambda v: v if isinstance(v, str) else "")
def test_a_layout_has_the_losses_of_one_process(request, kind, name, world, changes):
    trained = request.getfixturevalue(kind)
    # experts are balanced over a micro batch, so that its size counts
    same = {key: value for key, value in changes.items() if kind == "experts" and key == "micro_batch_size"}
    close(trained.run(name, world, **changes), trained.run(f"one process {same or ''}".strip(), **same))


# of the run that begins -> of the one that goes on from its second step
CHANGED = {"TP2 SP PP2": {"DP2 distributed optimizer": (2, DO)}}
MORE_CHANGED = {
    "one process": {"TP2 SP": (2, SP)},
    "DP2 distributed optimizer": {"one process": (1, {}), "PP2": (2, {"pp": 2})},
    "PP2": {"TP2": (2, {"tp": 2})},
    "CP2": {"DP2 TP2 distributed optimizer": (4, DO | {"tp": 2})},
}


@pytest.mark.parametrize(
    ("one", "then"), [(one, then) for changed in (CHANGED, MORE_CHANGED if ALL else {}) for one in changed for then in changed[one]]
)
def test_a_run_resumes_in_another_layout_within_rounding(dense, tmp_path, one, then):
    world, changes = (CHANGED | MORE_CHANGED)[one][then]
    before, first = (DENSE | MORE_DENSE | {"one process": (1, {})})[one]
    began = dense.run(one, before, **first)
    run = tmp_path / "run"
    shutil.copytree(began, run)
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2\n")
    runs.plan(run, dense.data, **(dense.values | changes))
    assert runs.train(run, world=world)[0] == 0, runs.log(run)
    assert runs.losses(run)[4:] == pytest.approx(runs.losses(dense.run("one process"))[2:], rel=2e-5)


def test_the_schedule_warms_up_then_falls(dense):
    rates = [row["lr"] for row in runs.rows(dense.run("one process"))]
    assert rates[0] == pytest.approx(1e-3) and rates[1] < rates[0] and rates[-1] == pytest.approx(1e-5)
