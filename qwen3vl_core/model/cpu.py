"""Whether this process computes on a CPU, and with how many threads."""

from __future__ import annotations

from qwen3vl_core.model import patches

import torch

ONE_THREAD_PARAMETERS = 20_000_000


def on_cpu() -> bool:
    """True without a CUDA device: the patches and the local layer spec are then in use."""
    return patches.installed() or not torch.cuda.is_available()


def suit_threads(parameters: int) -> int:
    """Use one thread for a small model; returns the previous number of threads.

    Its operations are too short to split over threads, and when other processes compete for the cores, synchronizing threads
    at every operation takes ten times as long.
    """
    before = torch.get_num_threads()
    if parameters < ONE_THREAD_PARAMETERS:
        torch.set_num_threads(1)
    return before
