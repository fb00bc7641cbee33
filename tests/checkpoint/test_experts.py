"""MoE models: every form of experts in Hugging Face files, and Megatron's own names for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qwen3vl_core
from qwen3vl_core.checkpoint import convert, stream, torch_dist
from qwen3vl_core.checkpoint.name_map import Experts, Layout, extra_states, regions
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.errors import RequestError
from qwen3vl_core.run_record import TRACKER
from qwen3vl_core.sizes import Architecture
from tests import tiny
from tests.checkpoint.conversions import run, same, tensors

FORMS = ("transposed", "straight", "each")
EXPERTS = "model.language_model.layers.{}.mlp.experts."


def data_files(checkpoint: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted((checkpoint / "release").glob("*.distcp"))}


@pytest.fixture(scope="module")
def model():
    return tiny.hf_moe_model(3, layers=3)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    """As transformers 5 saves it."""
    return tiny.save(model, tmp_path_factory.mktemp("moe"))


def in_form(saved: Path, target: Path, gate_up: str, down: str) -> Path:
    """The same model with its experts stored in another form."""
    shutil.copytree(saved, target)
    weights = tensors(saved)
    for layer in range(3):
        base = EXPERTS.format(layer)
        for name, form, parts in (("gate_up_proj", gate_up, ("gate_proj", "up_proj")), ("down_proj", down, ("down_proj",))):
            stack = weights.pop(base + name)
            if form == "each":
                for expert, matrix in enumerate(stack):
                    for part, piece in zip(parts, matrix.chunk(len(parts)), strict=True):
                        weights[f"{base}{expert}.{part}.weight"] = piece.contiguous()
            else:
                weights[base + name] = stack.transpose(1, 2).contiguous() if form == "transposed" else stack
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def test_transformers_saves_stacks_that_are_not_transposed(saved):
    shapes = {name: value.shape for name, value in tensors(saved).items()}
    assert shapes[EXPERTS.format(0) + "gate_up_proj"] == (8, 48, 64) and shapes[EXPERTS.format(0) + "down_proj"] == (8, 64, 24)


def test_the_model_comes_back_bitwise_in_the_published_form(saved, model, tmp_path):
    from transformers import Qwen3VLMoeForConditionalGeneration

    run(saved, tmp_path / "mcore", verify=True)
    run(tmp_path / "mcore", tmp_path / "back", verify=True)
    made = tensors(tmp_path / "back")
    assert made[EXPERTS.format(0) + "gate_up_proj"].shape == (8, 64, 48) and made[EXPERTS.format(0) + "down_proj"].shape == (8, 24, 64)
    again = Qwen3VLMoeForConditionalGeneration.from_pretrained(tmp_path / "back")
    assert same(model.state_dict(), again.state_dict())


@pytest.fixture(scope="module")
def converted(saved, tmp_path_factory) -> dict[str, bytes]:
    """The data files of the model's checkpoint."""
    target = tmp_path_factory.mktemp("converted") / "mcore"
    run(saved, target, verify=True)
    return data_files(target)


@pytest.mark.parametrize("down", FORMS)
@pytest.mark.parametrize("gate_up", FORMS)
def test_every_form_of_the_files_gives_the_same_checkpoint(saved, converted, tmp_path, gate_up, down):
    source = in_form(saved, tmp_path / "hf", gate_up, down)
    assert open_source(source).experts == Experts(gate_up, down)
    run(source, tmp_path / "mcore")
    assert data_files(tmp_path / "mcore") == converted


@pytest.mark.parametrize("form", ["transposed", "straight"])
def test_the_other_projection_shows_whether_square_stacks_are_transposed(tmp_path, form):
    """If gate and up together are as wide as the model, the shape of their stack does not show whether it is transposed."""
    from transformers import Qwen3VLMoeForConditionalGeneration

    model = tiny.hf_moe_model(4, layers=3, expert_ffn=32)
    saved = tiny.save(model, tmp_path / "saved")
    source = in_form(saved, tmp_path / "hf", form, form)
    assert open_source(source).experts == Experts(form, form)
    run(source, tmp_path / "mcore", verify=True)
    run(tmp_path / "mcore", tmp_path / "back", verify=True)
    again = Qwen3VLMoeForConditionalGeneration.from_pretrained(tmp_path / "back")
    assert same(model.state_dict(), again.state_dict())


