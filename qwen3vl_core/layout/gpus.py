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
# dense bf16 tensor-core FLOP/s by the data sheets, without sparsity
PEAK_BF16 = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "H800": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L20": 119.5e12, "L4": 121e12,
    "A40": 150e12, "A30": 165e12, "A10G": 70e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 6000 Ada": 182e12,
}  # fmt: skip

# GiB that nvidia-smi shows
MEMORY_GIB = {
    "GB200": 185.0, "B200": 179.1, "GH200": 95.6, "H200": 140.4, "H100 PCIe": 79.6, "H100 NVL": 93.6, "H100": 79.6, "H800": 79.6,
    "H20": 95.6, "A100": 80.0, "A800": 80.0, "L40S": 45.0, "L40": 45.0, "L20": 45.0, "L4": 22.5, "A40": 45.0, "A30": 24.0, "A10G": 22.5,
    "A10": 22.5, "RTX 4090": 24.0, "RTX 6000 Ada": 48.0,
}  # fmt: skip
# the cards of 80, 96 and 141 GB that a size of memory alone stands for
USUAL = ("H100", "H20", "H200")


def gpu_of_memory(gib: float) -> str | None:
    """The usual GPU with so much memory, within 2 %; None where none is usual."""
    return next((name for name in USUAL if abs(MEMORY_GIB[name] - gib) <= 0.02 * gib), None)


def peak_flops(gpu: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its device name; None for one that is not in the table."""
    return next((PEAK_BF16[name] for name in sorted(PEAK_BF16, key=len, reverse=True) if name in gpu), None)


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


def gpu_peak_tflops() -> float | None:
    """Dense bf16 TFLOP/s of the slowest GPU that a run gets here; None without one, or for one that is not in the table."""
    peaks = [peak_flops(gpu.get("name", "")) for gpu in visible("name")]
    return min(peak for peak in peaks if peak) / 1e12 if peaks and all(peaks) else None
