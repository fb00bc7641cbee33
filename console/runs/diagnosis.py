"""Why a run failed, read from its log: the line of the error, and what to try next. No screen."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from console.runs.store import Run
from console.runs.tail import LogTail
from qwen3vl_core import log_lines

OWN = "request"
"""Name of the diagnosis that is a message of this program."""
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
    rank: float = 0
    """Of two diagnoses the one with the smaller rank is nearer to the cause."""

    @property
    def says_itself(self) -> bool:
        """Whether it is a message of this program, which holds the rule and the fix already."""
        return self.name == OWN

    @property
    def headline(self) -> str:
        """The cause in one line: a title, or the message of this program."""
        return self.text if self.says_itself else self.title

    @property
    def text(self) -> str:
        """The log's line without what programs alone read of it."""
        return log_lines.text_of(self.line).strip()

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "title": self.title, "line": self.line.strip(), "advice": self.advice}


# (name, pattern, title, advice) of what other programs print; the first rule that matches anywhere wins: from the cause that says most
# to the consequences of others
_RULES: tuple[tuple[str, str, str, str], ...] = (
    ("gpu_memory", r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
     "out of GPU memory",
     "try --recompute full, then a smaller --micro-batch-size or --seq-length, then --distributed-optimizer or a larger --tp; "
     "qwen3vl plan says what each GPU would hold"),
    ("disk", r"No space left on device|Disk quota exceeded",
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
    ("missing", r"FileNotFoundError|[Nn]o such file or directory",
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
# a message of ours is nearer to the cause than the first of these, which other ranks often print because one has ended
_OWN_RANK = next(rank for rank, rule in enumerate(_RULES) if rule[0] == "missing") - 0.5
# only a collective that timed out is a consequence of it: the run may have gone on
_STALLED_RANK = next(rank for rank, rule in enumerate(_RULES) if rule[0] == "nccl_timeout") - 0.25
_UNEXPLAINED_RANK, _SIGNAL_RANK = len(_RULES), len(_RULES) + 1
# messages of ours that have advice of their own: by tag, (name, title, advice)
_TAGGED = {
    log_lines.BAD_STEPS: (
        "nan", "the loss or the gradient norm is NaN or infinite",
        "look at the samples that the line names, try a lower --lr, more --lr-warmup-iters, and --precision bf16 instead of fp16",
    ),
    log_lines.STALLED: (
        "stalled", "no step came any more",
        "the line names the rank that the others waited for, and its Python stack is above in the log; --restart-stalled with "
        "--max-restarts resumes by itself, --distributed-timeout-minutes says how long the others wait",
    ),
    log_lines.BY_SIGNAL: (
        "killed", "a process of the run was ended by a signal",
        "the others only waited for it. After SIGKILL most often the machine ran out of memory (dmesg says so), or the job's time was "
        "over: use fewer --num-workers, then resume; --max-restarts resumes by itself",
    ),
}  # fmt: skip
# what an exit code of 128 + signal means, where the log has no error
_SIGNALS = {
    137: ("killed", "killed from outside", "most often the machine ran out of memory (dmesg says so), or the job's time was over; "
                                           "use fewer --num-workers, then resume"),
    139: ("crash", "crashed (segmentation fault)", "qwen3vl doctor checks that torch, Transformer Engine and the driver fit together"),
    135: ("shared_memory", "bus error: out of shared memory", "use --num-workers 0, or give the container more: docker run --shm-size 16g"),
}  # fmt: skip


@functools.cache
def _compiled() -> tuple[re.Pattern[str], tuple[re.Pattern[str], ...]]:
    """(any of the rules, each rule's own): made when a run has failed, not before the first frame.

    One search that most lines fail is ten times quicker than fifteen.
    """
    return re.compile("|".join(f"(?:{pattern})" for _, pattern, _, _ in _RULES)), tuple(re.compile(p) for _, p, _, _ in _RULES)


def last_attempt(lines: Sequence[str]) -> int:
    """Index of the first line of the last attempt: errors of earlier attempts no longer matter."""
    return next((i for i in range(len(lines) - 1, -1, -1) if _begins_attempt(lines[i])), 0)


def _begins_attempt(line: str) -> bool:
    own = log_lines.read(line)
    return own is not None and own.tag in (log_lines.RESUMED, log_lines.RESTARTED)


def explain(lines: Sequence[str], exit_code: int | None = None) -> Diagnosis | None:
    """Diagnosis of the last attempt's lines, the cause before its consequences; None for an unknown error."""
    anything, each = _compiled()
    best: Diagnosis | None = None
    for index in range(last_attempt(lines), len(lines)):
        line = lines[index]
        own = log_lines.read(line)
        if own is not None:
            if own.tag in log_lines.NO_ERRORS:
                continue
            unexplained = own.tag in (log_lines.UNEXPECTED, log_lines.UNTAGGED)
            if exit_code:
                rank = _UNEXPLAINED_RANK if unexplained else _STALLED_RANK if own.tag == log_lines.STALLED else _OWN_RANK
                best = _nearer(best, _own(own, line, index, rank))
            if not unexplained:
                continue
        if anything.search(line):
            rank = next(rank for rank, pattern in enumerate(each) if pattern.search(line))
            name, _, title, advice = _RULES[rank]
            best = _nearer(best, Diagnosis(name, title, advice, line, index, rank))
    if best is None and exit_code in _SIGNALS:
        return Diagnosis(*_SIGNALS[exit_code], rank=_SIGNAL_RANK)
    return best


def _own(own: log_lines.LogLine, line: str, index: int, rank: float) -> Diagnosis:
    name, title, advice = _TAGGED.get(own.tag, (OWN, "it says itself what to do", own.text))
    return Diagnosis(name, title, advice, line, index, rank)


def _nearer(known: Diagnosis | None, later: Diagnosis | None) -> Diagnosis | None:
    """Which of two is nearer to the cause: of the same kind the first, but the last of our own messages, which ended the run."""
    if known is None or later is None:
        return known or later
    return later if later.rank < known.rank or (later.rank == known.rank and later.rank in (_OWN_RANK, _UNEXPLAINED_RANK)) else known


def explain_more(known: Diagnosis | None, new: Sequence[str], exit_code: int | None = None) -> Diagnosis | None:
    """`explain` for a log that has grown by `new` since it gave `known`: only the new lines are searched.

    Of the two diagnoses the cause wins over its consequences.
    """
    later = explain(new, exit_code)
    return later if any(map(_begins_attempt, new)) else _nearer(known, later)


def diagnose(run: Run) -> Diagnosis | None:
    """Why a failed or lost run ended, where its log or its exit code tells."""
    state = run.state
    if state["status"] not in ("failed", "lost"):
        return None
    tail = LogTail(run.log, lines=SEARCHED_LINES)
    lines = [*tail.read(), *filter(None, [tail.partial])]
    code = state.get("exit_code")
    return explain(lines, code if isinstance(code, int) else None)
