"""What a file imports, read from its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Imported(NamedTuple):
    """An import, or a string that may name a module for `import_module`."""

    module: str
    names: tuple[str, ...] = ()
    """Imported from the module; none for `import module`."""
    string: bool = False


def import_statements(file: Path) -> Iterator[Imported]:
    """Every import of a file, also inside functions and for types alone, and every string in it. No import may be relative."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (Imported(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file}:{node.lineno}: a relative import"
            yield Imported(node.module, tuple(alias.name for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Imported(node.value, string=True)
