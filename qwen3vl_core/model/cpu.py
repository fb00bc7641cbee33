"""Whether this process computes on a CPU, and with how many threads."""

from __future__ import annotations

from qwen3vl_core.model import patches

import torch

ONE_THREAD_PARAMETERS = 20_000_000


def on_cpu() -> bool:
    """True where there is no CUDA device, so that the patches and the local layer spec are in use."""
    return patches.installed() or not torch.cuda.is_available()


def suit_threads(parameters: int) -> int:
    """One thread for a model of few parameters; returns how many there were.

    Its operations are over before a second thread has anything to do, and where other processes want the cores too,
    threads that wait for each other at every operation take ten times as long.
    """
    before = torch.get_num_threads()
    if parameters < ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    return before
