"""The model on a GPU with Transformer Engine: equal to Hugging Face within the rounding of the precision.

Run on a machine with an NVIDIA GPU and the `gpu` extra: `python -m pytest -q tests/gpu`. Skipped elsewhere.

The measure: both sides compute in bf16; each is compared with Hugging Face in fp32 on the same GPU. Ours may not be
farther from it than Hugging Face's own bf16 is, with a margin for another order of summation.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
if torch.cuda.is_available():
    pytest.importorskip("transformer_engine.pytorch")

import qwen3vl_core
from qwen3vl_core.options import ConvertOptions
from qwen3vl_core.run_record import TRACKER
from tests import tiny
from tests.checkpoint.conversions import loaded_by_megatron
from tests.model.parity import cached_beside_full

SHAPE = dict(hidden=256, head_dim=64, heads=4, kv_heads=2, ffn=512, layers=6)
MARGIN = 1.5
KINDS = ["dense", "moe"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    made = tiny.hf_moe_model(7, **SHAPE, expert_ffn=64) if request.param == "moe" else tiny.hf_model(7, **SHAPE)
    return tiny.save(made.bfloat16(), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def models(folder):
    """(Hugging Face in fp32, Hugging Face in bf16, ours in bf16), all on the GPU with the same weights."""
    from transformers import AutoModelForImageTextToText

    def load(dtype):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).cuda().eval()  # type: ignore[call-arg]
        return model

    return load(torch.float32), load(torch.bfloat16), qwen3vl_core.load(folder)


def on_gpu(inputs, dtype=None):
    made = {k: v.cuda() for k, v in inputs.items()}
    return {k: v.to(dtype) if dtype and k.startswith("pixel") else v for k, v in made.items()}


def reference(model, inputs, dtype):
    model.model.rope_deltas = None
    given = on_gpu(inputs, dtype)
    return model(**given, mm_token_type_ids=tiny.token_types(given["input_ids"])).logits.float()


def distance(a, b, mask):
    return float((a.float() - b)[mask].norm() / b[mask].norm())


def test_the_model_is_made_of_transformer_engine_modules(models):
    names = {type(m).__name__ for m in models[2].modules()}
    assert {"TELayerNormColumnParallelLinear", "TERowParallelLinear", "RotatingTEDotProductAttention"} <= names
    assert ("DeviceExperts" in names) == models[2].architecture.is_moe


@pytest.mark.parametrize("name", tiny.BATCHES)
def test_bf16_logits_are_as_close_to_fp32_as_hugging_faces(models, name):
    exact, theirs, ours = models
    inputs = tiny.BATCHES[name]().inputs()
    mask = inputs["attention_mask"].bool().cuda()
    with torch.no_grad():
        truth = reference(exact, inputs, torch.float32)
        limit = distance(reference(theirs, inputs, torch.bfloat16), truth, mask)
        got = distance(ours(**on_gpu(inputs, torch.bfloat16)), truth, mask)
    print(f"{name}: ours {got:.2e}, Hugging Face {limit:.2e}")
    # a token on the border between two experts may fall to either
    assert got <= limit * (4 if ours.architecture.is_moe else MARGIN) + 1e-4


def test_a_packed_row_gives_the_logits_of_its_documents(models):
    from tests.training import trainings

    _, _, ours = models
    batch = trainings.micro_batches(7, 4)[0]
    packed = trainings.pack(batch, 1)
    with torch.no_grad():
        rows = ours(**on_gpu(batch.inputs, torch.bfloat16)).float()
        row = ours(**on_gpu(packed.inputs, torch.bfloat16)).float()[0]
    flat = rows[batch.inputs["attention_mask"].bool().cuda()]
    assert float((flat - row).norm() / flat.norm()) < 2e-2


def test_cached_generation_agrees_with_one_full_pass(models):
    _, _, ours = models
    inputs = on_gpu(tiny.BATCHES["one picture"]().inputs(), torch.bfloat16)
    for cached, full in cached_beside_full(ours, inputs, steps=4):
        assert float((full.float() - cached.float()).norm() / full.float().norm()) < 3e-2


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
def test_fp8_stays_within_fp8_rounding(folder, recipe):
    from qwen3vl_core.model import process_groups
    from qwen3vl_core.model.build import build_model
    from qwen3vl_core.model.config import transformer_config

    from transformers import AutoModelForImageTextToText

    from qwen3vl_core.checkpoint.load import fill
    from qwen3vl_core.checkpoint.source import open_source

    source = open_source(folder)
    process_groups.initialize()
    config = transformer_config(source.architecture, dtype=torch.bfloat16, fp8_recipe=recipe)
    model = build_model(source.architecture, config, parallel_output=False)
    fill(model, source)
    model.cuda().eval()
    # fp8 matrix products want rows in multiples of 16
    inputs = tiny.Conversations(3).row(6, ("image", 8, 8), 8).inputs()
    assert inputs["input_ids"].shape[1] % 16 == 0
    exact = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).cuda().eval()  # type: ignore[call-arg]
    mask = inputs["attention_mask"].bool().cuda()
    with torch.no_grad():
        truth = reference(exact, inputs, torch.float32)
        fp8 = distance(model(**on_gpu(inputs, torch.bfloat16)), truth, mask)
        bf16 = distance(qwen3vl_core.load(folder)(**on_gpu(inputs, torch.bfloat16)), truth, mask)
    print(f"fp8 {recipe} {fp8:.2e}, bf16 {bf16:.2e}")
    # e4m3 keeps 3 bits of the mantissa, bf16 7: a rounding is 16 times as coarse
    # a token on the border between two experts may fall to either
    assert 2 * bf16 < fp8 < (32 if source.architecture.is_moe else 16) * bf16


def test_checkpoints_load_strictly_between_cpu_and_gpu(folder, tmp_path):
    """Written by the streaming conversion, read by Megatron's own loader into Transformer Engine modules, module states
    included; saved by Megatron from there, converted back bitwise."""
    from megatron.core import dist_checkpointing
    from transformers import AutoModelForImageTextToText

    from qwen3vl_core.checkpoint import convert

    convert.run(ConvertOptions(source=str(folder), target=str(tmp_path / "mcore")))
    model = qwen3vl_core.load(tmp_path / "mcore")
    expected = {k: v.clone() for k, v in model.state_dict().items() if torch.is_tensor(v) and "_extra_state" not in k}
    loaded_by_megatron(model, tmp_path / "mcore")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in expected.items())

    saved = tmp_path / "saved" / "iter_0000001"
    saved.mkdir(parents=True)
    dist_checkpointing.save({"model": model.sharded_state_dict(), "iteration": 1}, str(saved))
    (saved.parent / TRACKER).write_text("1\n")
    convert.run(ConvertOptions(source=str(saved.parent), target=str(tmp_path / "back"), hf=str(folder)))
    # as models: experts are written in the published form, which is not the one that transformers 5 saved here
    there, back = (AutoModelForImageTextToText.from_pretrained(f, dtype=torch.bfloat16).state_dict() for f in (folder, tmp_path / "back"))
    assert there.keys() == back.keys() and all(torch.equal(there[k], back[k]) for k in there)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_on_the_gpu_lowers_the_loss(folder, precision):
    from tests.training import trainings

    results = trainings.train(folder, 1, precision=precision, lr_warmup_iters=0)
    again = trainings.train_one_batch(folder, 12, precision=precision, lr_warmup_iters=0, train_iters=12)
    assert results[0][0] == pytest.approx(again[0], rel=1e-2)
    assert again[-1] < 0.8 * again[0]


# name -> (options, how many times plain bf16's own distance from fp32 a loss may be from fp32's)
OPTIONS = {
    "flash": (dict(attention="flash"), 2),
    "fused": (dict(attention="fused"), 2),
    "sel": (dict(recompute="sel"), 2),
    "full, two layers together": (dict(recompute="full", recompute_layers=2), 2),
    "activations on the host": (dict(recompute="offload", recompute_layers=4), 2),
    "half of the optimizer on the host": (dict(optimizer_offload=0.5, distributed_optimizer=True), 2),
    "all of the optimizer on the host": (dict(optimizer_offload=1.0, distributed_optimizer=True), 2),
    "rows padded": (dict(pad_length=128), 2),
    "overlapped": (dict(overlap_grad_reduce=True, overlap_param_gather=True, distributed_optimizer=True), 2),
    "fp8 tensorwise": (dict(precision="fp8"), 16),
    "fp8 delayed": (dict(precision="fp8", fp8_recipe="delayed"), 16),
    "fp8 blockwise": (dict(precision="fp8", fp8_recipe="blockwise"), 16),
    "fp8, full": (dict(precision="fp8", recompute="full"), 16),
    "fp8, sel": (dict(precision="fp8", recompute="sel"), 16),
}


@pytest.fixture(scope="module")
def steps_in(folder):
    """Losses of the same steps in fp32 and in plain bf16."""
    from tests.training import trainings

    return {p: [r[0] for r in trainings.train(folder, precision=p, attention="auto")] for p in ("fp32", "bf16")}


def gap(losses, exact) -> float:
    return max(abs(a / b - 1) for a, b in zip(losses, exact, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_keeps_the_losses_as_close_to_fp32(folder, steps_in, name):
    """Three steps and an evaluation, pictures and text."""
    from tests.training import trainings

    changes, times = OPTIONS[name]
    losses = [r[0] for r in trainings.train(folder, **({"precision": "bf16"} | changes))]
    own, got = gap(steps_in["bf16"], steps_in["fp32"]), gap(losses, steps_in["fp32"])
    print(f"\n{name}: from fp32 {got:.1e}, from plain bf16 {gap(losses, steps_in['bf16']):.1e}; plain bf16 from fp32 {own:.1e}")
    # a small run's own distance may be small by chance
    assert got < times * max(own, 2e-3)


def test_gradients_added_in_place_equal_those_added_afterwards(folder, monkeypatch):
    from qwen3vl_core.training import setup
    from tests.training import trainings

    losses = [r[:2] for r in trainings.train(folder, precision="bf16")]
    used = []
    monkeypatch.setattr(setup, "add_gradients_in_place", lambda model: used.append(model))
    apart = [r[:2] for r in trainings.train(folder, precision="bf16")]
    assert used
    for ours, theirs in zip(losses, apart, strict=True):
        print(f"\n{ours} {theirs}")
        assert ours == pytest.approx(theirs, rel=1e-2)
    # the first step's gradients are of the same weights
    assert losses[0] == pytest.approx(apart[0], rel=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        dict(precision="bf16"), dict(precision="fp8"), dict(precision="fp8", fp8_recipe="delayed"),
        dict(precision="bf16", optimizer_offload=0.5, distributed_optimizer=True),
    ],
    ids=["bf16", "fp8 tensorwise", "fp8 delayed", "optimizer on the host"],
)  # fmt: skip
def test_a_resumed_run_continues_like_an_uninterrupted_one(folder, tmp_path, changes):
    from tests.training import trainings

    went_on = trainings.train_in_two_halves(folder, tmp_path / "checkpoints", changes)
    resumed = trainings.train_in_two_halves(folder, tmp_path / "checkpoints", changes, changes)
    # Transformer Engine's and cuDNN's gradients are not the same from run to run
    for a, b in zip(went_on, resumed, strict=True):
        assert b == pytest.approx(a, rel=2e-3)


def test_an_extra_state_of_a_checkpoint_is_never_unpickled(folder, tmp_path, monkeypatch):
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    from tests.training import trainings

    changes = dict(precision="fp8", fp8_recipe="delayed")
    trainings.train_in_two_halves(folder, tmp_path / "checkpoints", changes)
    given = []
    monkeypatch.setattr(TransformerEngineBaseModule, "set_extra_state", lambda self, state: given.append(state))
    trainings.train_in_two_halves(folder, tmp_path / "checkpoints", changes, changes)
    assert not [state for state in given if state is not None and state.numel()]
