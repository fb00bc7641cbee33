"""Whether the packages are there by which a run's curves are sent on. Imports no torch, and none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from qwen3vl_core.options import FinetuneOptions

NAMES = {"wandb": "Weights & Biases", "swanlab": "SwanLab"}


def sink_faults(options: FinetuneOptions) -> Iterator[str]:
    """A line for each one that is asked for and not installed."""
    for package, name in NAMES.items():
        project = getattr(options, package)
        if project and importlib.util.find_spec(package) is None:
            yield f"--{package} {project}: {name} is not installed; pip install {package}, or leave --{package} out"
