"""Folders that PEFT saves: inspected, merged by convert in the requested precision, loaded; unsupported adapters are refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import qwen3vl_core
from qwen3vl_core.caption.compared_models import _source
from qwen3vl_core.checkpoint import convert
from qwen3vl_core.checkpoint.lora_merge import MergedSource
from qwen3vl_core.checkpoint.peft import converted_from
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.rules import architecture_of
from qwen3vl_core.options import CompareOptions, ConvertOptions, FinetuneOptions
from tests import tiny

LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGS = {
    "dense": dict(r=4, lora_alpha=8, target_modules=[*LANGUAGE, "gate_proj", "up_proj", "down_proj"]),
    "dense, vision too, patterns": dict(
        r=4, lora_alpha=8, use_rslora=True, target_modules=[*LANGUAGE, "attn.qkv", "merger.linear_fc1"], rank_pattern={"q_proj": 2},
        alpha_pattern={"layers.1.self_attn.o_proj": 3}, modules_to_save=["lm_head", "merger.norm"],
    ),
    "experts": dict(r=4, lora_alpha=8, target_modules=LANGUAGE, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "experts, one projection": dict(r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Models saved in bf16, as they are published."""
    folder = tmp_path_factory.mktemp("bases")
    dense = tiny.hf_model(2, layers=2, vision_layers=2, deepstack=(0,), tied=False)
    moe = tiny.hf_moe_model(2, layers=2, vision_layers=2, deepstack=(0,), experts=4)
    return {name: tiny.save(model.bfloat16(), folder / name) for name, model in (("dense", dense), ("experts", moe))}


