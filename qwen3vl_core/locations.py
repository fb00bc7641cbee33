"""Where files are kept that no option names."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_RUNS = Path("~/.qwen3vl/runs")
DEFAULT_DEMO = Path("~/.qwen3vl/demo")
STORE_HELP = "the run store (default $QWEN3VL_RUNS, else ~/.qwen3vl/runs)"


def runs_directory(given: Path | None) -> Path:
    """The store of run records: as given, else `QWEN3VL_RUNS`, else the default, absolute."""
    return Path(given or os.environ.get("QWEN3VL_RUNS") or DEFAULT_RUNS).expanduser().absolute()
