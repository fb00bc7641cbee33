"""`qwen3vl notebook`: copies of the examples, and JupyterLab with its own token."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from console.commands import notebook
from console.notebook import jupyterlab
from qwen3vl_core.errors import RequestError

ROOT = Path(__file__).parents[2]
NAMES = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))


def test_examples_are_copied_and_edited_copies_are_kept(tmp_path):
    folder = tmp_path / "deep" / "work"
    assert [p.name for p in jupyterlab.copy_examples(folder)] == NAMES
    (folder / NAMES[0]).write_text("mine")
    (folder / NAMES[1]).unlink()
    jupyterlab.copy_examples(folder)
    assert (folder / NAMES[0]).read_text() == "mine" and (folder / NAMES[1]).is_file()
    assert not list(folder.glob("*.tmp"))


def test_the_command_keeps_jupyters_token_and_listens_locally(tmp_path):
    words = jupyterlab.command(tmp_path, 8899, "127.0.0.1", browser=False)
    assert words[:3] == [sys.executable, "-m", "jupyterlab"] and "--ServerApp.port=8899" in words and "--no-browser" in words
    assert "--ServerApp.ip=127.0.0.1" in words and not any("token" in w or "password" in w for w in words)
    assert ("--allow-root" in words) == (os.geteuid() == 0)


def test_kernels_find_the_package_the_command_and_the_runs(tmp_path):
    made = jupyterlab.environment(tmp_path, {"PATH": "/usr/bin", "HOME": "/home/me"})
    assert made["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    assert made["QWEN3VL_RUNS"] == str(tmp_path) and made["HOME"] == "/home/me"
    assert "QWEN3VL_RUNS" not in jupyterlab.environment(None, {})


def test_wrong_requests_are_one_line_errors(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(jupyterlab.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RequestError, match="is a file"):
        notebook(["--dir", str(tmp_path / "file")])
    with pytest.raises(RequestError, match="must be a port"):
        notebook(["--port", "0"])
    monkeypatch.setattr(jupyterlab.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"JupyterLab is not installed; pip install"):
        notebook(["--dir", str(tmp_path)])
