"""`--init-adapter`: a LoRA run starts from a PEFT folder or from another run's adapters, with the same function in every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.init_adapter import settings_of, with_adapter
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import FinetuneOptions
from tests import tiny
from tests.ranks import run_each, run_ranks
from tests.training import runs, stacked_experts, trainings

SHAPE = dict(layers=4, vision_layers=2, hidden=32, head_dim=8, deepstack=(0, 1))
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
VISION = ["attn.qkv", "attn.proj", "merger.linear_fc1", "deepstack_merger_list.0.linear_fc2"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CONFIGS = {
    "dense, all": dict(r=4, lora_alpha=6, target_modules=[*ATTENTION, "gate_proj", "up_proj", "down_proj"]),
    "dense, two of three": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "dense, vision, patterns": dict(
        r=4, lora_alpha=8, use_rslora=True, target_modules=[*ATTENTION, *VISION], rank_pattern={"q_proj": 2},
        alpha_pattern={"layers.1.self_attn.o_proj": 3},
    ),
    "experts, all": dict(r=2, lora_alpha=4, target_modules=ATTENTION, target_parameters=EXPERTS),
    "experts, one projection": dict(r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]),
}  # fmt: skip
SP = {"tp": 2, "sequence_parallel": True}
LAYOUTS: dict[str, dict[str, tuple[int, Any]]] = {
    "dense": {"TP2": (2, {"tp": 2}), "PP2": (2, {"pp": 2}), "TP2 SP": (2, SP)},
    "experts": {
        "EP2": (2, {"ep": 2}),
        "TP2 SP ETP2": (2, SP | {"etp": 2}),
        "DP2, distributed optimizer": (2, {"distributed_optimizer": True}),
    },
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    made = {"dense": tiny.hf_model(4, ffn=48, **SHAPE), "experts": tiny.hf_moe_model(4, experts=4, expert_ffn=16, **SHAPE)}
    return {name: tiny.save(model, folder / name) for name, model in made.items()}


@pytest.fixture(scope="module")
def adapters(bases, tmp_path_factory) -> dict[str, Path]:
    """Adapters with random weights, as saved by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    made = {}
    for name, config in CONFIGS.items():
        base, folder = bases[name.split(",")[0]], tmp_path_factory.mktemp("adapter")
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), LoraConfig(**config))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        values = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(base)}))
        made[name] = folder
    return made


def started(folder: Path, adapter: Path, changes: dict, inputs: dict | None = None):
    """Losses of two steps of a run that starts from the adapter, or the logits before the first one."""
    from qwen3vl_core.model import process_groups

    from megatron.core import parallel_state

    from qwen3vl_core.checkpoint.adapter_start import open_adapter
    from qwen3vl_core.checkpoint.source import open_source
    from qwen3vl_core.training import setup, step

    o = with_adapter(trainings.options(folder, init_adapter=str(adapter), **changes))
    process_groups.initialize(o.tp, o.pp, cp=o.cp, ep=o.ep, etp=o.etp, vp=o.vp)
    try:
        source = open_source(folder)
        training = setup.build(o, source, open_adapter(str(adapter), source))
        if inputs is not None:
            with torch.no_grad():
                return training.models[0].eval()(**inputs).float().numpy()
        dp, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        return [step.train_step(training, trainings.micro_batches(s, o.micro_batch_size, rank, dp)).loss for s in range(2)]
    finally:
        process_groups.destroy()


INPUTS = tiny.BATCHES["two rows with different pictures"]


@pytest.fixture(scope="module")
def first_logits(bases, adapters):
    jobs = {name: (bases[name.split(",")[0]], folder, {}, INPUTS().inputs()) for name, folder in adapters.items()}
    return {name: torch.from_numpy(made[0]) for name, made in run_each(1, started, jobs).items()}


def hf_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, mm_token_type_ids=tiny.token_types(inputs["input_ids"])).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_logits_are_those_of_peft(bases, adapters, first_logits, name):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    inputs = INPUTS().inputs()
    base = AutoModelForImageTextToText.from_pretrained(bases[name.split(",")[0]], dtype=torch.float32).eval()
    seen = inputs["attention_mask"].bool()
    plain = hf_logits(base, inputs)[seen]
    peft = hf_logits(PeftModel.from_pretrained(base, adapters[name]).eval(), inputs)[seen]
    assert float((peft - plain).abs().max()) > 0.05, "the adapter does something"
    assert float((first_logits[name][seen] - peft).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_starts_and_learns_like_one_process(bases, adapters, kind):
    job = (bases[kind], adapters[f"{kind}, all"])
    alone = run_ranks(1, started, *job, {})[0]
    assert alone[1] != alone[0]
    for name, (world, changes) in LAYOUTS[kind].items():
        for losses in run_ranks(world, started, *job, changes):
            assert losses == pytest.approx(alone, rel=2e-6), name


def test_rank_alpha_layers_and_parts_are_read_from_the_folder(bases, adapters):
    all_, two, vision = (settings_of(str(adapters[f"dense, {name}"])) for name in ("all", "two of three", "vision, patterns"))
    # query, key and value with an A each
    assert (all_.rank, all_.alpha, all_.own_rank) == (12, 18.0, 4) and all_.parts == ("language",)
    assert (two.rank, two.alpha, two.targets) == (8, 16.0, ("linear_qkv",)) and two.base == str(bases["dense"])
    assert (
        vision.rank == 2 + 4 + 4 and vision.alpha == pytest.approx(8 / 2 * 10) and set(vision.parts) == {"language", "vision", "projector"}
    )
    options = with_adapter(FinetuneOptions(init_adapter=str(adapters["dense, two of three"]), train_data="data"))
    assert (options.lora_rank, options.lora_targets, options.load) == (8, "linear_qkv", str(bases["dense"]))
    assert with_adapter(options) == options
    # the plan counts what is trained
    record = judge(FinetuneOptions(init_adapter=str(adapters["dense, all"])), processes=1).as_json()
    assert "LoRA, rank 12, alpha 18" in record["trained"][0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(lora_rank=8), "--lora-rank 8: the adapter ADAPTER has 12; leave it out"),
        (dict(lora_alpha=1.0), "--lora-alpha 1: the adapter ADAPTER has 18.0; leave it out"),
        (dict(lora_targets="linear_proj"), "--lora-targets linear_proj: the adapter ADAPTER has"),
        (dict(freeze="language"), "--freeze language: the adapter ADAPTER has"),
        (dict(resume="run"), "--init-adapter ADAPTER: a run that resumes has the adapters of its checkpoint"),
        (
            dict(init_adapter="nowhere"),
            "--init-adapter nowhere: holds no adapters; give a PEFT folder, a LoRA run or one of its checkpoints",
        ),
        (dict(load="ADAPTER"), "--load ADAPTER: the adapter itself; name the model that it was trained beside"),
    ],
)
def test_what_contradicts_the_adapter_is_refused(adapters, changes, line):
    folder = str(adapters["dense, all"])
    changes = {name: folder if value == "ADAPTER" else value for name, value in changes.items()}
    with pytest.raises(RequestError) as error:
        with_adapter(FinetuneOptions(**({"init_adapter": folder} | changes)))
    assert str(error.value).startswith(line.replace("ADAPTER", folder)), str(error.value)


