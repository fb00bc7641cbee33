"""Checkpoints written by other releases of Megatron-Core with the names of other programs convert to the original model."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qwen3vl_core
from qwen3vl_core.checkpoint import convert, dcp_metadata
from qwen3vl_core.checkpoint.inspect import inspect
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import ConvertOptions
from tests.checkpoint.foreign_models import KINDS, RELEASES, STYLES, source

KEPT = Path(__file__).parent / "foreign_cores"
TOOL = Path(__file__).parents[2] / "tools" / "foreign_checkpoints.py"
CASES = [(release, kind) for release in RELEASES for kind in KINDS]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hf")
    return {kind: source(folder / kind, kind) for kind in KINDS}


def unpacked(release: str, kind: str, folder: Path) -> Path:
    with tarfile.open(KEPT / f"{release}-{kind}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "checkpoint"


def same_model(model: Path, converted: Path) -> None:
    """Every tensor equals the source bitwise. Experts are compared in Megatron's form, since the files may store them in another."""
    base, back = open_source(model), open_source(converted)
    assert set(load_file(converted / "model.safetensors")) == {name for region in back.regions() for name in region.hf}
    for there, here in zip(base.regions(), back.regions(), strict=True):
        assert torch.equal(base.read_box(there), back.read_box(here)), there.hf


@pytest.mark.parametrize(("release", "kind"), CASES)
def test_a_checkpoint_of_another_core_converts_bitwise(models, tmp_path, release, kind):
    checkpoint = unpacked(release, kind, tmp_path)
    convert.run(ConvertOptions(source=str(checkpoint), target=str(tmp_path / "hf")))
    same_model(models[kind], tmp_path / "hf")


@pytest.mark.parametrize(
    ("release", "kind", "layout"),
    [
        ("0.13.1", "dense", "vision tower as transformers names it (ms-swift), layers stacked"),
        ("0.15.3", "dense", "vision tower as transformers names it (Megatron-Bridge 0.3), each layer by itself"),
        ("0.15.3", "moe", "bridge, each layer by itself, each expert too"),
        ("0.14.0", "moe", "pai, layers stacked"),
    ],
)
def test_inspect_names_the_program_that_wrote_it(tmp_path, release, kind, layout):
    found = inspect(unpacked(release, kind, tmp_path))
    assert found.layout == layout and found.parallel == ("TP 1 PP 1 CP 1 EP 1" if kind == "moe" else "TP 1 PP 1 CP 1")
    assert not found.problems and set(found.parts) >= {"vision", "projector", "embeddings", "language"}


def test_a_model_loads_directly_from_foreign_checkpoints(models, tmp_path):
    for release, kind in (("0.15.3", "dense"), ("0.19.2", "moe")):
        loaded = qwen3vl_core.load(unpacked(release, kind, tmp_path / release)).state_dict()
        expected = qwen3vl_core.load(models[kind]).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in expected.items() if torch.is_tensor(value))


@pytest.mark.parametrize("release", ["0.13.1", "0.15.3", "0.19.2"])
def test_damage_is_detected(tmp_path, capsys, release):
    checkpoint = unpacked(release, "moe", tmp_path)
    file = max((checkpoint / "iter_0000007").glob("*.distcp"), key=lambda f: f.stat().st_size)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 10)
    assert main(["convert", str(checkpoint), str(tmp_path / "hf")]) == 2
    assert "cut short" in capsys.readouterr().err and not (tmp_path / "hf").exists()


def test_a_missing_tensor_is_named(tmp_path):
    """One expert's gate projection is not in the tables."""
    checkpoint = unpacked("0.15.3", "moe", tmp_path)
    tables = checkpoint / "iter_0000007" / ".metadata"
    lacking = b"language_model.decoder.layers.1.mlp.experts.experts.2.linear_fc1.weight_w"
    tables.write_bytes(tables.read_bytes().replace(lacking, lacking.replace(b"language", b"lost_age")))
    with pytest.raises(RequestError, match=r"lost_age_model|incomplete"):
        convert.run(ConvertOptions(source=str(checkpoint), target=str(tmp_path / "hf")))


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_no_function_named_in_a_checkpoint_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = unpacked("0.13.1", "dense", tmp_path)
    data = checkpoint / "iter_0000007"
    torch.save({"args": Evil()}, data / "common.pt")
    assert any("common.pt: holds more than tensors and plain values" in line for line in inspect(checkpoint).problems)
    # under the name of a class that is read, and of a module that has such classes
    for module, name in (("megatron.core.dist_checkpointing.strategies.torch", "os.system"), ("megatron.training", "MCoreSavePlan")):
        (data / ".metadata").write_bytes(pickle.dumps(None, protocol=0)[:-2] + f"c{module}\n{name}\n.".encode())
        with pytest.raises(RequestError, match=rf"{re.escape(name)} is not allowed in a checkpoint's tables"):
            dcp_metadata.read_tables(data / ".metadata")
    assert not (tmp_path / "ran").exists()


def installed(release: str, folder: Path) -> Path | None:
    """A release of Megatron-Core installed in a separate folder; None if it is not available for this Python."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), f"megatron-core=={release}"]
    done = subprocess.run(command, capture_output=True, text=True)
    return folder if done.returncode == 0 else None


@pytest.mark.slow
@pytest.mark.skipif("QWEN3VL_OTHER_CORES" not in os.environ, reason="QWEN3VL_OTHER_CORES=1 installs other cores into a temporary folder")
@pytest.mark.parametrize("release", RELEASES)
def test_checkpoints_of_each_installable_megatron_core_convert(models, tmp_path, release):
    core = installed(release, tmp_path / "core")
    if core is None:
        pytest.skip(f"no Megatron-Core {release} for this Python")
    for kind, (vision, keys) in zip(KINDS, STYLES[release], strict=True):
        command = [sys.executable, str(TOOL), str(models[kind]), str(tmp_path / kind), "--vision", vision, "--keys", keys, "--extras"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(core)})
        assert done.returncode == 0, done.stderr[-2000:]
        convert.run(ConvertOptions(source=str(tmp_path / kind), target=str(tmp_path / f"{kind}-hf")))
        same_model(models[kind], tmp_path / f"{kind}-hf")