def test_the_names_are_those_of_megatrons_experts(saved, tmp_path):
    """Keys, shapes and module states as Megatron's own model requests them, loaded by its own loader."""
    import argparse

    from megatron.core import dist_checkpointing

    run(saved, tmp_path / "mcore")
    reader = torch_dist.RegionReader(tmp_path / "mcore" / "release")
    layers = "language_model.decoder.layers."
    sizes = {key.removeprefix(layers): tuple(item.size) for key, item in reader.tensors.items()}
    assert sizes["mlp.router.weight"] == (3, 8, 64) and sizes["pre_mlp_layernorm.weight"] == (3, 64)
    assert sizes["mlp.experts.experts.linear_fc1.weight"] == (3, 8, 48, 64)
    assert sizes["mlp.experts.experts.linear_fc2.weight"] == (3, 8, 64, 24)
    assert f"{layers}mlp.experts.experts.linear_fc1._extra_state/shard_2.7_3.8" in reader.objects
    model = qwen3vl_core.load(saved)
    expected = {k: v.clone() for k, v in model.state_dict().items() if torch.is_tensor(v)}
    for parameter in model.parameters():
        parameter.data.zero_()
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(tmp_path / "mcore" / "release"))
    model.load_state_dict(loaded["model"], strict=False)
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items() if torch.is_tensor(v))


def test_a_checkpoint_that_megatron_saved_converts_back(saved, model, tmp_path):
    """There the gate and up projections of each expert are separate pieces."""
    from megatron.core import dist_checkpointing
    from transformers import Qwen3VLMoeForConditionalGeneration

    made = qwen3vl_core.load(saved)
    target = tmp_path / "saved" / "iter_0000004"
    target.mkdir(parents=True)
    dist_checkpointing.save(made.sharded_state_dict() | {"iteration": 4}, str(target))
    (tmp_path / "saved" / TRACKER).write_text("4")
    shutil.copy(saved / "config.json", tmp_path / "saved" / "config.json")
    run(tmp_path / "saved", tmp_path / "back", verify=True)
    assert same(model.state_dict(), Qwen3VLMoeForConditionalGeneration.from_pretrained(tmp_path / "back").state_dict())


def test_memory_holds_one_expert_never_a_stack(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 256)
    held = []
    original = stream.Buffers.get

    def noted(self, name, count, dtype):
        held.append(count)
        return original(self, name, count, dtype)

    monkeypatch.setattr(stream.Buffers, "get", noted)
    monkeypatch.setattr(convert, "forward_parity", lambda *given: None)
    source = in_form(saved, tmp_path / "hf", "transposed", "transposed")
    run(source, tmp_path / "mcore", verify=True)
    run(tmp_path / "mcore", tmp_path / "back", verify=True)
    assert same(tensors(source), tensors(tmp_path / "back"))
    # one expert's gate and up projection
    assert max(held) == 48 * 64


def test_the_boxes_of_all_experts_tile_both_sides(saved):
    architecture = Architecture.read(saved)
    for layout in (Layout.named("bridge"), Layout.named("pai"), Layout("bridge", False, False)):
        for experts in (Experts(), Experts("straight", "straight"), Experts("each", "each")):
            table = regions(architecture, layout, experts)
            volumes: dict[str, int] = {}
            covered: dict[str, int] = {}
            for r in table:
                volumes[r.key] = volumes.get(r.key, 0) + torch.Size(r.size).numel()
                for name, shape in zip(r.hf, r.hf_shapes, strict=True):
                    covered[name] = covered.get(name, 0) + torch.Size(shape).numel()
            assert len({(r.key, r.offset) for r in table}) == len(table)
            assert all(volumes[r.key] == torch.Size(r.global_shape).numel() for r in table)
            assert all(covered[n] == torch.Size(s).numel() for r in table for n, s in zip(r.hf, r.stored_shapes, strict=True))
        states = list(extra_states(architecture, layout))
        assert len({(key, index) for key, index, _ in states}) == len(states)


def test_dense_layers_among_moe_layers_are_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "hf")
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["mlp_only_layers"] = [0]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"mlp_only_layers .* in every layer"):
        run(tmp_path / "hf", tmp_path / "target")


def test_a_dense_config_for_a_moe_model_is_refused(saved, tmp_path, capsys):
    """A published walkthrough converts an A3B back as a dense size."""
    shutil.copytree(saved, tmp_path / "hf")
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "qwen3_vl"
    del config["text_config"]["num_local_experts"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"mlp.gate_proj.weight.* the checkpoint is of another size"):
        run(tmp_path / "hf", tmp_path / "target")
