"""`qwen3vl notebook`: copies of the examples, and JupyterLab with its own token."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from console.commands import notebook
from console.notebook import inside_jupyter, jupyterlab
from console.notebook.examples import copy_examples
from qwen3vl_core.errors import RequestError

ROOT = Path(__file__).parents[2]
NAMES = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))


def notebook_of(text: str, outputs: bool = False) -> dict:
    cell = {"cell_type": "code", "source": [text], "metadata": {}, "execution_count": None, "outputs": []}
    if outputs:
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["5"]}]
    return {"cells": [cell], "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}


def write(file: Path, text: str, **how) -> str:
    file.write_text(json.dumps(notebook_of(text, **how)))
    return file.read_text()


def test_examples_are_copied_and_edited_copies_are_kept(tmp_path):
    folder = tmp_path / "deep" / "work"
    assert copy_examples(folder).names == NAMES
    (folder / NAMES[0]).write_text("mine")
    (folder / NAMES[1]).unlink()
    assert copy_examples(folder).lines == []
    assert (folder / NAMES[0]).read_text() == "mine" and (folder / NAMES[1]).is_file()
    assert not list(folder.glob("*.tmp"))


def test_an_upgrade_refreshes_copies_that_are_unchanged_and_puts_the_others_beside(tmp_path):
    source, folder = tmp_path / "installed", tmp_path / "work"
    source.mkdir()
    for name in ("a.ipynb", "b.ipynb", "c.ipynb"):
        write(source / name, "old")
    copy_examples(folder, source=source)
    edited = write(folder / "a.ipynb", "old, and mine")
    run = write(folder / "b.ipynb", "old", outputs=True)
    # JupyterLab saves other spaces and metadata
    saved = json.loads((folder / "c.ipynb").read_text()) | {"metadata": {"kernelspec": {"name": "python3"}, "widgets": {}}}
    (folder / "c.ipynb").write_text(json.dumps(saved))
    for name in ("a.ipynb", "b.ipynb", "c.ipynb"):
        write(source / name, "new")
    copied = copy_examples(folder, source=source)
    assert copied.refreshed == ["c.ipynb"] and copied.beside == ["a.new.ipynb", "b.new.ipynb"]
    assert "c.ipynb: replaced by the new version" in copied.lines[0] and "yours differs and is kept" in copied.lines[1]
    assert (folder / "a.ipynb").read_text() == edited and (folder / "b.ipynb").read_text() == run
    assert all("new" in (folder / name).read_text() for name in ("c.ipynb", "a.new.ipynb", "b.new.ipynb"))
    (folder / "a.new.ipynb").unlink()
    assert copy_examples(folder, source=source).lines == [] and not (folder / "a.new.ipynb").exists()


def test_in_an_open_jupyter_the_examples_are_copied_into_its_root_and_their_kernel_starts(tmp_path, monkeypatch, capfd):
    """As in its terminal: JUPYTER_SERVER_ROOT. The parent is a Jupyter server whose Python has no widgets."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("JUPYTER_SERVER_ROOT", str(root))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(os, "execve", lambda *words: pytest.fail("a JupyterLab is open"))
    monkeypatch.setattr(inside_jupyter, "_server_python", lambda process: tmp_path / "env" / "bin" / "python")
    assert notebook(["--runs", str(tmp_path / "runs")]) == 0
    said = capfd.readouterr().out
    assert f"list of files: {inside_jupyter.FOLDER}" in said and f"env/bin/python -m pip install {inside_jupyter.PACKAGES}" in said
    for name in NAMES:
        made = json.loads((root / inside_jupyter.FOLDER / name).read_text())
        assert made["metadata"]["kernelspec"] == inside_jupyter.KERNEL
    for name in inside_jupyter.EXTENSIONS:
        (tmp_path / "env" / "share" / "jupyter" / "labextensions" / name).mkdir(parents=True)
    assert notebook(["--dir", str(tmp_path / "elsewhere")]) == 0
    said = capfd.readouterr().out
    assert f"shows files below {root} only" in said and "pip install" not in said
    spec = json.loads((tmp_path / "data" / "kernels" / "qwen3vl" / "kernel.json").read_text())
    assert spec["argv"][0] == sys.executable and spec["env"]["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_the_open_jupyter_is_found_from_a_cell_too(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "jpserver-12.json").write_text(json.dumps({"root_dir": "/mnt/workspace"}))
    assert inside_jupyter.root_of({"JPY_PARENT_PID": "12"}) == Path("/mnt/workspace")
    assert inside_jupyter.root_of({"JPY_PARENT_PID": "13"}) == Path.cwd()
    assert inside_jupyter.root_of({}) is None


def test_the_python_of_the_open_jupyter_is_found_among_the_parents():
    """A server, by name alone, whose child asks for it."""
    ask = "from console.notebook.inside_jupyter import _server_python; import os; print(_server_python(os.getppid()))"
    server = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2]], check=True)"
    words = [sys.executable, "-c", server, "jupyter-lab", ask]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed.strip() == sys.executable


def test_the_command_keeps_jupyters_token_and_listens_locally(tmp_path):
    words = jupyterlab.command(tmp_path, 8899, "127.0.0.1", browser=False)
    assert words[:3] == [sys.executable, "-m", "jupyterlab"] and "--ServerApp.port=8899" in words and "--no-browser" in words
    assert "--ServerApp.ip=127.0.0.1" in words and not any("token" in w or "password" in w for w in words)
    assert "--ServerApp.base_url=/me/" in jupyterlab.command(tmp_path, None, "127.0.0.1", browser=True, base_url="/me/")
    assert ("--allow-root" in words) == (os.geteuid() == 0)


def test_kernels_find_the_package_the_command_and_the_runs(tmp_path):
    made = jupyterlab.environment(tmp_path, {"PATH": "/usr/bin", "HOME": "/home/me"})
    assert made["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    assert made["QWEN3VL_RUNS"] == str(tmp_path) and made["HOME"] == "/home/me"
    assert "QWEN3VL_RUNS" not in jupyterlab.environment(None, {})


def test_wrong_requests_are_one_line_errors(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RequestError, match="is a file"):
        notebook(["--dir", str(tmp_path / "file")])
    with pytest.raises(RequestError, match="--copy: starts no JupyterLab"):
        notebook(["--copy", "--port", "9000"])
    with pytest.raises(RequestError, match="--base-url me: must begin with /; use --base-url /me"):
        notebook(["--base-url", "me"])
    with pytest.raises(RequestError, match="must be a port"):
        notebook(["--port", "0"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"JupyterLab is not installed; pip install"):
        notebook(["--dir", str(tmp_path)])
