"""The GPUs that a run in this environment gets: those nvidia-smi lists, without those CUDA_VISIBLE_DEVICES hides.

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
        output = (done.stdout + done.stderr).strip()
        raise OSError(output.splitlines()[0] if output else "nvidia-smi failed")
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=False)) for row in rows]


def chosen(gpus: Sequence[dict[str, str]], setting: str | None) -> list[dict[str, str]]:
    """The GPUs that CUDA shows of these (with their `index` and `uuid`) when CUDA_VISIBLE_DEVICES is `setting`: by number, or by
    the beginning of an identifier, in that order, up to the first that names none. None: not set, all."""
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
