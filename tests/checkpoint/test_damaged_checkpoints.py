"""Damaged sources, NaN, and interrupted conversions: one-line errors, and no partial output."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3vl_core.checkpoint import convert, hf, torch_dist, verify
from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.run_record import TRACKER
from tests.checkpoint.conversions import run, without_digests
from tests.checkpoint.interrupted import Conversion
from tests.shared import DEMO

NORM, QUERY = "model.language_model.norm.weight", "model.language_model.layers.3.self_attn.k_proj.weight"


@pytest.fixture
def megatron(tmp_path) -> Path:
    run(DEMO, tmp_path / "mcore")
    return without_digests(tmp_path / "mcore")


def sharded(folder: Path) -> Path:
    """The demo model in two shards with an index."""
    shutil.copytree(DEMO, folder)
    weights = load_file(folder / hf.SINGLE)
    (folder / hf.SINGLE).unlink()
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[:80], names[80:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / hf.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def one_line_of(text: str) -> str:
    err = [line for line in text.splitlines() if line.startswith("qwen3vl: ")]
    assert len(err) == 1
    return err[0]


def one_line(capsys) -> str:
    return one_line_of(capsys.readouterr().err)


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def cut(file: Path, by: int = 100) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - by)


def damaged_hf(change, tmp_path) -> Path:
    folder = sharded(tmp_path / "source")
    change(folder)
    return folder


def rename_in_index(folder: Path) -> None:
    index = json.loads((folder / hf.INDEX).read_text())
    index["weight_map"]["model.language_model.layers.99.mlp.up_proj.weight"] = "model-00002-of-00002.safetensors"
    (folder / hf.INDEX).write_text(json.dumps(index))


def only_pickles(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / hf.INDEX]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def two_of_one_name(folder: Path) -> None:
    weights = load_file(folder / "model-00002-of-00002.safetensors")
    name = sorted(load_file(folder / "model-00001-of-00002.safetensors"))[0]
    save_file(weights | {name: torch.zeros(1)}, folder / "model-00002-of-00002.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: cut(f / "model-00002-of-00002.safetensors"), r"model-00002-of-00002.safetensors: cut short \(.* ends at .*\); download"),
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002.safetensors is missing, though .* names it"),
        (rename_in_index, "says that model.language_model.layers.99.mlp.up_proj.weight is in .*, but it is not"),
        (only_pickles, r"its weights are pickles \(pytorch_model.bin\), which can run programs and are never opened"),
        (lambda f: (f / hf.INDEX).write_text("[]"), "not an index of safetensors files"),
        (two_of_one_name, "is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors; keep one"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    ],
    ids=["truncated shard", "missing shard", "index names no tensor", "pickle", "index is none", "twice", "no config"],
)
def test_a_damaged_model_folder_is_a_one_line_error(tmp_path, monkeypatch, capsys, change, line):
    monkeypatch.chdir(tmp_path)
    source = damaged_hf(change, tmp_path)
    assert main(["convert", str(source), str(tmp_path / "target")]) == 2
    found = one_line(capsys)
    assert re.search(line, found), found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def first_data_file(folder: Path) -> Path:
    return max((folder / "release").glob("*.distcp"), key=lambda f: f.stat().st_size)


def evil_record(folder: Path) -> None:
    """The archive of one tensor has another pickle, detected by the record length in the metadata."""
    reader = torch_dist.RegionReader(folder / "release")
    chunk = reader._chunks["language_model.decoder.final_layernorm.weight"].all[0]
    blob = pickle.dumps(Evil())
    with reader.file_of(chunk.stored).open("r+b") as stream:
        stream.seek(chunk.stored.offset)
        stream.write(blob + b" " * (chunk.stored.length - len(blob)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: cut(first_data_file(f)), r"distcp: cut short \(\d+ bytes, \d+ are named\)"),
        (lambda f: first_data_file(f).unlink(), "distcp: missing, though .metadata names it"),
        (lambda f: (f / "release" / ".metadata").write_bytes(pickle.dumps(Evil())), r"system.* is not allowed in a checkpoint's tables"),
        (lambda f: (f / "release" / ".metadata").write_bytes(b"\x80"), ".metadata: not readable"),
        (evil_record, "distcp: (holds more than tensors|not readable)"),
        (lambda f: (f / TRACKER).unlink(), "neither a Hugging Face folder .* nor a Megatron checkpoint"),
        (lambda f: (f / "config.json").unlink(), "no config.json beside .* add --hf"),
    ],
    ids=["truncated", "missing", "tables run a program", "no tables", "a record runs a program", "no tracker", "no config"],
)
def test_a_damaged_checkpoint_is_a_one_line_error(megatron, tmp_path, monkeypatch, capsys, change, line):
    monkeypatch.chdir(tmp_path)
    change(megatron)
    capsys.readouterr()
    assert main(["convert", str(megatron), str(tmp_path / "target")]) == 2
    found = one_line(capsys)
    assert re.search(line, found), found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mcore"]


def test_common_values_with_code_are_not_loaded(megatron, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), megatron / "release" / "common.pt")
    with pytest.raises(RequestError, match=r"common.pt: holds more than tensors and plain values .*; not loaded"):
        torch_dist.read_common(megatron / "release")
    assert not (tmp_path / "ran").exists()


def with_nan(folder: Path) -> Path:
    shutil.copytree(DEMO, folder)
    weights = load_file(folder / hf.SINGLE)
    weights[QUERY][5, 7] = float("nan")
    weights[QUERY][0, 1] = -float("inf")
    weights[NORM][0] = float("inf")
    save_file(weights, folder / hf.SINGLE, {"format": "pt"})
    return folder


def test_nan_is_refused_and_the_tensor_named(tmp_path, capsys):
    assert main(["convert", str(with_nan(tmp_path / "hf")), str(tmp_path / "target")]) == 2
    line = one_line(capsys)
    assert "holds NaN or infinity" in line and "--allow-nan" in line and (QUERY in line or NORM in line)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_allowed_nan_is_converted_and_counted(tmp_path, capsys):
    source = with_nan(tmp_path / "hf")
    assert main(["convert", str(source), str(tmp_path / "mcore"), "--allow-nan", "--report", str(tmp_path / "to.json")]) == 0
    assert "3 elements in 2 tensors" in capsys.readouterr().out
    assert json.loads((tmp_path / "to.json").read_text())["not_finite"] == {QUERY: 2, NORM: 1}
    with pytest.raises(RequestError, match="holds NaN or infinity"):
        run(tmp_path / "mcore", tmp_path / "refused")
    run(tmp_path / "mcore", tmp_path / "back", allow_nan=True, report=str(tmp_path / "back.json"))
    assert json.loads((tmp_path / "back.json").read_text())["not_finite"] == {QUERY: 2, NORM: 1}
    before, after = load_file(source / hf.SINGLE), load_file(tmp_path / "back" / hf.SINGLE)
    assert all(torch.equal(before[k].view(torch.int16), after[k].view(torch.int16)) for k in before)


def test_infinity_survives_a_change_of_precision(tmp_path):
    run(with_nan(tmp_path / "hf"), tmp_path / "mcore", allow_nan=True, dtype="fp16", verify=True)
    run(tmp_path / "mcore", tmp_path / "back", allow_nan=True)
    made = load_file(tmp_path / "back" / hf.SINGLE)
    assert made[QUERY][5, 7].isnan() and made[QUERY][0, 1] == -float("inf") and made[NORM][0] == float("inf")


def test_the_report_describes_the_conversion(tmp_path, capsys):
    words = ["--verify", "--layout", "pai", "--report", str(tmp_path / "report.json")]
    assert main(["convert", str(DEMO), str(tmp_path / "mcore"), *words]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["source_kind"] == "hf" and report["target_kind"] == "megatron" and report["layout"] == "pai"
    assert report["tensors"] == report["verified"] == len(load_file(DEMO / hf.SINGLE))
    assert report["bytes"] == sum(t.nbytes for t in load_file(DEMO / hf.SINGLE).values())
    assert report["dtypes"] == ["bfloat16"] and report["not_finite"] == {} and report["seconds"] > 0 and report["bytes_per_second"] > 0
    assert report["forward"]["equal"] is True and report["forward"]["precision"] == "bfloat16" and report["forward"]["logits"] > 1000
    assert "logits of one picture, bitwise equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--device cuda: --dtype keep casts nothing, so a GPU is not used; leave --device out"),
        (["--dtype", "bf16", "--adapter"], "--device cuda: --adapter writes a few small tensors"),
        (["--dtype", "bf16"], "--device cuda: torch finds no CUDA GPU here; leave it out, the CPU writes the same bytes"),
    ],
)
def test_device_cuda_is_refused_without_a_gpu_or_a_cast(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["convert", str(tmp_path / "any"), str(tmp_path / "target"), "--device", "cuda", *words]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1 and not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["convert", DEMO, "target", "--report"],
        ["inspect", DEMO, "--json"],
        ["inspect", "records.jsonl", "--json"],
        ["inspect", "records.jsonl", "--html"],
        ["inspect", "records.jsonl", "--model", DEMO, "--losses"],
        ["compare", "--base", DEMO, "--tuned", DEMO, "--images", ".", "--json"],
        ["plan", "--size", "4B", "--gpus", "8", "--save"],
        ["recipe", "--save"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records.jsonl").write_text("{}\n")
    for place, line in (
        ("nowhere/a.json", "nowhere is not a folder; create it first"),
        ("records.jsonl/a.json", "records.jsonl is not a folder; create it first"),
        (".", ": a folder; give a file in it"),
        ("/proc/a.json", "/proc cannot be written to (No such file or directory); choose another folder"),
        ("a" * 253, ": a name has at most 251 bytes here; choose a shorter one"),
    ):
        assert main([*map(str, words), place]) == 2
        printed = capsys.readouterr()
        assert one_line_of(printed.err).startswith(f"qwen3vl: {words[-1]} ") and line in printed.err
        assert not printed.out and [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize(
    "words", [["inspect"], ["convert", DEMO], ["finetune", "--plan"], ["runs", "list", "--runs"]], ids=lambda words: words[0]
)
def test_a_path_of_an_unknown_user_is_refused(capsys, words):
    if words[0] in ("inspect", "convert"):
        assert main([*map(str, words), "a" * 256 + "/x"]) == 2
        assert f"{'a' * 40}…: a name of 256 bytes; it has at most 255; correct the path" in one_line(capsys)
    assert main([*map(str, words), "~no-such-user/x"]) == 2
    assert "~no-such-user/x: there is no user no-such-user here; write ./~" in one_line(capsys)


def test_verify_skips_the_forward_pass_if_memory_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verify, "free_memory", lambda: 20_000_000)
    run(DEMO, tmp_path / "mcore", verify=True, report=str(tmp_path / "report.json"))
    sentence = json.loads((tmp_path / "report.json").read_text())["forward"]["skipped"]
    assert "the model takes 11.0 MB, more than half of the 20.0 MB" in sentence and sentence in capsys.readouterr().out


def test_verify_refuses_a_target_with_other_logits(tmp_path, monkeypatch):
    """Even if comparing the tensors missed a change, comparing the logits would not."""
    original = verify.forward_parity

    def changed(source, made, dtype):
        reader = made.megatron
        stored = reader._chunks["language_model.decoder.final_layernorm.weight"].all[0].stored
        with reader.file_of(stored).open("r+b") as stream:
            stream.seek(stored.offset + reader._location(stored).offset)
            stream.write(torch.tensor([7.5, -3.0], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
        return original(source, made, dtype)

    monkeypatch.setattr(convert, "forward_parity", changed)
    with pytest.raises(WorkError, match="its logits of one picture differ from the source's by up to"):
        run(DEMO, tmp_path / "mcore", verify=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["to megatron", "to hf"])
def half_way(request, tmp_path):
    """A conversion that has written part of its target: (conversion, source, target)."""
    source = DEMO
    if request.param == "to hf":
        source = tmp_path / "mcore"
        run(DEMO, source)
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    conversion = Conversion(source, target)
    try:
        conversion.start()
        # its lock stands beside it: one writer a target
        assert sorted(p.name for p in target.parent.iterdir()) == [".target.lock", "target.tmp"]
        yield conversion, source, target
    finally:
        conversion.process.kill()
        conversion.process.join()


def test_ctrl_c_leaves_no_partial_target_and_exits_with_130(half_way):
    conversion, _, target = half_way
    code, err = conversion.stop(signal.SIGINT)
    assert code == 130 and err.endswith("qwen3vl: stopped\n") and "Traceback" not in err
    assert not list(target.parent.iterdir())


def test_a_killed_conversion_leaves_no_complete_target_and_the_next_starts_clean(half_way):
    conversion, source, target = half_way
    assert conversion.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    left = target.with_name("target.tmp")
    assert left.exists() and not target.exists()
    for broken in (target, left):
        with pytest.raises(RequestError):
            run(broken, target.parent / "other")
    run(source, target, verify=True)
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def renamed(folder: Path, change) -> None:
    """The folder's tensors under other names; None leaves one out."""
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    save_file({new: tensor for name, tensor in tensors.items() if (new := change(name)) is not None}, folder / "model.safetensors")


def with_quantization(folder: Path, method: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: with_quantization(f, "fp8"), "quantised weights are not converted (config.json says fp8); get the model in bf16"),
        (lambda f: renamed(f, lambda n: n.replace("o_proj.weight", "o_proj.qweight")), "quantised weights are not converted (it holds"),
        (
            lambda f: renamed(f, lambda n: None if n == "lm_head.weight" else n),
            "lm_head.weight is missing, and config.json",
        ),
        (
            lambda f: renamed(f, lambda n: None if n == "lm_head.weight" else n.removeprefix("model.")),
            "saved by AutoModel, without its head; load it with AutoModelForImageTextToText",
        ),
        (
            lambda f: renamed(f, lambda n: n.replace("model.language_model.", "model.")),
            "by another program or an older transformers",
        ),
    ],
    ids=["fp8", "gptq", "no head", "headless names", "older names"],
)
def test_a_folder_of_another_form_is_refused_with_the_reason(tmp_path, capsys, change, line):
    from tests import tiny

    folder = tiny.save(tiny.hf_model(layers=2, vision_layers=2, deepstack=(0,), tied=False), tmp_path / "hf")
    change(folder)
    capsys.readouterr()
    assert main(["convert", str(folder), str(tmp_path / "mcore")]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1, err
