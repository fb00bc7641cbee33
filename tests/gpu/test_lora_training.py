"""LoRA on Transformer Engine's layers, including those with a fused norm and the grouped ones of experts."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
if torch.cuda.is_available():
    pytest.importorskip("transformer_engine.pytorch")

from qwen3vl_core.cli import main
from tests import tiny
from tests.gpu.test_transformer_engine import MARGIN, SHAPE, distance, on_gpu, reference
from tests.training import trainings

LORA = {"lora_rank": 16, "lora_alpha": 32.0, "lora_vision": True, "precision": "bf16"}


@pytest.fixture(scope="module", params=["dense", "moe"])
def folder(request, tmp_path_factory):
    made = tiny.hf_moe_model(7, **SHAPE, expert_ffn=64) if request.param == "moe" else tiny.hf_model(7, **SHAPE)
    return tiny.save(made.bfloat16(), tmp_path_factory.mktemp(request.param))


def test_adapters_are_as_close_to_the_merged_fp32_model_as_hugging_face_in_bf16(folder, tmp_path):
    from transformers import AutoModelForImageTextToText

    run, merged = tmp_path / "run", tmp_path / "merged"
    trainings.save_adapters(folder, run, LORA)
    assert main(["convert", str(run), str(merged), "--dtype", "fp32"]) == 0
    inputs = tiny.BATCHES["two rows with different pictures"]().inputs()
    mask = inputs["attention_mask"].bool().cuda()
    ours = trainings.adapted_logits(folder, run, LORA, on_gpu(inputs, torch.bfloat16))
    with torch.no_grad():
        exact, theirs, plain = (
            reference(AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).cuda().eval(), inputs, dtype)  # type: ignore[call-arg]
            for path, dtype in ((merged, torch.float32), (merged, torch.bfloat16), (folder, torch.float32))
        )
    limit, got = distance(theirs, exact, mask), distance(torch.from_numpy(ours).cuda(), exact, mask)
    print(f"\nadapters {got:.2e}, Hugging Face merged {limit:.2e}, without adapters {distance(plain, exact, mask):.2e}")
    assert got < MARGIN * limit < distance(plain, exact, mask)


@pytest.mark.parametrize("changes", [{}, {"recompute": "full"}, {"recompute": "sel"}, {"precision": "fp8"}], ids=str)
def test_thirty_steps_overfit_one_batch(folder, changes):
    if changes.get("precision") == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs Ada or Hopper")
    losses = trainings.train_one_batch(folder, 30, **(LORA | {"lr": 3e-3, "min_lr": 1e-3, "train_iters": 40} | changes))
    print(f"\n{changes}: {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < 0.95 * losses[0]


def test_a_resumed_run_continues_like_an_uninterrupted_one(folder, tmp_path):
    went_on = trainings.train_in_two_halves(folder, tmp_path, LORA)
    for ours, theirs in zip(trainings.train_in_two_halves(folder, tmp_path, LORA, {}), went_on, strict=True):
        # the kernels of the attention's backward pass add up in no fixed order
        assert ours == pytest.approx(theirs, rel=2e-3)
