"""The GPUs that a run in this environment uses: those that nvidia-smi lists, except those that CUDA_VISIBLE_DEVICES hides; of these
those that --gpu-ids names. Who uses them.

Imports no torch: a command calls this before it starts anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_core.problems import Problem
from qwen3vl_core.run_record import RUN_VARIABLE

VISIBLE = "CUDA_VISIBLE_DEVICES"
INDEX, UUID = "index", "uuid"
FREE = "free"
"""The value of --gpu-ids that stands for free GPUs."""
NOT_FREE = "gpus-not-free"
"""The code of the problem that too few GPUs are free."""
IDLE_GIB = 1.0
"""A GPU of which less is in use is free: the driver holds some hundred MiB."""
NAMED = 4
"""GPUs in use that a message names."""
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
    return _query("gpu", fields, seconds)


def _query(what: str, fields: Sequence[str], seconds: float) -> list[dict[str, str]] | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
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


def visible(*fields: str, ids: str | None = None) -> list[dict[str, str]]:
    """`ask` for the GPUs that a run with these --gpu-ids uses (None: all that CUDA shows); empty where nvidia-smi is missing or fails."""
    try:
        shown = select(ask(INDEX, UUID, *fields) or [], os.environ.get(VISIBLE))
    except OSError:
        return []
    return select(shown, ids) if ids else shown


@dataclass(frozen=True)
class GpuUse:
    """How much of a GPU's memory is in use, and by whom."""

    index: str
    name: str
    total_gib: float
    used_gib: float
    processes: tuple[int, ...] = ()
    """Ids of the processes that use it, as far as they are known."""
    run: str = ""
    """Id of the run that uses it; empty if it is free, or none of ours does."""

    @property
    def words(self) -> str:
        """`free`, `0007-caption`, or `another process (4711)`."""
        if self.free:
            return FREE
        pids = ", ".join(map(str, self.processes[:3]))
        return self.run or ("another process" + (f" ({pids})" if pids else ""))

    @property
    def free(self) -> bool:
        return self.used_gib < IDLE_GIB

    @property
    def available_gib(self) -> float:
        """GiB that a run would find: all of a free one."""
        return self.total_gib if self.free else max(self.total_gib - self.used_gib, 0.0)


def named(indices: Sequence[str]) -> str:
    """`GPU 3`, `GPUs 4 to 7`, `GPUs 0, 2 and 5`."""
    numbers = [int(index) for index in indices if index.isdecimal()]
    if len(numbers) != len(indices) or len(indices) < 2:
        return f"GPU{'s' if len(indices) > 1 else ''} {', '.join(indices)}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"GPUs {numbers[0]} to {numbers[-1]}"
    return f"GPUs {', '.join(indices[:-1])} and {indices[-1]}"


def run_of(pid: int) -> str:
    """The id of the run that a process belongs to; empty for none, and for a process of somebody else."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = RUN_VARIABLE.encode() + b"="
    value = next((variable[len(name) :] for variable in variables if variable.startswith(name)), b"")
    return Path(value.decode(errors="replace")).name if value else ""


def uses(ids: str | None = None) -> list[GpuUse]:
    """The GPUs that a run with these --gpu-ids gets here, in CUDA's order; empty without one, and where nvidia-smi fails."""
    fields = ("name", "memory.total", "memory.used")
    rows = visible(*fields, ids=ids) or visible("memory.total", ids=ids)
    try:
        apps = (_query("compute-apps", ("gpu_uuid", "pid"), 20) or []) if rows else []
    except OSError:
        apps = []
    gpus = []
    for gpu in rows:
        total, used = _gib(gpu.get("memory.total")), _gib(gpu.get("memory.used"))
        pids = tuple(int(app["pid"]) for app in apps if app.get("gpu_uuid") == gpu[UUID] and app.get("pid", "").isdecimal())
        if total:
            run = next(filter(None, map(run_of, pids)), "")
            gpus.append(GpuUse(gpu[INDEX], gpu.get("name", ""), total, used, pids, run))
    return gpus


def chosen(ids: str | None, processes: int, taken: Collection[str] = ()) -> tuple[str | None, Problem | None]:
    """(--gpu-ids with `free` replaced by indices of free GPUs, what is wrong with it on this machine).

    processes: of the run; 0: one for each GPU, with `free` all free ones. taken: GPUs that are not free for runs that hold them, which
    may not use their memory yet.
    """
    if not ids:
        return None, None
    shown = uses()
    if not shown:
        return None, Problem("gpu-ids-without-gpu", "gpu_ids", ids, remedies=({"gpu_ids": None},))
    known = [gpu.index for gpu in shown]
    free = [gpu.index for gpu in shown if gpu.free and gpu.index not in taken]
    if ids.strip() == FREE:
        if len(free) < max(processes, 1):
            return None, Problem(NOT_FREE, "gpu_ids", ids, {"needed": max(processes, 1), "free": len(free)})
        return ",".join(free[: processes or None]), None
    names = [word.strip() for word in ids.split(",")]
    missing = [name for name in names if name not in known]
    if missing:
        return None, Problem("gpu-ids-unknown", "gpu_ids", ids, {"missing": missing, "known": known})
    if processes > len(names):
        rule = {"count": len(names), "processes": processes}
        return None, Problem("gpu-ids-too-few", "gpu_ids", ids, rule, ({"nproc": len(names)},))
    return ",".join(names), None


def can_wait(queue: str, needed: int) -> bool:
    """Whether a run with this --queue waits for `needed` free GPUs, which this machine has."""
    return queue != "never" and len(uses()) >= needed


def _gib(text: str | None) -> float:
    """MiB as nvidia-smi writes them, in GiB; 0 where it says `[N/A]`."""
    try:
        return float(text or 0) / 1024
    except ValueError:
        return 0.0


def gpu_memory(count: int | None = None, ids: str | None = None, *, free: bool = False) -> float | None:
    """GiB that a run of `count` processes finds on the fullest of its GPUs here (the first ones; None: all of them). None without a GPU.

    free: it waits until they are free."""
    return min((gpu.total_gib if free else gpu.available_gib for gpu in uses(ids)[:count]), default=None)


def in_use(count: int | None = None, ids: str | None = None) -> str:
    """What holds memory of the GPUs that such a run gets, and how to have free ones; empty if they are free."""
    every = uses()
    names = [gpu[INDEX] for gpu in visible(ids=ids)[:count]]
    busy, free = [gpu for gpu in every if gpu.index in names and not gpu.free], [gpu for gpu in every if gpu.free]
    if not busy:
        return ""
    told = ", ".join(f"{gpu.used_gib:.1f} GiB of GPU {gpu.index}" for gpu in busy[:NAMED]) + (", …" if len(busy) > NAMED else "")
    wanted = count or len(names)
    others = (
        f"--gpu-ids {','.join(gpu.index for gpu in free[:wanted])} has free ones" if len(free) >= wanted else "wait until they are free"
    )
    return f"other processes hold {told}; {others}"


def gpu_peak_tflops(ids: str | None = None) -> float | None:
    """Dense bf16 TFLOP/s of the slowest GPU that a run gets here; None without one, or for one that is not in the table."""
    peaks = [peak_flops(gpu.get("name", "")) for gpu in visible("name", ids=ids)]
    return min(peak for peak in peaks if peak) / 1e12 if peaks and all(peaks) else None
