"""Gradients and moments in bf16 and the precision-aware optimizer with Transformer Engine's Adam, and their memory."""

from __future__ import annotations

import gc

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
if torch.cuda.is_available():
    pytest.importorskip("transformer_engine.pytorch")

from types import SimpleNamespace

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.patches.adam_in_parts import parts

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.memory import estimate, update_bytes
from qwen3vl_core.layout.parameters import published, stages
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.training import setup, step
from tests import tiny
from tests.gpu.test_measured_memory import micro_batch, random_weights
from tests.gpu.test_transformer_engine import SHAPE
from tests.training import trainings
from tests.training.trainings import GRADIENTS, SPLIT
from tests.training.trainings import OPTIMIZER_FORMS as FORMS


@pytest.fixture(scope="module", params=["dense", "moe"])
def folder(request, tmp_path_factory):
    made = tiny.hf_moe_model(7, **SHAPE, expert_ffn=64) if request.param == "moe" else tiny.hf_model(7, **SHAPE)
    return tiny.save(made.bfloat16(), tmp_path_factory.mktemp(request.param))


def _adams(training) -> list:
    return [part.optimizer for part in training.optimizer.chained_optimizers if part.optimizer is not None]


def _states(training):
    return [(p, adam.state[p]) for adam in _adams(training) for group in adam.param_groups for p in group["params"]]


@pytest.mark.parametrize("name", [name for name in FORMS if name != "plain"])
def test_losses_are_near_those_of_fp32(folder, name):
    plain, other = (trainings.train(folder, 6, **FORMS[form]) for form in ("plain", name))
    losses = [[row[0] for row in run] for run in (other, plain)]
    print(f"\n{name}: {losses[0]} against {losses[1]}")
    # the kernels of the attention's backward pass add up in no fixed order
    assert losses[0] == pytest.approx(losses[1], rel=2e-3 if name == "aware" else 1e-2)


def _updated(folder, changes: dict) -> list[torch.Tensor]:
    """The weights after three updates with made-up gradients, which are the same each time."""
    process_groups.initialize()
    try:
        training = setup.build(trainings.options(folder, **changes), trainings.open_source(folder))
        for number in range(3):
            training.scheduler.step(increment=1)
            generator = torch.Generator("cuda").manual_seed(number)
            for model in training.wrapped:
                model.zero_grad_buffer()
                for parameter in model.parameters():
                    # values that bf16 has
                    gradient = torch.randn(parameter.shape, generator=generator, device="cuda").bfloat16()
                    parameter.main_grad.copy_(gradient)
            training.optimizer.prepare_grads()
            training.optimizer.step_with_ready_grads()
        return [p.detach().float().cpu() for model in training.models for p in model.parameters()]
    finally:
        process_groups.destroy()


def test_the_precision_aware_update_is_bitwise_the_plain_one(folder):
    """In fp32, and with gradients in bf16 that fp32 would not round."""
    plain = _updated(folder, FORMS["plain"])
    for name in ("aware", "gradients", "aware, gradients"):
        assert all(torch.equal(a, b) for a, b in zip(_updated(folder, FORMS[name]), plain, strict=True)), name


def test_an_update_in_parts_is_bitwise_the_whole_one(folder, monkeypatch):
    from qwen3vl_core.model.patches import precision_aware

    whole = _updated(folder, FORMS["all in bf16"])
    monkeypatch.setattr(precision_aware, "CAST_AT_ONCE", 2000)
    assert len(list(parts([torch.empty(1500)] * 3, 2000))) == 3
    assert all(torch.equal(a, b) for a, b in zip(_updated(folder, FORMS["all in bf16"]), whole, strict=True))


def test_state_and_gradients_are_kept_as_asked(folder):
    process_groups.initialize()
    try:
        training = setup.build(trainings.options(folder, **FORMS["all in bf16"]), trainings.open_source(folder))
        step.train_step(training, trainings.micro_batches(0, 2))
        assert {buffer.grad_data.dtype for model in training.wrapped for buffer in model.buffers} == {torch.bfloat16}
        for parameter, state in _states(training):
            assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype, state["master_param"].dtype) == (
                torch.bfloat16, torch.bfloat16, torch.float32,
            )  # fmt: skip
            assert torch.equal(state["master_param"].bfloat16(), parameter)
    finally:
        process_groups.destroy()


@pytest.mark.parametrize(
    ("saved", "resumed"), [("all in bf16", "all in bf16"), ("aware", "plain"), ("plain", "aware"), ("all in bf16", "plain")]
)
def test_a_run_resumes_in_any_form(folder, tmp_path, saved, resumed):
    went_on = trainings.train_in_two_halves(folder, tmp_path, FORMS[saved])
    again = trainings.train_in_two_halves(folder, tmp_path, FORMS[saved], FORMS[resumed])
    assert again[0][0] == pytest.approx(went_on[0][0], rel=1e-4)
    assert [row[0] for row in again] == pytest.approx([row[0] for row in went_on], rel=1e-2)


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_bf16_gradients_go_with_fp8_and_with_the_optimizer_on_the_host(folder, precision):
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs Ada or Hopper")
    if precision == "fp8":
        changes, theirs = FORMS["all in bf16"] | dict(precision="fp8"), SPLIT | dict(precision="fp8")
    else:
        changes, theirs = SPLIT | GRADIENTS | dict(optimizer_offload=0.5), SPLIT
    ours, plain = (trainings.train(folder, 4, **form) for form in (changes, theirs))
    assert [row[0] for row in ours] == pytest.approx([row[0] for row in plain], rel=2e-2)


@pytest.mark.parametrize("length", [512, 4096])
@pytest.mark.parametrize("name", ["plain", "gradients", "aware, gradients", "all in bf16"])
def test_the_plan_is_within_five_percent_of_the_measured_peak(name, length, monkeypatch):
    """2B shapes with random weights; rows of 512 tokens peak at the update, where something is cast there."""
    architecture, tokens = published("2B"), min(length // 2, 1024)
    options = FinetuneOptions(**FORMS[name], seq_length=length, global_batch_size=1)
    guess = estimate(options, architecture, 1, tokens)[0]
    if guess.total > 0.95 * torch.cuda.get_device_properties(0).total_memory:
        pytest.skip(f"needs about {guess.total / GIB:.0f} GiB")
    monkeypatch.setattr(setup, "fill", random_weights)
    gc.collect()
    torch.cuda.empty_cache()
    process_groups.initialize()
    try:
        before = torch.cuda.memory_allocated()
        training = setup.build(options, SimpleNamespace(architecture=architecture))
        static = torch.cuda.memory_allocated() - before
        batch = micro_batch(architecture, 1, length, tokens)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step.train_step(training, [batch])
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        guessed = guess.weights + guess.gradients + guess.optimizer
        update = update_bytes(options, architecture, stages(options, architecture)[0], 1)
        print(
            f"\n| {name}, {length} | static {static / GIB:.2f}, estimated {guessed / GIB:.2f} | peak {peak / GIB:.2f}, estimated "
            f"{guess.allocated / GIB:.2f} ({guess.allocated / peak - 1:+.1%}) | at the update {update / GIB:.2f} |"
        )
        assert static == pytest.approx(guessed, rel=0.01)
        assert peak == pytest.approx(guess.allocated, rel=0.05)
    finally:
        training = batch = None
        process_groups.destroy()
        gc.collect()
        torch.cuda.empty_cache()
