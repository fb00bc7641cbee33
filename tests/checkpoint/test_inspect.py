"""`qwen3vl inspect`: what a path is, what it contains, and all of its problems."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3vl_core.checkpoint import hf
from qwen3vl_core.checkpoint.inspect import inspect
from qwen3vl_core.cli import main
from qwen3vl_core.run_record import TRACKER
from tests import tiny
from tests.checkpoint.conversions import without_digests
from tests.shared import DEMO

NORM = "model.visual.merger.norm.bias"


@pytest.fixture(scope="module")
def megatron(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "mcore"
    assert main(["convert", str(DEMO), str(folder), "--layout", "pai"]) == 0
    return folder


def parameters(folder: Path) -> int:
    return sum(t.numel() for file in folder.glob("*.safetensors") for t in load_file(file).values())


def test_a_model_folder_is_described(tmp_path, capsys):
    assert main(["inspect", str(DEMO), "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert "Hugging Face model" in out and "size tiny" in out and "input and output embeddings are one matrix" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(part["parameters"] for part in found["parts"].values()) == parameters(DEMO)
    assert set(found["parts"]) == {"vision", "projector", "embeddings", "language"}
    assert found["dtypes"] == {"bfloat16": 2 * parameters(DEMO)} and found["tied"] is True and found["problems"] == []
    assert "tokenizer.json" in found["side_files"] and found["optimizer_bytes"] is None


def test_a_converted_checkpoint_has_the_same_parts(megatron, capsys):
    found, model = inspect(megatron), inspect(DEMO)
    assert found.parts == model.parts and found.model == "size tiny"
    assert found.layout == "pai, layers stacked" and found.iteration == 0 and found.optimizer_bytes == 0
    assert found.parallel.startswith("TP 1 PP 1")
    assert main(["inspect", str(megatron / "release")]) == 0
    out = capsys.readouterr().out
    assert "iteration  release" in out and "its state is not saved" in out


@pytest.mark.parametrize("form", ["straight", "transposed"])
def test_experts_are_reported_separately(tmp_path, form):
    folder = tiny.save(tiny.hf_moe_model(layers=3), tmp_path / "hf")
    if form == "transposed":
        assert main(["convert", str(folder), str(tmp_path / "mcore")]) == 0
        assert main(["convert", str(tmp_path / "mcore"), str(tmp_path / "back")]) == 0
        folder = tmp_path / "back"
    found = inspect(folder)
    assert found.parts["experts"].parameters == 3 * 8 * 3 * 24 * 64
    assert found.experts == f"8, 2 a token; stacked, as {'published' if form == 'transposed' else 'transformers 5 writes them'}"
    assert found.problems == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's folder with two checkpoints, saved by Megatron with the state of its optimizer."""
    from tests.ranks import run_ranks
    from tests.training import trainings

    folder = tmp_path_factory.mktemp("run")
    source = tiny.save(tiny.hf_model(5, layers=6), tmp_path_factory.mktemp("hf"))
    run_ranks(1, trainings.train_in_two_halves, source, folder / "checkpoints", {"precision": "bf16"})
    shutil.copytree(folder / "checkpoints" / "iter_0000002", folder / "checkpoints" / "iter_0000001")
    (folder / "plan.json").write_text(json.dumps({"v": 1, "kind": "finetune", "name": "first", "options": {}}))
    (folder / "state.json").write_text(json.dumps({"status": "done", "exit_code": 0}))
    return folder


def test_a_run_shows_its_last_checkpoint_and_the_optimizers_state(trained, capsys):
    assert main(["inspect", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "run; its last checkpoint: Megatron checkpoint" in out and "kind finetune, name first, status done" in out
    assert "iteration  2 (there are 1 too)" in out and "bfloat16" in out
    found = inspect(trained)
    # fp32 master weights and two moments
    numbers = sum(part.parameters for part in found.parts.values())
    assert 8 * numbers <= found.optimizer_bytes <= 13 * numbers and found.problems == []
    assert "its state is saved" in out


def test_a_run_without_a_checkpoint_is_not_an_error(tmp_path, capsys):
    (tmp_path / "plan.json").write_text('{"kind": "finetune", "name": "x"}')
    assert main(["inspect", str(tmp_path)]) == 0
    assert "checkpoints none" in capsys.readouterr().out


def broken(source: Path, target: Path, change) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


def without(name: str, extra: str | None = None):
    def change(folder: Path) -> None:
        weights = load_file(folder / hf.SINGLE)
        del weights[name]
        if extra:
            weights[extra] = torch.zeros(2)
        save_file(weights, folder / hf.SINGLE, {"format": "pt"})

    return change


def other_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] *= 2
    config["vision_config"]["out_hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


def all_at_once(folder: Path) -> None:
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": {"x": hf.SINGLE, "y": "model-00009.safetensors"}}))
    without(NORM, "model.visual.more")(folder)


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda f: (f / hf.SINGLE).write_bytes((f / hf.SINGLE).read_bytes()[:-50]), ["cut short", "are missing"]),
        (without("model.language_model.norm.weight"), ["1 tensors that .* are missing: model.language_model.norm.weight"]),
        (without(NORM, "model.visual.more"), [f"are missing: {NORM}", "do not belong to .*: model.visual.more"]),
        (lambda f: (f / "config.json").unlink(), ["config.json: no such file"]),
        (lambda f: (f / "config.json").write_text("{"), ["config.json: not JSON"]),
        (other_size, ["weights and config are of different sizes"]),
        (all_at_once, ["model-00009.safetensors is missing", "says that x is in", f"are missing: {NORM}", "model.visual.more"]),
    ],
    ids=["cut", "missing", "missing and too much", "no config", "bad config", "other size", "several"],
)  # fmt: skip
def test_a_damaged_model_is_described_and_every_problem_listed(tmp_path, capsys, change, lines):
    folder = broken(DEMO, tmp_path / "hf", change)
    assert main(["inspect", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "Hugging Face model" in out and err.count("\n") == 1 and "listed above" in err and "Traceback" not in err
    problems = [line for line in out.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == len(lines)
    for line, pattern in zip(problems, lines, strict=True):
        assert re.search(pattern, line), line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: max((f / "release").glob("*.distcp"), key=lambda x: x.stat().st_size).write_bytes(b"x"), "distcp: cut short"),
        (lambda f: (f / "release" / ".metadata").write_bytes(pickle.dumps(print)), "print is not allowed in a checkpoint's tables"),
        (lambda f: (f / "release" / "common.pt").write_bytes(pickle.dumps(print)), "common.pt: "),
        (lambda f: (f / TRACKER).write_text("12"), "the tracker says 12"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    ],
    ids=["cut", "tables", "common", "tracker", "no config"],
)
def test_a_damaged_checkpoint_is_described_as_far_as_it_can_be_read(megatron, tmp_path, capsys, change, line):
    folder = broken(megatron, tmp_path / "mcore", lambda folder: change(without_digests(folder)))
    assert main(["inspect", str(folder), "--json", str(tmp_path / "found.json")]) == 1
    out, err = capsys.readouterr()
    assert "Megatron checkpoint" in out and line in out and err.count("\n") == 1
    assert any(line in problem for problem in json.loads((tmp_path / "found.json").read_text())["problems"])


def test_pickled_weights_are_named_and_never_opened(tmp_path, capsys):
    shutil.copy(DEMO / "config.json", tmp_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert main(["inspect", str(tmp_path)]) == 1
    assert "pytorch_model.bin can run programs and are never opened" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nowhere", "empty", "file.bin"])
def test_an_unknown_path_is_a_one_line_error(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").touch()
    assert main(["inspect", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and name in err
