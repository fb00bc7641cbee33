"""Files that a widget writes beside the notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from console.runs.store import Run
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import replaced_file


def write_file(what: str, runs: Sequence[Run], path: Path | str | None, write: Callable[[Path], Any]) -> Path:
    """Write a file about `runs`, whole or not at all, by default beside the notebook and named after the runs.

    what: kind and ending of the file, as in "CSV". write: called with the path to write to. Raises RequestError.
    """
    if not runs:
        raise RequestError(f"{what}: no run selected; choose one")
    target = Path(path or f"runs-{'-'.join(f'{run.number:04d}' for run in runs)}.{what.lower()}").expanduser().absolute()
    try:
        with replaced_file(target) as temporary:
            write(temporary)
    except OSError as error:
        raise RequestError(f"{target}: {error.strerror or error}; choose another path") from None
    return target
