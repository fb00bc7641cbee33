"""The GPUs that a run in this environment uses: those that nvidia-smi lists, except those that CUDA_VISIBLE_DEVICES hides.

Imports no torch: a command calls this before it starts anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
INDEX, UUID = "index", "uuid"


def ask(*fields: str, seconds: float = 20) -> list[dict[str, str]] | None:
    """These fields of nvidia-smi ("memory.total", in MiB) for each GPU, hidden GPUs included; None without nvidia-smi. Raises OSError,
    with nvidia-smi's reason, when it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"nvidia-smi did not answer in {seconds:g} s") from None
    if done.returncode:
        output = (done.stdout + done.stderr).strip()
        raise OSError(output.splitlines()[0] if output else "nvidia-smi failed")
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=False)) for row in rows]


def select(gpus: Sequence[dict[str, str]], setting: str | None) -> list[dict[str, str]]:
    """The GPUs that CUDA shows, and their order, when CUDA_VISIBLE_DEVICES is `setting`; None: it is not set.

    gpus: all of them, with `index` and `uuid`. The setting names GPUs by index or by the beginning of a UUID; CUDA ignores everything
    from the first invalid name on.
    """
    if setting is None:
        return list(gpus)
    selected: list[dict[str, str]] = []
    for name in (word.strip() for word in setting.split(",")):
        if name.startswith("MIG-"):
            # a slice of a GPU, which this query of nvidia-smi does not list
            matches = list(gpus[:1])
        else:
            matches = [gpu for gpu in gpus if name and (name == gpu[INDEX] or (name.startswith("GPU-") and gpu[UUID].startswith(name)))]
        if len(matches) != 1:
            break
        selected += matches
    return selected


def visible(*fields: str) -> list[dict[str, str]]:
    """`ask` for the GPUs that a run uses; empty where nvidia-smi is missing or fails."""
    try:
        return select(ask(INDEX, UUID, *fields) or [], os.environ.get(VISIBLE))
    except OSError:
        return []


def gpu_memory() -> float | None:
    """GiB of the smallest GPU that a run uses here; None without a GPU."""
    try:
        return min((float(gpu["memory.total"]) for gpu in visible("memory.total")), default=0.0) / 1024 or None
    except (KeyError, ValueError):
        return None