def test_the_ranks_own_number_may_be_given_and_what_has_no_adapters_may_be_frozen(adapters):
    folder = str(adapters["dense, all"])
    for changes in (dict(lora_rank=4, lora_alpha=6.0), dict(lora_rank=12, lora_alpha=18.0), dict(freeze="vision")):
        options = with_adapter(FinetuneOptions(init_adapter=folder, **changes))
        assert (options.lora_rank, options.lora_alpha) == (12, 18.0) and options.freeze == changes.get("freeze", "")


def test_tensors_that_are_saved_whole_are_refused(bases, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(bases["dense"], dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["merger.norm"])).save_pretrained(tmp_path / "peft")
    words = ["plan", "--load", str(bases["dense"]), "--init-adapter", str(tmp_path / "peft"), "--gpus", "1"]
    assert main(words) == 2
    assert "which no run trains beside adapters; merge it with qwen3vl convert" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_adapters_of_another_run_and_their_export_start_a_run_alike(bases, tmp_path, kind):
    lora = {"lora_rank": 4, "lora_alpha": 8.0, "lora_vision": True}
    run_ranks(2, trainings.save_adapters, bases[kind], tmp_path / "run", lora | {"tp": 2, "sequence_parallel": True})
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "peft"), "--adapter"]) == 0
    assert settings_of(str(tmp_path / "peft")).rank == settings_of(str(tmp_path / "run")).rank == 4
    inputs = INPUTS().inputs()
    jobs = {"run": (bases[kind], tmp_path / "run", {}, inputs), "peft": (bases[kind], tmp_path / "peft", {}, inputs)}
    made = {name: torch.from_numpy(values[0]) for name, values in run_each(1, started, jobs).items()}
    expected = torch.from_numpy(run_ranks(1, trainings.adapted_logits, bases[kind], tmp_path / "run", lora, inputs)[0])
    assert torch.equal(made["run"], expected), "bitwise"
    assert torch.equal(made["peft"], expected), "the export has one A for query, key and value"
    if kind == "experts":
        for name, arguments in jobs.items():
            stacked = run_ranks(1, stacked_experts.called, False, started, *arguments)[0]
            torch.testing.assert_close(torch.from_numpy(stacked), expected, msg=name)


def test_a_run_of_the_command_starts_from_it_and_resumes_without_it(tmp_path, tmp_path_factory, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    data = runs.scenes(tmp_path_factory.mktemp("scenes"))
    model = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(runs.BASE, dtype=torch.float32),
        LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]),
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "peft")
    run, plain, moved = tmp_path / "run", tmp_path / "plain", tmp_path / "moved"
    values = with_adapter(FinetuneOptions(load=str(runs.BASE), train_data=str(data), init_adapter=str(tmp_path / "peft")))
    shared = dict(
        init_adapter=values.init_adapter, lora_rank=values.lora_rank, lora_alpha=values.lora_alpha, lora_targets=values.lora_targets
    )
    runs.plan(run, data, train_iters=2, **shared)
    assert runs.train(run)[0] == 0, runs.log(run)
    assert "LoRA, rank 2, alpha 4" in runs.log(run)
    runs.plan(plain, data, train_iters=1, lr_warmup_iters=0, lora_rank=2)
    assert runs.train(plain)[0] == 0
    assert abs(runs.losses(run)[0] - runs.losses(plain)[0]) > 1e-4, "it began from the adapter"
    # the folder is no longer needed, unless nothing was saved
    shutil.move(tmp_path / "peft", moved)
    runs.plan(run, data, train_iters=4, **shared)
    assert runs.train(run)[0] == 0, runs.log(run)
    assert [row["step"] for row in runs.rows(run)] == [1, 2, 3, 4]
    runs.plan(plain := tmp_path / "other", data, train_iters=1, lr_warmup_iters=0, **shared)
    assert runs.train(plain)[0] == 2 and "missing, and the run has no checkpoint to resume from" in runs.log(plain)
