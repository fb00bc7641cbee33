"""Conversion in both directions: bitwise, complete, atomic, and readable by Megatron's own loader."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import qwen3vl_core
from qwen3vl_core.checkpoint import convert, hf, hf_writer, positional_io, torch_dist, transforms, verify
from qwen3vl_core.checkpoint.name_map import TABLE, Layout, Region, regions
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.run_record import TRACKER
from qwen3vl_core.sizes import Architecture
from tests import tiny
from tests.checkpoint.conversions import loaded_by_megatron, run, same, tensors, without_digests
from tests.shared import DEMO


def index_of(file: str) -> str:
    return json.dumps({"weight_map": {"a": file}})


@pytest.fixture(scope="module", params=["tied", "untied"])
def model_folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save(tiny.hf_model(tied=request.param == "tied"), folder)
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "chat_template.jinja").write_text("{{ x }}")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return folder


@pytest.mark.parametrize("layout", ["bridge", "pai"])
def test_the_round_trip_is_bitwise_and_carries_the_side_files(model_folder, tmp_path, layout, capsys):
    run(model_folder, tmp_path / "mcore", layout=layout, verify=True)
    run(tmp_path / "mcore", tmp_path / "back", verify=True)
    assert same(tensors(model_folder), tensors(tmp_path / "back"))
    for folder in (tmp_path / "mcore", tmp_path / "back"):
        assert json.loads((folder / "config.json").read_text()) == json.loads((model_folder / "config.json").read_text())
        assert (folder / "tokenizer.json").read_text() == '{"a": 1}'
        assert (folder / "chat_template.jinja").exists()
        assert not (folder / "modeling_evil.py").exists()
    assert "each used once" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.tmp"))


def test_the_demo_model_survives_the_round_trip(tmp_path):
    run(DEMO, tmp_path / "mcore")
    run(tmp_path / "mcore", tmp_path / "back")
    assert same(tensors(DEMO), tensors(tmp_path / "back"))


def test_a_checkpoint_without_side_files_takes_those_of_hf(tmp_path):
    run(DEMO, tmp_path / "mcore")
    (tmp_path / "mcore" / "config.json").unlink()
    report = tmp_path / "report.json"
    run(tmp_path / "mcore", tmp_path / "back", hf=str(DEMO), verify=True, report=str(report))
    assert same(tensors(DEMO), tensors(tmp_path / "back")) and json.loads(report.read_text())["forward"]["equal"] is True
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (DEMO / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_requested_precision_is_written(model_folder, tmp_path, name, dtype):
    run(model_folder, tmp_path / "mcore", dtype=name, verify=True)
    reader = torch_dist.RegionReader(torch_dist.find(tmp_path / "mcore").data)
    assert {item.properties.dtype for item in reader.tensors.values()} == {dtype}
    run(tmp_path / "mcore", tmp_path / "back")
    expected = {k: v.to(dtype) for k, v in tensors(model_folder).items()}
    assert same(expected, tensors(tmp_path / "back"))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_values_beyond_fp16_are_refused_instead_of_becoming_infinite(model_folder, tmp_path):
    weights = tensors(model_folder)
    weights["model.language_model.norm.weight"][0] = 1e6
    big = tmp_path / "big"
    shutil.copytree(model_folder, big)
    save_file(weights, big / "model.safetensors", {"format": "pt"})
    with pytest.raises(WorkError, match="65504; use --dtype bf16"):
        run(big, tmp_path / "target", dtype="fp16")
    assert not (tmp_path / "target").exists()


def test_the_loaded_checkpoint_computes_what_the_folder_computes(model_folder, tmp_path):
    run(model_folder, tmp_path / "mcore", layout="pai")
    inputs = tiny.BATCHES["one picture"]().inputs()
    with torch.no_grad():
        assert torch.equal(qwen3vl_core.load(model_folder)(**inputs), qwen3vl_core.load(tmp_path / "mcore")(**inputs))


def test_megatrons_own_loader_accepts_the_checkpoint_strictly(model_folder, tmp_path):
    run(model_folder, tmp_path / "mcore")
    model = qwen3vl_core.load(model_folder)
    expected = {k: v.clone() for k, v in model.state_dict().items() if torch.is_tensor(v)}
    loaded = loaded_by_megatron(model, tmp_path / "mcore")
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items() if torch.is_tensor(v))
    assert loaded["checkpoint_version"] == 3.0 and loaded["iteration"] == 0
    assert loaded["args"].tensor_model_parallel_size == 1


def test_a_sharded_folder_is_read_and_a_large_one_is_written_in_shards(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_writer, "SHARD_BYTES", 250_000)
    run(model_folder, tmp_path / "mcore")
    run(tmp_path / "mcore", tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / hf.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert all(f.stat().st_size < 280_000 for f in (tmp_path / "shards").glob("*.safetensors"))
    assert same(tensors(model_folder), tensors(tmp_path / "shards"))
    run(tmp_path / "shards", tmp_path / "again")
    assert torch_dist.find(tmp_path / "again")


def test_a_tied_matrix_stored_twice_is_written_once(tmp_path):
    tiny.save(tiny.hf_model(tied=True), tmp_path / "hf")
    weights = tensors(tmp_path / "hf")
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    run(tmp_path / "hf", tmp_path / "mcore")
    assert "language_model.output_layer.weight" not in torch_dist.RegionReader(tmp_path / "mcore" / "release").tensors
    weights["lm_head.weight"][0] += 1
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"lm_head.weight differs from"):
        run(tmp_path / "hf", tmp_path / "other")


def test_every_tensor_of_the_published_sizes_is_mapped_exactly_once():
    """The regions of each Megatron tensor tile it, and every Hugging Face tensor is named once."""
    config = json.loads((DEMO / "config.json").read_text())
    for layout in (Layout.named("bridge"), Layout.named("pai"), Layout("bridge", False, False)):
        table = regions(Architecture.from_config(config), layout)
        names = [n for r in table for n in r.hf]
        assert len(names) == len(set(names))
        volume: dict[str, int] = {}
        for r in table:
            assert all(o + s <= g for o, s, g in zip(r.offset, r.size, r.global_shape, strict=True))
            volume[r.key] = volume.get(r.key, 0) + torch.Size(r.size).numel()
            assert torch.Size(r.size).numel() == sum(torch.Size(s).numel() for s in r.hf_shapes)
        assert all(volume[r.key] == torch.Size(r.global_shape).numel() for r in table)
        assert len({(r.key, r.offset) for r in table}) == len(table)


def test_tensors_are_found_in_the_table_by_hugging_face_name():
    rows = [row for row in TABLE if "model.language_model.layers.{i}.self_attn.q_proj.weight" in row.hf]
    assert [row.megatron for row in rows] == ["language_model.decoder.layers.{i}.self_attention.linear_qkv.weight"]
    demo = Architecture.from_config(json.loads((DEMO / "config.json").read_text()))
    expected = {re.sub(r"(layers|blocks|list)\.\d+\.", r"\1.{i}.", name) for name in tensors(DEMO)}
    for layout in ("bridge", "pai"):
        named = [name for row in TABLE if layout in row.layouts and row.only != "moe" and not row.experts for name in row.hf]
        assert len(named) == len(set(named)) and set(named) - {"lm_head.weight"} == expected
    assert demo.tied and {row.only for row in TABLE if "lm_head.weight" in row.hf} == {"untied"}


@settings(deadline=None, max_examples=40)
@given(
    groups=st.integers(1, 4), heads=st.integers(1, 4), dim=st.integers(1, 5), hidden=st.integers(1, 6),
    transform=st.sampled_from(["groups", "heads"]),
)  # fmt: skip
def test_the_transforms_are_permutations(groups, heads, dim, hidden, transform):
    if transform == "groups":
        shapes = ((groups * heads * dim, hidden), (groups * dim, hidden), (groups * dim, hidden))
    else:
        shapes = ((3 * groups * dim, hidden),)
    rows = sum(s[0] for s in shapes)
    region = Region("k", (2, rows, hidden), (1, 0, 0), (1, rows, hidden), tuple("abc"[: len(shapes)]), shapes, transform, groups)
    given_tensors = list(torch.arange(rows * hidden).view(rows, hidden).split([s[0] for s in shapes]))
    box = transforms.to_megatron(region, given_tensors)
    assert box.shape == region.size
    back = transforms.to_hf(region, box)
    assert all(torch.equal(a, b) for a, b in zip(given_tensors, back, strict=True))


def test_another_size_is_refused_with_both_names(tmp_path, capsys):
    assert main(["convert", str(DEMO), str(tmp_path / "t"), "--size", "4B"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--size 4B" in err and "size tiny" in err and "use tiny" in err
    assert not (tmp_path / "t").exists()


def test_weights_of_another_size_than_the_config_are_refused(tmp_path, capsys):
    """An A3B walkthrough converts with the config of another size: caught by the first tensor that does not fit."""
    tiny.save(tiny.hf_model(hidden=32), tmp_path / "hf")
    shutil.copy(DEMO / "config.json", tmp_path / "hf" / "config.json")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "t")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "different sizes" in err and "size tiny" in err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_missing_and_unexpected_tensors_are_listed(tmp_path, change):
    tiny.save(tiny.hf_model(), tmp_path / "hf")
    weights = tensors(tmp_path / "hf")
    if change == "missing":
        del weights["model.visual.merger.norm.bias"]
    else:
        weights["model.visual.merger.extra"] = torch.zeros(2)
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    missing, unknown = "1 tensors that .* are missing: model.visual.merger.norm.bias", "do not belong to .*: model.visual.merger.extra"
    pattern = missing if change == "missing" else unknown
    with pytest.raises(RequestError, match=pattern):
        run(tmp_path / "hf", tmp_path / "t")


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (lambda p: None, "no such file or folder"),
        (lambda p: p.mkdir(), "neither a Hugging Face folder .* nor a Megatron checkpoint .* it holds nothing"),
        (lambda p: p.write_text("x"), "a file; give the folder"),
        (lambda p: (shutil.copytree(DEMO, p), (p / "model.safetensors").write_bytes(b"12345678{")), "not a safetensors file"),
        (lambda p: (shutil.copytree(DEMO, p), (p / hf.SINGLE).write_bytes((DEMO / hf.SINGLE).read_bytes()[:-10])), "cut short"),
        (lambda p: (shutil.copytree(DEMO, p), (p / hf.INDEX).write_text(index_of("../b.safetensors"))), "not in this folder"),
        (lambda p: (shutil.copytree(DEMO, p), (p / hf.INDEX).write_text(index_of("b.safetensors"))), "b.safetensors is missing"),
        (lambda p: (p.mkdir(), (p / TRACKER).write_text("../../etc")), "neither a number nor release"),
        (lambda p: (p.mkdir(), (p / TRACKER).write_text("7")), "iter_0000007/.metadata is missing"),
    ],
    ids=["nowhere", "empty", "file", "no safetensors", "cut", "escaping index", "missing shard", "bad tracker", "no iteration"],
)  # fmt: skip
def test_an_unreadable_source_is_a_one_line_error(tmp_path, prepare, line):
    prepare(tmp_path / "source")
    with pytest.raises(RequestError, match=line) as caught:
        run(tmp_path / "source", tmp_path / "target")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["source"])


def test_an_existing_target_is_kept_without_overwrite(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("years")
    with pytest.raises(RequestError, match="--overwrite"):
        run(DEMO, target)
    with pytest.raises(RequestError, match="holds no model or checkpoint, and --overwrite replaces nothing else"):
        run(DEMO, target, overwrite=True)
    assert (target / "thesis.txt").read_text() == "years"
    made = tmp_path / "made"
    run(DEMO, made)
    with pytest.raises(RequestError, match="not empty; add --overwrite"):
        run(DEMO, made)
    run(DEMO, made, layout="pai", overwrite=True)
    assert open_source(made).layout.mergers == "pai" and sorted(p.name for p in tmp_path.iterdir()) == ["made", "target"]


@pytest.mark.parametrize("direction", ["to megatron", "to hf"])
def test_a_full_disk_leaves_no_partial_target(tmp_path, monkeypatch, direction):
    source = DEMO
    if direction == "to hf":
        source = tmp_path / "mcore"
        run(DEMO, source)
    before = sorted(p.name for p in tmp_path.iterdir())

    original, written = positional_io.write_at, []

    def full(handle, data, offset):
        written.append(len(data))
        if sum(written) > 3_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle, data, offset)

    monkeypatch.setattr(positional_io, "write_at", full)
    with pytest.raises(WorkError, match="the disk is full; nothing was written") as caught:
        run(source, tmp_path / "target")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_too_little_disk_space_is_reported_before_the_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(RequestError, match=r"needs .* MB, but .* has 5 B free"):
        run(DEMO, tmp_path / "target")


def test_leftovers_of_a_killed_conversion_are_removed_by_the_next(tmp_path):
    (tmp_path / "target.tmp").mkdir()
    (tmp_path / "target.tmp" / "half").write_text("x")
    run(DEMO, tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("direction", ["to megatron", "to hf"])
def test_verify_finds_a_changed_bit(tmp_path, monkeypatch, direction):
    """The bit changes on disk between conversion and verification."""
    source, pattern = DEMO, "*.distcp"
    if direction == "to hf":
        source, pattern = tmp_path / "mcore", "*.safetensors"
        run(DEMO, source)
    original = verify.compare

    def decayed(there, made, caster):
        file = max(made.path.rglob(pattern), key=lambda f: f.stat().st_size)
        with file.open("r+b") as stream:
            stream.seek(file.stat().st_size // 2)
            byte = stream.read(1)[0]
            stream.seek(-1, 1)
            stream.write(bytes([byte ^ 1]))
        return original(there, made, caster)

    monkeypatch.setattr(convert, "compare", decayed)
    with pytest.raises(WorkError, match="differs from the source"):
        run(source, tmp_path / "target", verify=True)
    assert not (tmp_path / "target").exists() and not list(tmp_path.glob("*.tmp"))


def test_metadata_with_other_classes_is_not_loaded(tmp_path):
    import pickle

    run(DEMO, tmp_path / "mcore")
    (without_digests(tmp_path / "mcore") / "release" / ".metadata").write_bytes(pickle.dumps(shutil.rmtree))
    with pytest.raises(RequestError, match=r"shutil._?rmtree.* is not allowed in a checkpoint"):
        run(tmp_path / "mcore", tmp_path / "back")


def test_a_checkpoint_without_its_tracker_is_an_error(tmp_path):
    run(DEMO, tmp_path / "mcore")
    (tmp_path / "mcore" / TRACKER).unlink()
    (tmp_path / "mcore" / "release").rename(tmp_path / "mcore" / "iter_0000003")
    with pytest.raises(RequestError, match=r"tracker|latest_checkpointed_iteration.txt is missing; name one of its folders: iter_0000003"):
        run(tmp_path / "mcore", tmp_path / "back")
