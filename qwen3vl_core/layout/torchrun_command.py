"""The exact command that starts a finetune's processes. Imports no torch."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.layout.gpus import visible
from qwen3vl_core.options import FinetuneOptions

TRAINING_MODULE = "qwen3vl_core.training"
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_PORT, TRIED_PORTS = 20_000, 64


def gpu_count() -> int:
    """GPUs that a run gets here; 0 where there is no nvidia-smi."""
    return len(visible())


@dataclass(frozen=True)
class Cluster:
    """The nodes of a job, as the cluster's environment gives them to each node."""

    nodes: int
    rank: int
    """Of this node."""
    gpus: int
    """Of one node."""
    address: str
    port: int

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Cluster:
        """From WORLD_SIZE (nodes), RANK (of this node), MASTER_ADDR, MASTER_PORT and KUBERNETES_CONTAINER_RESOURCE_GPU.

        Raises RequestError that names what is missing or wrong.
        """
        given = os.environ if environment is None else environment
        gpus = given.get("KUBERNETES_CONTAINER_RESOURCE_GPU") or str(gpu_count() or "")
        values = {name: given.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
        values["KUBERNETES_CONTAINER_RESOURCE_GPU"] = gpus
        missing = [name for name, value in values.items() if not value]
        if missing:
            raise RequestError(
                f"--env dlc: {', '.join(missing)} not set; the cluster sets these on every node; on one machine use --env dsw"
            )
        address = values.pop("MASTER_ADDR")
        numbers = {}
        for name, value in values.items():
            if not value.isascii() or not value.isdigit():
                raise RequestError(f"--env dlc: {name}={value}: must be a whole number; the cluster sets it")
            numbers[name] = int(value)
        nodes, rank, port, count = numbers.values()
        if not nodes or rank >= nodes:
            raise RequestError(f"--env dlc: RANK={rank}: must be below WORLD_SIZE={nodes}, the number of nodes; the cluster sets both")
        if not count:
            raise RequestError("--env dlc: KUBERNETES_CONTAINER_RESOURCE_GPU=0: a node needs a GPU; ask the cluster for GPUs")
        if not 0 < port < 65536:
            raise RequestError(f"--env dlc: MASTER_PORT={port}: must be a port from 1 to 65535; the cluster sets it")
        return cls(nodes, rank, count, address, port)


def processes_per_node(options: FinetuneOptions) -> tuple[int, int]:
    """(nodes, processes of each): what was asked for, else one a GPU; without GPUs, the fewest that hold one model.

    Raises RequestError when the processes cannot be divided by tensor x pipeline x context parallel size, or when the
    cluster's environment is not whole.
    """
    model_ranks = options.tp * options.pp * options.cp
    if options.env == "dlc":
        cluster = Cluster.read()
        each = options.nproc or cluster.gpus
        if cluster.nodes * each % model_ranks:
            raise RequestError(
                f"--env dlc: {cluster.nodes} nodes x {each} processes = {cluster.nodes * each}: must be a multiple of "
                f"tp x pp x cp = {options.tp} x {options.pp} x {options.cp} = {model_ranks}; change one of them, or the number of nodes"
            )
        return cluster.nodes, each
    count = options.nproc or max(gpu_count(), 1)
    if not options.nproc and count < model_ranks and not gpu_count():
        count = model_ranks
    if count % model_ranks:
        nearest = max(count // model_ranks, 1) * model_ranks
        raise RequestError(
            f"--nproc {count}: must be a multiple of tp x pp x cp = {options.tp} x {options.pp} x {options.cp} = {model_ranks}; "
            f"use --nproc {nearest}"
        )
    return 1, count


def process_count(options: FinetuneOptions) -> int:
    """Processes of the whole run, on every node. Raises RequestError as `processes_per_node` does."""
    nodes, each = processes_per_node(options)
    return nodes * each


def free_port() -> int:
    """A TCP port that nothing listens on, and that no connection gets by chance in the seconds before this one is listened on: below
    those that the kernel deals out, where there are such."""
    try:
        dealt = int(EPHEMERAL_PORTS.read_text().split()[0])
    except (OSError, ValueError):
        dealt = 32768
    chosen = range(FIRST_PORT, dealt)
    # the kernel's own choice last
    for port in [*random.sample(chosen, min(len(chosen), TRIED_PORTS)), 0]:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise WorkError("no TCP port of this machine is free; end what holds them")


def training_command(options: FinetuneOptions, run_dir: Path) -> list[str]:
    """Words of the command that trains the run in `run_dir`: plain Python for one process, torchrun for several.

    With `--env dlc` the words are this node's: every node of the job runs them with its own rank. Unless
    `--max-restarts` asks for it, torchrun's elastic restart stays off: a run that failed says so and is resumed by a
    person.
    """
    nodes, each = processes_per_node(options)
    if nodes * each == 1 and not options.max_restarts:
        return [sys.executable, "-m", TRAINING_MODULE, str(run_dir)]
    if options.env == "dlc":
        cluster = Cluster.read()
        # an endpoint, which a resume leaves as it is, where it gives `--master-port` of one machine another free port
        where = ["--node-rank", str(cluster.rank), "--rdzv-backend", "static", "--rdzv-endpoint", f"{cluster.address}:{cluster.port}"]
    else:
        where = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(each),
        "--max-restarts", str(options.max_restarts), *where, "-m", TRAINING_MODULE, str(run_dir),
    ]  # fmt: skip
