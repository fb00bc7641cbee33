"""Gradients and moments in bf16, and the precision-aware optimizer: equal to the plain one in fp32, near it in bf16, resumed bitwise."""

from __future__ import annotations

from qwen3vl_core.model.patches import adam_in_parts

import pytest
import torch

from qwen3vl_core.checkpoint import convert
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.checkpoint.torch_dist import RegionReader
from qwen3vl_core.options import ConvertOptions
from tests import tiny
from tests.ranks import run_each
from tests.training import trainings

RUNS = trainings.OPTIMIZER_FORMS | {"gradients, all ranks update": dict(precision="bf16") | trainings.GRADIENTS}
IN_PARTS = "plain, in parts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny.hf_model(3, layers=2, vision_layers=2, deepstack=(0,)).bfloat16()
    return tiny.save(model, tmp_path_factory.mktemp("model") / "hf")


def _train(folder, changes: dict, tensors_at_once: int | None = None):
    if tensors_at_once:
        adam_in_parts.TENSORS_AT_ONCE = tensors_at_once
    return trainings.train(folder, 4, **changes)


@pytest.fixture(scope="module")
def results(folder):
    """By number of ranks and name: (loss, gradient norm, …) of each step."""
    jobs = {name: (folder, changes) for name, changes in RUNS.items()}
    # the last one: what it changes stays in its process
    jobs[IN_PARTS] = (folder, RUNS["plain"], 3)
    return {world: {name: ranks[0] for name, ranks in run_each(world, _train, jobs).items()} for world in (1, 2)}


@pytest.mark.parametrize("world", [1, 2])
def test_the_precision_aware_optimizer_in_fp32_is_bitwise_the_plain_one(results, world):
    assert results[world]["aware"] == results[world]["plain"]


@pytest.mark.parametrize("world", [1, 2])
def test_an_update_of_a_few_tensors_at_once_is_bitwise_that_of_all(results, world):
    assert results[world][IN_PARTS] == results[world]["plain"]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", ["gradients", "gradients, all ranks update", "aware, gradients", "first moment", "all in bf16"])
def test_bf16_changes_losses_by_less_than_bf16_weights_do(results, world, name):
    plain, rounded = results[world]["plain"], results[world][name]
    # the first forward pass has nothing to do with it
    assert rounded[0][0] == plain[0][0]
    losses = [[step[0] for step in run] for run in (rounded, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=4e-3)
    # rounded to 8 bits, gradients have another norm and all later losses differ
    assert losses[0] != losses[1]
    assert (rounded[0][1] == plain[0][1]) == (name == "first moment")
    assert [step[1] for step in rounded[:-1]] == pytest.approx([step[1] for step in plain[:-1]], rel=2e-2)


def test_whether_the_optimizer_copies_gradients_does_not_matter(results):
    """The precision-aware optimizer reads bf16 gradients as they are, the plain one makes fp32 copies of them."""
    for world in (1, 2):
        # clipping scales what the optimizer reads: bf16 gradients are rounded again
        assert results[world]["gradients"][0] == results[world]["aware, gradients"][0]


def _kinds(folder, changes: dict):
    """Precisions of (gradient buffers, Adam's moments, master weights), and whether the master weights are the weights at the start."""
    from qwen3vl_core.model import process_groups

    from qwen3vl_core.checkpoint.source import open_source
    from qwen3vl_core.training import setup

    process_groups.initialize()
    try:
        training = setup.build(trainings.options(folder, **changes), open_source(folder))
        buffers = {b.grad_data.dtype for model in training.wrapped for b in model.buffers}
        adam = [part.optimizer for part in training.optimizer.chained_optimizers]
        states = [(p, adam_.state[p]) for adam_ in adam for group in adam_.param_groups for p in group["params"]]
        kept = {name: {state[name].dtype for _, state in states} for name in ("exp_avg", "exp_avg_sq", "master_param")}
        same = all(torch.equal(state["master_param"], p.float()) for p, state in states)
        return buffers, *kept.values(), same
    finally:
        process_groups.destroy()


def test_gradients_and_moments_are_kept_in_the_precision_that_is_asked_for(folder):
    made = run_each(1, _kinds, {name: (folder, RUNS[name]) for name in ("all in bf16", "first moment")})
    half, full = {torch.bfloat16}, {torch.float32}
    assert made["all in bf16"][0] == (half, half, half, full, True)
    assert made["first moment"][0] == (full, half, full, full, True)


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [("aware", "aware"), ("all in bf16", "all in bf16"), ("gradients", "gradients"), ("plain", "aware"), ("aware", "plain"),
     ("all in bf16", "plain")],
)  # fmt: skip
def test_a_run_resumes_bitwise_where_its_state_fits(folder, tmp_path, saved, resumed):
    """Also in another form of the optimizer, where every value of the state can be represented."""
    jobs = [(folder, tmp_path / "checkpoints", RUNS[saved]), (folder, tmp_path / "checkpoints", RUNS[saved], RUNS[resumed])]
    made = run_each(2, trainings.train_in_two_halves, dict(enumerate(jobs)))
    went_on, again = made[0][0], made[1][0]
    if {saved, resumed} <= {"plain", "aware"} or saved == resumed:
        assert again == went_on
    else:
        # the first loss is of the same weights; then gradients and moments are no longer rounded
        assert again[0][0] == went_on[0][0] and again[1][0] == pytest.approx(went_on[1][0], rel=4e-3)


def test_a_checkpoint_holds_the_state_in_fp32_and_converts_its_weights_in_bf16(folder, tmp_path):
    run_each(2, trainings.train_in_two_halves, {0: (folder, tmp_path, RUNS["all in bf16"])})
    reader = RegionReader(tmp_path / "iter_0000002")
    kinds = {key: entry.properties.dtype for key, entry in reader.tensors.items()}
    masters = {key.removeprefix("optimizer.state.param."): key for key in kinds if key.startswith("optimizer.state.param.")}
    assert len(masters) > 20
    for name, key in masters.items():
        assert kinds[name] == torch.bfloat16 and kinds[key] == torch.float32
        master = reader.read(key)
        assert torch.equal(master.bfloat16(), reader.read(name).reshape(master.shape))
        for moment in ("exp_avg", "exp_avg_sq"):
            value = reader.read(f"optimizer.state.{moment}.{name}")
            assert value.dtype == torch.float32 and torch.equal(value.bfloat16().float(), value)
    assert any(bool((reader.read(key).bfloat16().float() != reader.read(key)).any()) for key in masters.values())
    convert.run(ConvertOptions(source=str(tmp_path / "iter_0000002"), target=str(tmp_path / "hf"), hf=str(folder)))
    back, began = open_source(tmp_path / "hf"), open_source(folder)
    boxes = [(back.read_box(region), reader.read(region.key, region.offset, region.size), region) for region in back.regions()]
    assert all(torch.equal(converted, saved) and converted.dtype == torch.bfloat16 for converted, saved, _ in boxes)
    assert any(not torch.equal(converted, began.read_box(region)) for converted, _, region in boxes), "nothing was trained"
