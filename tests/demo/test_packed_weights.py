"""The demo's weights in a wheel: smaller, and the same bytes once the workspace is made."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from qwen3vl_core.demo import packed_weights, workspace
from tests.shared import DEMO

ROOT = Path(__file__).parents[2]
WEIGHTS = (DEMO / packed_weights.WEIGHTS).read_bytes()


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("data", [WEIGHTS, WEIGHTS[:-1]], ids=["even", "odd"])
def test_weights_are_unpacked_bit_by_bit(data):
    assert packed_weights.unpacked(packed_weights.packed(data)) == data


def test_packed_weights_deflate_by_a_tenth_more():
    assert len(zlib.compress(packed_weights.packed(WEIGHTS))) < 0.9 * len(zlib.compress(WEIGHTS))


def test_the_demo_of_a_wheel_begins_with_the_same_model(tmp_path, monkeypatch):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("qwen3vl_core", "console", "notebooks"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")], cwd=source, check=True)
    in_wheel = tmp_path / "lib" / "qwen3vl_core" / "demo" / "base_hf"
    assert set(files(in_wheel)) == set(files(DEMO)) - {packed_weights.WEIGHTS} | {packed_weights.PACKED}
    monkeypatch.setattr(workspace, "BASE", in_wheel)
    monkeypatch.setattr(workspace, "TRAIN_SCENES", 1)
    monkeypatch.setattr(workspace, "HELD_OUT_SCENES", 1)
    made = workspace.Workspace(tmp_path / "demo")
    made.make()
    assert files(made.base) == files(DEMO)
