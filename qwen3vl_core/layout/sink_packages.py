"""Whether the packages that export a run's curves are installed. Imports no torch, and none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.problems import Problem

NAMES = {"wandb": "Weights & Biases", "swanlab": "SwanLab"}


def sink_problems(options: FinetuneOptions) -> Iterator[Problem]:
    """A problem for each package that an option needs and that is not installed."""
    for package, name in NAMES.items():
        project = getattr(options, package)
        if project and importlib.util.find_spec(package) is None:
            yield Problem("sink-missing", package, project, {"name": name, "package": package}, ({package: None},))
