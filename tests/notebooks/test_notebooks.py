"""The example notebooks are whole, clean, and call what exists."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from qwen3vl_core.cli import build_parser

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_hold_python_and_commands_that_parse(notebook):
    for cell in cells(notebook):
        for command in re.findall(r"^!qwen3vl (.*)$", cell, re.MULTILINE):
            build_parser().parse_args(command.replace("{workspace}", "folder").split())
        ast.parse(re.sub(r"^[!%].*$", "pass", cell, flags=re.MULTILINE))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_outputs(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_there_is_a_notebook():
    assert NOTEBOOKS
