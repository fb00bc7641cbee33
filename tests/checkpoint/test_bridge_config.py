"""`run_config.yaml` of layout `bridge`: the classes that it names exist and build the model of the weights."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import yaml

from qwen3vl_core.checkpoint import convert
from qwen3vl_core.checkpoint.bridge import RUN_CONFIG
from qwen3vl_core.options import ConvertOptions
from qwen3vl_core.sizes import Architecture
from tests import tiny

# fields of Megatron-Bridge's providers that Megatron-Core's TransformerConfig does not have; strict mode refuses any others
SHARED = {
    "vocab_size", "make_vocab_size_divisible_by", "share_embeddings_and_output_weights", "seq_length", "rotary_base",
    "position_embedding_type", "patch_size", "temporal_patch_size", "spatial_merge_size", "image_token_id", "video_token_id",
    "vision_start_token_id", "vision_end_token_id", "bos_token_id", "eos_token_id", "freeze_language_model", "freeze_vision_model",
    "freeze_vision_projection", "hf_text_config", "vision_config",
}  # fmt: skip
OWN = {
    "Qwen3VLModelProvider": SHARED | {"in_channels", "num_position_embeddings", "out_hidden_size", "deepstack_visual_indexes"},
    "Qwen3VLMoEModelProvider": SHARED | {"head_dim", "decoder_sparse_step", "mlp_only_layers"},
}


def made(node):
    """What Megatron-Bridge builds from a part of the file: `_target_` called with the other values, or the value itself."""
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {key: made(value) for key, value in node.items()}
    values = {key: made(value) for key, value in node.items() if not key.startswith("_")}
    parts = node["_target_"].split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found(**values) if node.get("_call_", True) else found
    raise AssertionError(node["_target_"])


MODELS = {"tied": tiny.hf_model, "untied": lambda: tiny.hf_model(tied=False), "experts": tiny.hf_moe_model}


@pytest.mark.parametrize(("model", "dtype"), [("tied", "keep"), ("untied", "bf16"), ("experts", "fp16")])
def test_megatron_bridge_builds_the_model_that_fits_the_weights(tmp_path, model, dtype):
    from qwen3vl_core.model.config import transformer_config

    import torch
    from megatron.core.transformer.transformer_config import TransformerConfig

    source = tiny.save(MODELS[model](), tmp_path / "hf")
    convert.run(ConvertOptions(source=str(source), target=str(tmp_path / "mcore"), dtype=dtype))
    found = yaml.safe_load((tmp_path / "mcore" / "release" / RUN_CONFIG).read_text())
    values = found["model"]
    module, provider = values.pop("_target_").rsplit(".", 1)
    assert module == "megatron.bridge.models.qwen_vl.qwen3_vl_provider" and provider in OWN and ("MoE" in provider) == (model == "experts")
    written = {"keep": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    known = {field.name for field in dataclasses.fields(TransformerConfig) if field.init}
    # the tiny models' configurations name no first and last token of a text
    assert (set(values) - known) ^ OWN[provider] <= {"bos_token_id", "eos_token_id"}
    # Megatron-Core accepts the values, and they are those of the model that is trained here
    theirs = TransformerConfig(**{key: made(value) for key, value in values.items() if key in known})
    architecture = Architecture.read(source)
    ours = transformer_config(architecture, dtype=written)
    names = known & set(values) - {"init_method_std", "moe_grouped_gemm"}
    assert {n: getattr(theirs, n) for n in names} == {n: getattr(ours, n) for n in names}
    assert theirs.params_dtype is written and theirs.activation_func is torch.nn.functional.silu
    assert values["share_embeddings_and_output_weights"] == architecture.tied == (model == "tied")
    assert values["vocab_size"] % values["make_vocab_size_divisible_by"] == 0 and values["rotary_base"] == architecture.rope_theta
    # transformers makes its own configurations of the rest
    config = json.loads((tmp_path / "mcore" / "config.json").read_text())
    for key, part in (("hf_text_config", "text_config"), ("vision_config", "vision_config")):
        there = made(values[key]).to_dict()
        assert {name: there[name] for name in config[part] if name not in ("dtype", "torch_dtype")} == {
            name: value for name, value in config[part].items() if name not in ("dtype", "torch_dtype")
        }
    assert found["checkpoint"]["save_optim"] is False and found["checkpoint"]["save_rng"] is False


def test_only_layout_bridge_has_the_file_and_converts_back(tmp_path):
    source = tiny.save(tiny.hf_model(), tmp_path / "hf")
    for layout in ("pai", "bridge"):
        convert.run(ConvertOptions(source=str(source), target=str(tmp_path / layout), layout=layout))
        assert (tmp_path / layout / "release" / RUN_CONFIG).exists() == (layout == "bridge")
        convert.run(ConvertOptions(source=str(tmp_path / layout), target=str(tmp_path / f"{layout} back")))
        assert not (tmp_path / f"{layout} back" / RUN_CONFIG).exists()
