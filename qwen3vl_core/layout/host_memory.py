"""The memory of this machine that a run may use. Imports no torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from qwen3vl_core.formats import GIB

MEMINFO = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of a container: cgroup version 2, and 1."""
ROOM = 0.9
"""Share of the memory that pinned memory may take: the rest is for the processes themselves and for reading data."""


def host_memory_gib() -> float | None:
    """GiB of this machine, or of the container's limit if that is lower; None where neither is known."""
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        limits = [int(line.split()[1]) * 1024 for line in MEMINFO.read_text().splitlines() if line.startswith("MemTotal:")]
    for file in LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):
            # no such file, or "max": no limit
            continue
    return min(limits) / GIB if limits else None
