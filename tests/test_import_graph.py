"""There are no import cycles: not at the top of modules, inside functions, for types only, or by a name in a string."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.import_statements import import_statements

ROOT = Path(__file__).parent.parent
PACKAGES = ("qwen3vl_core", "console")


def modules(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, Path]:
    """Name -> file of every module."""
    names = {}
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def import_graph(names: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports or names in a string (`import_module("console.web")`, tables of modules).

    `from package import name` is the module of that name where there is one, else the package's own file. A module's packages, whose
    files Python runs first, are not counted: they are empty, or import what their docstring promises.
    """
    graph = {}
    for name, file in names.items():
        found = set()
        for module, imported, is_string in import_statements(file):
            if is_string and "." not in module:
                continue
            inner = {f"{module}.{each}" for each in imported}
            # a package's own file counts where a name is none of its modules
            found |= inner if inner and inner <= names.keys() else inner | {module}
        graph[name] = found & names.keys()
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of modules, each imported by the next; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_there_are_no_import_cycles():
    graph = import_graph(modules(ROOT))
    assert len(graph) > 200 and "console.screens.welcome" in graph["console.app"]
    assert "console.screens.monitor" in graph["console.app"], "modules that are named in a string count"
    assert not circle(graph)


@pytest.mark.parametrize(
    "back",
    [
        "from one.a import value",
        "from one import a",
        "def later():\n    import one.a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from one.a import Value",
        "import importlib\ndef later():\n    return importlib.import_module('one.a')",
    ],
    ids=["at the top", "by its package", "in a function", "for types", "by a string"],
)
def test_every_kind_of_import_cycle_is_detected(tmp_path, back):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.py").write_text("import one.b")
    (tmp_path / "one" / "b.py").write_text("import one.c")
    (tmp_path / "one" / "c.py").write_text("import json")
    assert not circle(import_graph(modules(tmp_path, ("one",))))
    (tmp_path / "one" / "c.py").write_text(back)
    assert set(circle(import_graph(modules(tmp_path, ("one",))))) == {"one.a", "one.b", "one.c"}
