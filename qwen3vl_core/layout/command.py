"""The exact command that starts a finetune's processes. Imports no torch."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions

TRAINING_MODULE = "qwen3vl_core.training"


def gpu_count() -> int:
    """GPUs of this machine as nvidia-smi lists them; 0 where there is no nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def process_count(options: FinetuneOptions) -> int:
    """Processes to start: what was asked for, else one a GPU; without GPUs, the fewest that hold one model.

    Raises RequestError when the processes cannot be divided by tensor x pipeline x context parallel size.
    """
    model_ranks = options.tp * options.pp * options.cp
    count = options.nproc or max(gpu_count(), 1)
    if not options.nproc and count < model_ranks and not gpu_count():
        count = model_ranks
    if count % model_ranks:
        nearest = max(count // model_ranks, 1) * model_ranks
        raise RequestError(
            f"--nproc {count}: must be a multiple of tp x pp x cp = {options.tp} x {options.pp} x {options.cp} = {model_ranks}; "
            f"use --nproc {nearest}"
        )
    return count


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def training_command(options: FinetuneOptions, run_dir: Path) -> list[str]:
    """Words of the command that trains the run in `run_dir`: plain Python for one process, torchrun for several.

    torchrun's elastic restart stays off: a run that failed says so and is resumed by a person.
    """
    count = process_count(options)
    if count == 1:
        return [sys.executable, "-m", TRAINING_MODULE, str(run_dir)]
    return [
        sys.executable, "-m", "torch.distributed.run",
        "--nnodes", "1", "--nproc-per-node", str(count), "--max-restarts", "0",
        "--master-addr", "127.0.0.1", "--master-port", str(free_port()),
        "-m", TRAINING_MODULE, str(run_dir),
    ]  # fmt: skip
