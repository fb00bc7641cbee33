"""Default locations of files."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_RUNS = Path("~/.qwen3vl/runs")
DEFAULT_DEMO = Path("~/.qwen3vl/demo")
STORE_HELP = "the run store (default $QWEN3VL_RUNS, else ~/.qwen3vl/runs)"


def runs_directory(option: Path | None) -> Path:
    """The absolute path of the run store: the option's value, else `QWEN3VL_RUNS`, else the default."""
    return Path(option or os.environ.get("QWEN3VL_RUNS") or DEFAULT_RUNS).expanduser().absolute()
