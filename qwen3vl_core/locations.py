"""Where files are by default, and the folder of the runs."""

from __future__ import annotations

import os
from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import filled

DEFAULT_RUNS = Path("~/.qwen3vl/runs")
DEFAULT_DEMO = Path("~/.qwen3vl/demo")
STORE_HELP = "the run store (default $QWEN3VL_RUNS, else ~/.qwen3vl/runs)"


def runs_directory(option: Path | None) -> Path:
    """The absolute path of the run store: the option's value, else `QWEN3VL_RUNS`, else the default."""
    return Path(option or os.environ.get("QWEN3VL_RUNS") or DEFAULT_RUNS).expanduser().absolute()


def store_folder(root: Path | str) -> Path:
    """The folder of a run store, which need not exist yet. Raises RequestError when it is a file."""
    root = Path(root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise RequestError(filled("--runs {}: is a file; choose a folder", root))
    return root
