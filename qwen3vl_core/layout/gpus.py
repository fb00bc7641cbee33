"""The GPUs that a run of this environment would get: what nvidia-smi lists, less what CUDA_VISIBLE_DEVICES hides.

Imports no torch: a command looks here before it starts anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
INDEX, UUID = "index", "uuid"


def ask(*fields: str, seconds: float = 20) -> list[dict[str, str]] | None:
    """Each GPU's answers by nvidia-smi's names of them ("memory.total", in MiB), hidden ones too; None where there is no
    nvidia-smi. Raises OSError, with its reason, where it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"nvidia-smi did not answer in {seconds:g} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise OSError(said.splitlines()[0] if said else "nvidia-smi failed")
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=False)) for row in rows]


def chosen(gpus: Sequence[dict[str, str]], wanted: str | None) -> list[dict[str, str]]:
    """The GPUs that CUDA shows of these (with their `index` and `uuid`) when CUDA_VISIBLE_DEVICES is `wanted`: by number, or by
    the beginning of an identifier, in that order, up to the first that names none. None: not set, all."""
    if wanted is None:
        return list(gpus)
    found: list[dict[str, str]] = []
    for name in (word.strip() for word in wanted.split(",")):
        if name.startswith("MIG-"):
            # a slice of a GPU, which nvidia-smi does not list by this question
            matches = list(gpus[:1])
        else:
            matches = [gpu for gpu in gpus if name and (name == gpu[INDEX] or (name.startswith("GPU-") and gpu[UUID].startswith(name)))]
        if len(matches) != 1:
            break
        found += matches
    return found


def visible(*fields: str) -> list[dict[str, str]]:
    """`ask` of the GPUs that a run gets; none where nvidia-smi is missing or fails."""
    try:
        return chosen(ask(INDEX, UUID, *fields) or [], os.environ.get(VISIBLE))
    except OSError:
        return []


def gpu_memory() -> float | None:
    """GiB of the smallest GPU that a run gets here; None without one."""
    try:
        return min((float(gpu["memory.total"]) for gpu in visible("memory.total")), default=0.0) / 1024 or None
    except (KeyError, ValueError):
        return None