def adapter(base: Path, folder: Path, config: dict) -> Path:
    """An adapter with random weights, as saved by PEFT."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.1 if "lora_" in name else 0.03))
    model.save_pretrained(folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(base)}))
    return folder


def logits(model) -> torch.Tensor:
    inputs = tiny.BATCHES["one picture"]().inputs()
    with torch.no_grad():
        return model(**inputs, mm_token_type_ids=tiny.token_types(inputs["input_ids"])).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_merged_in_fp32_as_peft_computes_it(bases, tmp_path, capsys, name):
    base = bases[name.split(",")[0]]
    folder = adapter(base, tmp_path / "adapter", CONFIGS[name])
    expected = logits(PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), folder).eval())
    assert main(["convert", str(folder), str(tmp_path / "merged"), "--dtype", "fp32", "--verify"]) == 0
    assert "PEFT adapter -> Hugging Face" in capsys.readouterr().out
    merged = logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval())
    plain = logits(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval())
    assert float((merged - plain).abs().max()) > 0.01, "the adapter does something"
    assert float((merged - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["dense, vision too, patterns", "experts"])
def test_the_base_may_be_a_megatron_checkpoint(bases, tmp_path, name):
    base = bases[name.split(",")[0]]
    folder = adapter(base, tmp_path / "adapter", CONFIGS[name])
    convert.run(ConvertOptions(source=str(base), target=str(tmp_path / "mcore")))
    for place, base_of in (("one", None), ("other", str(tmp_path / "mcore"))):
        convert.run(ConvertOptions(source=str(folder), target=str(tmp_path / place), dtype="fp32", base=base_of))
    # experts are written as the base keeps them, from Megatron as they are published: compared as Megatron keeps them
    one, other = (open_source(tmp_path / place) for place in ("one", "other"))
    for here, there in zip(one.regions(), other.regions(), strict=True):
        torch.testing.assert_close(one.read_box(here), other.read_box(there), atol=1e-7, rtol=0)


def test_load_and_finetune_start_from_a_peft_adapter(bases, tmp_path):
    folder = adapter(bases["dense"], tmp_path / "adapter", CONFIGS["dense"])
    convert.run(ConvertOptions(source=str(folder), target=str(tmp_path / "merged"), dtype="fp32"))
    loaded, expected = (qwen3vl_core.load(path).state_dict() for path in (folder, tmp_path / "merged"))
    for key, value in expected.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(loaded[key], value, atol=1e-6, rtol=0)
    assert architecture_of(FinetuneOptions(load=str(folder)).load) == open_source(folder).architecture


def test_the_merged_weights_are_rounded_once_to_the_bases_precision(bases, tmp_path):
    folder = adapter(bases["dense"], tmp_path / "adapter", CONFIGS["dense"])
    for dtype in ("keep", "fp32"):
        convert.run(ConvertOptions(source=str(folder), target=str(tmp_path / dtype), dtype=dtype))
    kept, exact = (load_file(tmp_path / dtype / "model.safetensors") for dtype in ("keep", "fp32"))
    assert all(torch.equal(kept[k], exact[k].bfloat16()) for k in kept)


def test_inspect_describes_a_peft_adapter(bases, tmp_path, capsys):
    folder = adapter(bases["dense"], tmp_path / "adapter", CONFIGS["dense"])
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "PEFT adapter" in out and "LoRA, rank 4, alpha 8, of down_proj, gate_proj" in out and str(bases["dense"]) in out


def test_inspect_and_compare_read_an_adapter_beside_a_model_that_is_named(bases, tmp_path, capsys):
    folder = adapter(bases["dense"], tmp_path / "adapter", CONFIGS["dense"])
    edited(folder, base_model_name_or_path="Qwen/Qwen3-VL-4B-Instruct")
    assert main(["inspect", str(folder)]) == 1 and main(["inspect", str(folder), "--base", str(bases["dense"])]) == 0
    capsys.readouterr()
    options = CompareOptions(base=str(bases["dense"]), tuned=[str(folder)], images=["none"])
    source, beside = _source(options.tuned[0], "--tuned", options.base)
    assert beside == options.base and isinstance(source, MergedSource) and source.base.path == bases["dense"]
    assert _source(options.base, "--base", None)[1] is None
    with pytest.raises(RequestError, match="is not on this machine; name the model's folder with --base of convert, inspect or compare"):
        _source(options.tuned[0], "--tuned", None)


def edited(folder: Path, **values) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))


def with_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors | {name: torch.zeros(4, 4)}, folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(1))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: edited(f, use_dora=True), "DoRA is not read"),
        (lambda f: edited(f, peft_type="IA3"), "adapters of type 'IA3', only LORA is read"),
        (lambda f: edited(f, base_model_name_or_path="Qwen/Qwen3-VL-4B-Instruct"), "Qwen/Qwen3-VL-4B-Instruct, is not on this machine"),
        (lambda f: edited(f, base_model_name_or_path=None), "it does not say which model it is for"),
        (lambda f: edited(f, lora_alpha=None), "has no lora_alpha"),
        (lambda f: with_tensor(f, "base_model.model.model.language_model.layers.7.mlp.up_proj.lora_A.weight"), "has no place in"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (pickled, "its weights are pickles"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "not JSON"),
    ],
    ids=["dora", "kind", "not here", "no base", "no alpha", "no place", "no weights", "pickles", "no config"],
)
def test_unmergeable_adapters_are_refused(bases, tmp_path, capsys, change, line):
    folder = adapter(bases["dense"], tmp_path / "adapter", dict(r=2, lora_alpha=2, target_modules=["q_proj"]))
    change(folder)
    capsys.readouterr()
    assert main(["convert", str(folder), str(tmp_path / "merged")]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1, err


def test_an_adapter_of_another_size_is_refused(bases, tmp_path, capsys):
    other = tiny.save(tiny.hf_model(layers=2, vision_layers=2, deepstack=(0,), hidden=32, tied=False), tmp_path / "other")
    folder = adapter(bases["dense"], tmp_path / "adapter", dict(r=2, lora_alpha=2, target_modules=["q_proj"]))
    assert main(["convert", str(folder), str(tmp_path / "merged"), "--base", str(other)]) == 2
    assert "do not fit model.language_model.layers.0.self_attn.q_proj.weight" in capsys.readouterr().err


def test_peft_adapters_are_not_written_as_peft_adapters(bases, tmp_path, capsys):
    folder = adapter(bases["dense"], tmp_path / "adapter", dict(r=2, lora_alpha=2, target_modules=["q_proj"]))
    assert main(["convert", str(folder), str(tmp_path / "again"), "--adapter"]) == 2
    assert "is not a LoRA run" in capsys.readouterr().err


def test_a_converted_checkpoint_records_the_base_model_for_peft(bases, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(bases["dense"], source)
    convert.run(ConvertOptions(source=str(source), target=str(tmp_path / "mcore")))
    assert converted_from(tmp_path / "mcore" / "release") == str(source)
    shutil.rmtree(source)
    assert converted_from(tmp_path / "mcore" / "release") is None
