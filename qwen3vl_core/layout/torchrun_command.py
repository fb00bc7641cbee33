"""The command that starts the processes of a finetune. Imports no torch."""

from __future__ import annotations

import math
import os
import random
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.layout.gpus import visible
from qwen3vl_core.options import FinetuneOptions, options_of
from qwen3vl_core.problems import Problem
from qwen3vl_core.run_record import TORCHRUN

TRAINING_MODULE = "qwen3vl_core.training"
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
MOST_PROCESSES = next(o.maximum for o in options_of(FinetuneOptions) if o.name == "nproc") or math.inf
FIRST_PORT, TRIED_PORTS = 20_000, 64


def gpu_count(ids: str | None = None) -> int:
    """The number of GPUs that a run with these --gpu-ids uses here (None: all); 0 without nvidia-smi."""
    return len(visible(ids=ids))


@dataclass(frozen=True)
class Cluster:
    """The nodes of a job, as the cluster's environment gives them to each node."""

    nodes: int
    rank: int
    """The rank of this node."""
    gpus: int
    """Per node."""
    address: str
    port: int

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Cluster:
        """From WORLD_SIZE (nodes), RANK (of this node), MASTER_ADDR, MASTER_PORT and KUBERNETES_CONTAINER_RESOURCE_GPU.

        Raises RequestError that names what is missing or invalid.
        """
        variables = os.environ if environment is None else environment
        gpus = variables.get("KUBERNETES_CONTAINER_RESOURCE_GPU") or str(gpu_count() or "")
        values = {name: variables.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
        values["KUBERNETES_CONTAINER_RESOURCE_GPU"] = gpus
        missing = [name for name, value in values.items() if not value]
        if missing:
            raise RequestError(Problem("cluster-variables-missing", "env", "dlc", {"names": missing}, ({"env": "dsw"},)))
        address = values.pop("MASTER_ADDR")
        numbers = {}
        for name, value in values.items():
            if not value.isascii() or not value.isdigit():
                raise RequestError(Problem("cluster-variable-wrong", "env", "dlc", {"name": name, "text": value}))
            numbers[name] = int(value)
        nodes, rank, port, count = numbers.values()
        if not nodes or rank >= nodes:
            raise RequestError(Problem("cluster-rank", "env", "dlc", {"rank": rank, "nodes": nodes}))
        if not count:
            raise RequestError(Problem("cluster-without-gpus", "env", "dlc"))
        if not 0 < port < 65536:
            raise RequestError(Problem("cluster-port", "env", "dlc", {"port": port}))
        return cls(nodes, rank, count, address, port)


def model_ranks(options: FinetuneOptions) -> int:
    """Ranks that hold one copy of the model."""
    return options.tp * options.pp * options.cp


def requested_processes(options: FinetuneOptions) -> tuple[int, int]:
    """(nodes, processes per node): as requested, else one per GPU; without GPUs, as many as one copy of the model needs.

    Raises RequestError when a variable of the cluster is missing or invalid.
    """
    if options.env == "dlc":
        cluster = Cluster.read()
        return cluster.nodes, options.nproc or cluster.gpus
    return 1, options.nproc or gpu_count(options.gpu_ids) or model_ranks(options)


def processes_problem(options: FinetuneOptions, count: int, asked: str = "") -> Problem:
    """The problem of `count` processes that cannot be divided among copies of the model. asked: the option that set their number, if
    not --nproc."""
    ranks = model_ranks(options)
    rule = {"tp": options.tp, "pp": options.pp, "cp": options.cp, "model": ranks}
    if options.env == "dlc" and not asked:
        return Problem("cluster-processes-not-multiple", "env", "dlc", {"count": count, **rule})
    asked = asked or "nproc"
    enough = max(count // ranks, 1) * ranks
    if asked == "nproc" and enough > MOST_PROCESSES:
        return Problem("processes-not-multiple", asked, count, {**rule, "advice": "use a smaller --tp, --pp or --cp"})
    return Problem("processes-not-multiple", asked, count, {**rule, "advice": ""}, ({asked: enough},))


def processes_per_node(options: FinetuneOptions) -> tuple[int, int]:
    """Like `requested_processes`, but raises RequestError also when they cannot be divided among copies of the model."""
    nodes, each = requested_processes(options)
    if nodes * each % model_ranks(options):
        raise RequestError(processes_problem(options, nodes * each))
    return nodes, each


def process_count(options: FinetuneOptions) -> int:
    """Processes of the whole run, on every node. Raises RequestError as `processes_per_node` does."""
    nodes, each = processes_per_node(options)
    return nodes * each


def free_port() -> int:
    """A free TCP port, outside the kernel's ephemeral range if possible, so that no outgoing connection takes it in the meantime."""
    try:
        first_ephemeral = int(EPHEMERAL_PORTS.read_text().split()[0])
    except (OSError, ValueError):
        first_ephemeral = 32768
    candidates = range(FIRST_PORT, first_ephemeral)
    # the kernel's own choice last
    for port in [*random.sample(candidates, min(len(candidates), TRIED_PORTS)), 0]:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise WorkError("no TCP port of this machine is free; end the processes that use them")


def training_command(options: FinetuneOptions, run_dir: Path) -> list[str]:
    """The command, as a list of words, that trains the run in `run_dir`: plain Python for one process, torchrun for several.

    With `--env dlc` it is the command of this node: every node of the job runs it with its own rank. torchrun's own restart is off:
    its workers would join the store of the previous attempt and fail. The supervisor restarts the whole command.
    """
    nodes, each = processes_per_node(options)
    if nodes * each == 1:
        return [sys.executable, "-m", TRAINING_MODULE, str(run_dir)]
    if options.env == "dlc":
        cluster = Cluster.read()
        # an endpoint instead of --master-port: a resume replaces the port of a --master-port by a free one
        address = ["--node-rank", str(cluster.rank), "--rdzv-backend", "static", "--rdzv-endpoint", f"{cluster.address}:{cluster.port}"]
    else:
        address = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return [
        sys.executable, "-m", TORCHRUN, "--nnodes", str(nodes), "--nproc-per-node", str(each),
        "--max-restarts", "0", *address, "-m", TRAINING_MODULE, str(run_dir),
    ]  # fmt: skip
