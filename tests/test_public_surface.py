"""The public names of the packages exist, are imported lazily, and are all that the README and the example notebooks use."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SURFACES = ("qwen3vl_core", "console", "console.notebook")
HEAVY = ("torch", "transformers", "megatron", "textual", "pandas", "plotly", "ipywidgets", "numpy")


def snippets() -> list[str]:
    """Python of the README and of the example notebooks."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(file.read_text())["cells"]
        found += [re.sub(r"^[!%].*$", "pass", "".join(c["source"]), flags=re.MULTILINE) for c in cells if c["cell_type"] == "code"]
    return found


def used(code: str) -> set[tuple[str, str]]:
    """(package, name) of the public names that code uses."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module in SURFACES:
            names |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in SURFACES:
            names.add((node.value.id, node.attr))
    return names


def test_the_readme_and_the_notebooks_use_public_names():
    taken = set().union(*map(used, snippets()))
    assert ("qwen3vl_core", "load") in taken and ("console.notebook", "RunMonitor") in taken
    unpromised = {(package, name) for package, name in taken if name not in importlib.import_module(package).__all__}
    assert not unpromised


@pytest.mark.parametrize("package", SURFACES)
def test_public_names_exist_and_are_listed(package):
    module = importlib.import_module(package)
    if package == "console.notebook":
        pytest.importorskip("ipywidgets")
    for name in module.__all__:
        # a package, or what the package itself has
        assert importlib.import_module(f"{package}.{name}") if name == "notebook" else getattr(module, name)
        assert name in dir(module)
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_packages_import_nothing_until_a_name_is_used():
    program = f"import sys, qwen3vl_core, console.notebook\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr
