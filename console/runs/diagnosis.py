"""Why a run failed, read from its log: the line of the error, and what to try next. No screen."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from console.runs.store import Run
from console.runs.tail import LogTail

RESUMED = "qwen3vl: resumed "
"""How the supervisor begins a further attempt in the log."""
SEARCHED_LINES = 2000
"""Lines at the end of a log that are searched for the error."""


@dataclass(frozen=True)
class Diagnosis:
    """An error that is known."""

    name: str
    title: str
    advice: str
    """What to try next."""
    line: str = ""
    """The log's own line; empty where only the exit code tells."""
    index: int = -1
    """Where it stands among the lines that were looked at."""

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "title": self.title, "line": self.line.strip(), "advice": self.advice}


# the first rule that matches anywhere wins: from the cause that says most to the consequences of others
_RULES: tuple[tuple[str, str, str, str], ...] = (
    ("gpu_memory", r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
     "out of GPU memory",
     "try --recompute full, then a smaller --micro-batch-size or --seq-length, then --distributed-optimizer or a larger --tp; "
     "qwen3vl plan says what each GPU would hold"),
    ("disk", r"No space left on device|Disk quota exceeded|disk is full",
     "the disk is full",
     "delete runs that are not needed (Runs: D says what it frees), keep fewer checkpoints with --keep 2, then resume"),
    ("shared_memory", r"insufficient shared memory|unable to (?:open|mmap) .*shared memory|Bus error.*shm|received signal: SIGBUS",
     "out of shared memory (/dev/shm)",
     "use --num-workers 0, or give the container more: docker run --shm-size 16g"),
    ("host_memory", r"DefaultCPUAllocator: |\bMemoryError\b|Cannot allocate memory|oom-kill|Out of memory: Killed process",
     "out of host memory",
     "use fewer --num-workers, a smaller --seq-length, or a machine with more memory; leave --async-save out, which holds a copy "
     "of the weights"),
    ("port", r"EADDRINUSE|[Aa]ddress already in use|errno: 98\b",
     "the port is taken",
     "resume the run: it is given a free port; with --env dlc let the cluster set another MASTER_PORT"),
    ("driver", r"no kernel image is available|driver version is insufficient|CUDA driver initialization failed|"
               r"forward compatibility was attempted",
     "torch and the GPU's driver do not fit together",
     "qwen3vl doctor names the version that fits and the command that installs it"),
    ("gpu_broken", r"uncorrectable ECC|GPU has fallen off the bus|\bXid\b.*\b(?:48|63|64|74|79|94|95)\b|CUDA error: unknown error",
     "the GPU itself failed",
     "look at nvidia-smi -q -d ECC, take that GPU or machine out, then resume on another"),
    ("device_assert", r"device-side assert|illegal memory access|unspecified launch failure|misaligned address",
     "a kernel on the GPU failed",
     "run once more with CUDA_LAUNCH_BLOCKING=1 to see which operation; a sample with a token outside the vocabulary is the usual cause"),
    ("module", r"ModuleNotFoundError|No module named|ImportError: (?:cannot import|lib)",
     "a package is missing",
     "qwen3vl doctor names the command that installs it"),
    ("nan", r"bad steps in a row",
     "the loss or the gradient norm is NaN or infinite",
     "look at the samples that the line names, try a lower --lr, more --lr-warmup-iters, and --precision bf16 instead of fp16"),
    ("missing", r"FileNotFoundError|[Nn]o such file or (?:directory|folder)|no such folder",
     "a file or folder is not there",
     "was it moved, or is the disk not mounted? clone the run (c) and correct the path that the line names"),
    ("rights", r"PermissionError|[Pp]ermission denied|Read-only file system",
     "not allowed to read or write there",
     "choose a place you may write to, or have its owner change it: ls -ld on the path that the line names"),
    ("nccl_timeout", r"collective operation timeout|Watchdog caught|NCCL.{0,80}[Tt]im(?:ed|e)[ -]?out|"
                     r"[Tt]imed? ?out.{0,60}(?:process group|store|rendezvous)|Socket Timeout|RendezvousTimeoutError|DistStoreError",
     "a collective timed out",
     "find the first rank that failed above: the others only waited for it. When none did: same command on every node? one network "
     "(NCCL_SOCKET_IFNAME)? NCCL_DEBUG=INFO says more"),
    ("nccl", r"ncclSystemError|ncclInternalError|ncclUnhandledCudaError|ncclRemoteError|ncclInvalidUsage|NCCL (?:error|failure)|NCCL WARN",
     "NCCL failed",
     "NCCL_DEBUG=INFO says why; between machines check NCCL_SOCKET_IFNAME and NCCL_IB_DISABLE=1, inside one try NCCL_P2P_DISABLE=1"),
    ("connection", r"Connection refused|ConnectionRefusedError|Name or service not known|Temporary failure in name resolution",
     "another machine or service did not answer",
     "is MASTER_ADDR right, and does the first node's command run? a hub that is not reachable needs a local folder instead"),
)  # fmt: skip
_OWN = re.compile(r"^qwen3vl: (?!asked to |resumed |\d+ process)(?P<text>.+)")
# what an exit code of 128 + signal means, where the log has no error
_SIGNALS = {
    137: ("killed", "killed from outside", "most often the machine ran out of memory (dmesg says so), or the job's time was over; "
                                           "use fewer --num-workers, then resume"),
    139: ("crash", "crashed (segmentation fault)", "qwen3vl doctor checks that torch, Transformer Engine and the driver fit together"),
    135: ("shared_memory", "bus error: out of shared memory", "use --num-workers 0, or give the container more: docker run --shm-size 16g"),
}  # fmt: skip


@functools.cache
def _compiled() -> tuple[re.Pattern[str], dict[str, re.Pattern[str]]]:
    """(any of the rules, each rule's own): made when a run has failed, not before the first frame.

    One search that most lines fail is ten times quicker than fifteen.
    """
    return re.compile("|".join(f"(?:{pattern})" for _, pattern, _, _ in _RULES)), {name: re.compile(p) for name, p, _, _ in _RULES}


def last_attempt(lines: Sequence[str]) -> int:
    """Index of the first line of the last attempt: errors of earlier attempts no longer matter."""
    return next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith(RESUMED)), 0)


def explain(lines: Sequence[str], exit_code: int | None = None) -> Diagnosis | None:
    """Diagnosis of the last attempt's lines, the cause before its consequences; None for an unknown error."""
    begin = last_attempt(lines)
    anything, each = _compiled()
    found: dict[str, int] = {}
    for index in range(begin, len(lines)):
        if anything.search(lines[index]):
            for name, pattern in each.items():
                if pattern.search(lines[index]):
                    found.setdefault(name, index)
                    break
    for name, _, title, advice in _RULES:
        if name in found:
            index = found[name]
            return Diagnosis(name, title, advice, lines[index], index)
    for index in range(len(lines) - 1, begin - 1, -1):
        own = _OWN.match(lines[index])
        if own and exit_code:
            # our own messages hold the rule and the fix already
            return Diagnosis("request", "it says itself what to do", own["text"], lines[index], index)
    if exit_code in _SIGNALS:
        name, title, advice = _SIGNALS[exit_code]
        return Diagnosis(name, title, advice)
    return None


def explain_more(known: Diagnosis | None, new: Sequence[str], exit_code: int | None = None) -> Diagnosis | None:
    """`explain` for a log that has grown by `new` since it gave `known`: only the new lines are searched.

    Of the two diagnoses the cause wins over its consequences.
    """
    found = explain(new, exit_code)
    if known is None or any(line.startswith(RESUMED) for line in new):
        return found
    ranks = {name: rank for rank, (name, *_) in enumerate(_RULES)}

    def rank(diagnosis: Diagnosis | None) -> tuple[int, bool]:
        return (len(ranks) + 1, True) if diagnosis is None else (ranks.get(diagnosis.name, len(ranks)), not diagnosis.line)

    # of the same kind the first is the cause; of our own errors the last one ended the run
    return found if rank(found) < rank(known) or (found is not None and found.line and found.name == known.name == "request") else known


def diagnose(run: Run) -> Diagnosis | None:
    """Why a failed or lost run ended, where its log or its exit code tells."""
    state = run.state
    if state["status"] not in ("failed", "lost"):
        return None
    tail = LogTail(run.log, lines=SEARCHED_LINES)
    lines = [*tail.read(), *filter(None, [tail.partial])]
    code = state.get("exit_code")
    return explain(lines, code if isinstance(code, int) else None)
