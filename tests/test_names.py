"""Class names are unique."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_class_name_is_used_once():
    """In both packages, including nested classes; a leading underscore does not make another name."""
    found = defaultdict(list)
    for file in [*(ROOT / "qwen3vl_core").rglob("*.py"), *(ROOT / "console").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert len(found) > 250
    assert not {name: places for name, places in found.items() if len(places) > 1}
