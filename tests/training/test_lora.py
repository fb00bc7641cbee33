"""LoRA: adapters train the same in every layout, resume bitwise, and are merged into the weights or exported as a PEFT adapter."""

from __future__ import annotations

import pytest
import torch

from qwen3vl_core.cli import main
from tests import tiny
from tests.ranks import run_ranks
from tests.training import trainings
from tests.training.test_gradients import BALANCE, SP, TP, Computed, compare, frozen

LORA = {"lora_rank": 4, "lora_alpha": 8.0, "lora_vision": True}
SMALL = dict(layers=4, vision_layers=2, hidden=32, head_dim=8, deepstack=(0, 1))
LAYOUTS = {
    "TP2": (2, TP),
    "TP2 SP": (2, SP),
    "PP2": (2, {"pp": 2}),
    "DP2 CP2": (4, {"cp": 2}),
    "TP2 SP PP2 recompute": (4, SP | {"pp": 2, "recompute": "full"}),
}
EXPERTS = {
    "EP2": (2, {"ep": 2}),
    "ETP2": (2, {"etp": 2}),
    "TP2 SP ETP2": (2, SP | {"etp": 2}),
    "TP2 SP EP2 PP2 recompute": (4, SP | {"ep": 2, "pp": 2, "recompute": "full"}),
}


def jobs(layouts: dict, more: dict) -> list[tuple]:
    return [(world, frozen(changes | more), False) for world, changes in [(1, {}), *layouts.values()]]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tiny.save(tiny.hf_model(4, ffn=48, **SMALL), tmp_path_factory.mktemp("hf"))
    only = [(1, frozen(LORA | {"lora_targets": "linear_fc1"} | more), False) for more in ({}, {"recompute": "sel"}, {"recompute": "full"})]
    return Computed(folder, jobs(LAYOUTS, LORA) + only)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    model = tiny.hf_moe_model(4, experts=4, expert_ffn=16, **SMALL)
    return Computed(tiny.save(model, tmp_path_factory.mktemp("moe")), jobs(EXPERTS, LORA | BALANCE))


@pytest.mark.parametrize("name", LAYOUTS)
def test_adapters_have_the_gradients_of_one_process(dense, name):
    """The plan counts the parameters that each rank trains."""
    world, changes = LAYOUTS[name]
    compare(dense.get(world, LORA | changes), dense.get(1, LORA))


@pytest.mark.parametrize("name", EXPERTS)
def test_adapters_of_experts_have_the_gradients_of_one_process(experts, name):
    world, changes = EXPERTS[name]
    compare(experts.get(world, LORA | BALANCE | changes), experts.get(1, LORA | BALANCE))


@pytest.mark.parametrize("recompute", ["sel", "full"])
def test_adapters_of_the_first_layer_are_trained_with_recomputation(dense, recompute):
    """Their input needs no gradient, which torch's checkpointing would not propagate."""
    only = LORA | {"lora_targets": "linear_fc1"}
    compare(dense.get(1, only | {"recompute": recompute}), dense.get(1, only))


def lora_run(folder, target, **changes):
    """Two steps of a LoRA run, whose B are then filled, saved as a run saves its checkpoint: its folder."""
    run_ranks(changes.pop("world", 1), trainings.save_adapters, folder, target, LORA | changes)
    return target


def hf_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, mm_token_type_ids=tiny.token_types(inputs["input_ids"])).logits


def both_logits(folder, run, tmp_path):
    """(of the run's model with its adapters beside, of the merged Hugging Face export, of the base with the PEFT adapter)."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    assert main(["convert", str(run), str(tmp_path / "merged"), "--verify"]) == 0
    assert main(["convert", str(run), str(tmp_path / "peft"), "--adapter"]) == 0
    inputs = tiny.BATCHES["two rows with different pictures"]().inputs()
    adapted = torch.from_numpy(run_ranks(1, trainings.adapted_logits, folder, run, LORA, inputs)[0])
    merged = hf_logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval(), inputs)
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    plain = hf_logits(base, inputs)
    beside = hf_logits(PeftModel.from_pretrained(base, tmp_path / "peft").eval(), inputs)
    seen = inputs["attention_mask"].bool()
    return tuple(logits[seen] for logits in (adapted, merged, beside, plain))


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_the_merged_export_and_the_peft_adapter_have_the_logits_of_the_run(request, tmp_path, capsys, kind):
    folder = request.getfixturevalue(kind).folder
    run = lora_run(folder, tmp_path / "run", world=2, tp=2, sequence_parallel=True)
    adapted, merged, beside, plain = both_logits(folder, run, tmp_path)
    out = capsys.readouterr().out
    assert "LoRA run (torch_dist) -> Hugging Face" in out and "merged into the weights; rank 4, alpha 8" in out
    assert float((adapted - plain).abs().max()) > 0.05, "the adapters do something"
    assert float((merged - adapted).abs().max()) < 2e-5
    assert float((beside - adapted).abs().max()) < 2e-5
    assert float((merged - beside).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_a_run_beside_bf16_weights_is_merged_in_fp32_where_that_is_asked_for(tmp_path, kind):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model = tiny.hf_model(4, ffn=48, **SMALL) if kind == "dense" else tiny.hf_moe_model(4, experts=4, expert_ffn=16, **SMALL)
    folder = tiny.save(model.bfloat16(), tmp_path / "base")
    run = lora_run(folder, tmp_path / "run")
    assert main(["convert", str(run), str(tmp_path / "merged"), "--dtype", "fp32"]) == 0
    assert main(["convert", str(run), str(tmp_path / "peft"), "--adapter"]) == 0
    inputs = tiny.BATCHES["one picture"]().inputs()
    merged = hf_logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval(), inputs)
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    assert float((merged - hf_logits(base, inputs)).abs().max()) > 0.01, "the adapters do something"
    assert float((merged - hf_logits(PeftModel.from_pretrained(base, tmp_path / "peft").eval(), inputs)).abs().max()) < 1e-5
