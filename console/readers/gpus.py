"""The GPUs of this machine as the console shows them: free, used, and by whom. Blocking; imports no Textual."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3vl_core.layout import gpus
from qwen3vl_core.layout.gpus import GpuUse
from qwen3vl_core.run_record import RUN_VARIABLE


@dataclass(frozen=True)
class GpuLine:
    """One GPU and who uses it."""

    use: GpuUse
    run: str = ""
    """Id of the run that uses it; empty if it is free, or none of ours does."""

    @property
    def words(self) -> str:
        """`free`, `0007-caption`, or `another process (4711)`."""
        if self.use.free:
            return "free"
        pids = ", ".join(map(str, self.use.processes[:3]))
        return self.run or ("another process" + (f" ({pids})" if pids else ""))


def run_of(pid: int) -> str:
    """The id of the run that a process belongs to; empty for none, and for a process of somebody else."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = RUN_VARIABLE.encode() + b"="
    found = next((value[len(name) :] for value in variables if value.startswith(name)), b"")
    return Path(found.decode(errors="replace")).name if found else ""


def look() -> tuple[GpuLine, ...]:
    """Each GPU that a run would get here; empty without one."""
    return tuple(GpuLine(use, next(filter(None, map(run_of, use.processes)), "")) for use in gpus.uses())
