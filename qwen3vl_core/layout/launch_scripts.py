"""Scripts that start a planned finetune: a shell script, a Slurm batch script, a Kubernetes PyTorchJob. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from typing import Any

from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import absolute_path
from qwen3vl_core.layout.torchrun_command import TRAINING_MODULE
from qwen3vl_core.options import FinetuneOptions, options_of, shell_line, to_arguments, to_mapping
from qwen3vl_core.problems import Problem
from qwen3vl_core.run_record import PLAN, TORCHRUN, VERSION

HEADER = "# Made by qwen3vl plan --emit {kind}: {layout}."
PORT = 23456


def absolute_paths(options: FinetuneOptions) -> FinetuneOptions:
    """The options with absolute paths, as a script may run in another folder."""
    changes: dict[str, Any] = {}
    for o in options_of(type(options)):
        value = getattr(options, o.name)
        if o.path and value:
            paths = [absolute_path(v) for v in (value if o.many else [value])]
            changes[o.name] = paths if o.many else paths[0]
    return dataclasses.replace(options, **changes)


def describe(options: FinetuneOptions, gpus: int) -> str:
    """`TP 2 x PP 1 x CP 1 x DP 4 = 8 GPUs`."""
    dp = gpus // (options.tp * options.pp * options.cp)
    return f"TP {options.tp} x PP {options.pp} x CP {options.cp} x DP {dp} = {gpus} GPU{'s' if gpus > 1 else ''}"


def job_name(options: FinetuneOptions) -> str:
    """A name that is valid in Kubernetes and Slurm."""
    return re.sub(r"[^a-z0-9]+", "-", (options.name or "finetune").lower()).strip("-")[:50] or "finetune"


def plan_json(options: FinetuneOptions) -> str:
    """The `plan.json` that training reads."""
    return json.dumps({"v": VERSION, "kind": "finetune", "name": job_name(options), "options": to_mapping(options)}, indent=1)


def _torchrun(options: FinetuneOptions, nodes: str, rank: str, gpus_per_node: int, address: str, port: str) -> str:
    """The last line of a node's script, or with --max-restarts its last lines. port: a shell variable or a number, unquoted.

    torchrun's own restart is off: its workers would join the store of the previous attempt. All nodes fail together, so each uses the
    next port for its next attempt. SIGTERM is passed on; after it nothing is restarted.
    """

    def run(port: str) -> str:
        return (
            f"python -m {TORCHRUN} --nnodes {nodes} --node-rank {rank} --nproc-per-node {gpus_per_node} "
            f'--master-addr {address} --master-port {port} --max-restarts 0 -m {TRAINING_MODULE} "$RUN_DIR"'
        )

    if not options.max_restarts:
        return "exec " + run(f'"{port}"')
    return "\n".join(
        [
            f"port={port} stopped= child=",
            """trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child"' TERM INT""",
            f"for restart in $(seq 0 {options.max_restarts}); do",
            f"  {run('$((port + restart))')} &",
            "  child=$! code=0",
            '  wait "$child" || code=$?',
            "  # a signal ends the wait, not the child",
            '  while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done',
            '  if [ "$code" = 0 ] || [ -n "$stopped" ]; then break; fi',
            f"  sleep {options.restart_wait:g}",
            '  if [ -n "$stopped" ]; then break; fi',
            "done",
            'exit "$code"',
        ]
    )


def _write_plan(options: FinetuneOptions) -> list[str]:
    """Shell lines that write the plan into the run's folder. Every node may run them: all write the same content, atomically."""
    return [
        'mkdir -p "$RUN_DIR"',
        f"cat > \"$RUN_DIR/{PLAN}.$(hostname).$$\" <<'PLAN'",
        plan_json(options),
        "PLAN",
        f'mv "$RUN_DIR/{PLAN}.$(hostname).$$" "$RUN_DIR/{PLAN}"',
    ]


def _run_dir(options: FinetuneOptions) -> str:
    return f'RUN_DIR="${{RUN_DIR:-$HOME/.qwen3vl/runs/{job_name(options)}}}"'


def split_nodes(gpus: int, per_node: int) -> tuple[int, int]:
    """(nodes, GPUs per node). Raises RequestError when the GPUs do not fill all nodes."""
    if gpus <= per_node:
        return 1, gpus
    if gpus % per_node:
        low = gpus // per_node * per_node
        raise RequestError(Problem("nodes-not-whole", "gpus", gpus, {"per_node": per_node}, ({"gpus": low}, {"gpus": low + per_node})))
    return gpus // per_node, per_node


def shell(options: FinetuneOptions, gpus: int, per_node: int) -> str:
    """For one machine: the `qwen3vl finetune` command. For several: a script that every node runs, with the cluster's variables."""
    nodes, gpus_per_node = split_nodes(gpus, per_node)
    lines = ["#!/usr/bin/env bash", HEADER.format(kind="sh", layout=describe(options, gpus))]
    if nodes == 1:
        local = dataclasses.replace(options, env="dsw", nproc=gpus)
        command = shell_line(["qwen3vl", "finetune", *to_arguments(local)])
        return "\n".join([*lines, "set -euo pipefail", f"exec {command} --foreground", ""])
    lines += [
        f"# Every one of the {nodes} nodes runs it; the cluster sets WORLD_SIZE (nodes), RANK (of the node), MASTER_ADDR, MASTER_PORT.",
        "# RUN_DIR, models and data lie on storage that all nodes share; started again, training resumes from its last checkpoint.",
        "set -euo pipefail",
        _run_dir(options),
        *_write_plan(dataclasses.replace(options, env="dsw", nproc=0)),
        _torchrun(options, '"$WORLD_SIZE"', '"$RANK"', gpus_per_node, '"$MASTER_ADDR"', "$MASTER_PORT"),
        "",
    ]
    return "\n".join(lines)


def slurm(options: FinetuneOptions, gpus: int, per_node: int) -> str:
    """A batch script: one task per node, which runs torchrun. Submitted again, it resumes from the last checkpoint."""
    nodes, gpus_per_node = split_nodes(gpus, per_node)
    inner = _torchrun(options, '"$SLURM_NNODES"', '"$SLURM_NODEID"', gpus_per_node, '"$MASTER_ADDR"', "$MASTER_PORT")
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            HEADER.format(kind="slurm", layout=describe(options, gpus)),
            "# RUN_DIR, models and data lie on storage that all nodes share; submitted again, training resumes from its last checkpoint.",
            f"#SBATCH --job-name={job_name(options)}",
            f"#SBATCH --nodes={nodes}",
            "#SBATCH --ntasks-per-node=1",
            f"#SBATCH --gpus-per-node={gpus_per_node}",
            "#SBATCH --output=%x-%j.log",
            "set -euo pipefail",
            "export " + _run_dir(options),
            *_write_plan(dataclasses.replace(options, env="dsw", nproc=0)),
            'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
            "# one port a job, so that two jobs may share a node",
            "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
            "export MASTER_ADDR MASTER_PORT",
            f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(inner)}",
            "",
        ]
    )


def kubernetes(options: FinetuneOptions, gpus: int, per_node: int, *, image: str, claim: str, mount: str) -> str:
    """A ConfigMap with the plan and a PyTorchJob of Kubeflow's training operator, which sets WORLD_SIZE, RANK, MASTER_ADDR and
    MASTER_PORT on every pod."""
    import yaml

    nodes, gpus_per_node = split_nodes(gpus, per_node)
    name = job_name(options)
    run_dir = f"{mount.rstrip('/')}/runs/{name}"
    # the operator may set no address for a single pod
    address, port = '"${MASTER_ADDR:-127.0.0.1}"', f"${{MASTER_PORT:-{PORT}}}"
    script = "\n".join(
        [
            "set -euo pipefail",
            'mkdir -p "$RUN_DIR"',
            f'cp /etc/qwen3vl/{PLAN} "$RUN_DIR/{PLAN}.$HOSTNAME"',
            f'mv "$RUN_DIR/{PLAN}.$HOSTNAME" "$RUN_DIR/{PLAN}"',
            _torchrun(options, '"${WORLD_SIZE:-1}"', '"${RANK:-0}"', gpus_per_node, address, port),
        ]
    )
    pod = {
        "spec": {
            "containers": [
                {
                    "name": "pytorch",  # the operator looks for this name
                    "image": image,
                    "command": ["bash", "-c", script],
                    "env": [{"name": "RUN_DIR", "value": run_dir}],
                    "resources": {"limits": {"nvidia.com/gpu": gpus_per_node}},
                    "volumeMounts": [
                        {"name": "workspace", "mountPath": mount},
                        {"name": "plan", "mountPath": "/etc/qwen3vl"},
                        {"name": "shm", "mountPath": "/dev/shm"},
                    ],
                }
            ],
            "volumes": [
                {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "plan", "configMap": {"name": f"{name}-plan"}},
                # NCCL and the loaders need more than a container's 64 MB
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
            ],
        }
    }

    def replica(count: int) -> dict[str, Any]:
        return {"replicas": count, "restartPolicy": "Never", "template": pod}

    replicas = {"Master": replica(1)} | ({"Worker": replica(nodes - 1)} if nodes > 1 else {})
    documents = [
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-plan"},
            "data": {PLAN: plan_json(dataclasses.replace(options, env="dsw", nproc=0))},
        },
        {
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
            "spec": {"pytorchReplicaSpecs": replicas},
        },
    ]  # fmt: skip

    class Dumper(yaml.SafeDumper):
        """Repeats the pod in both replicas instead of using an alias, and writes multi-line strings as blocks."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_representer(
        str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
    )
    comment = [
        HEADER.format(kind="k8s", layout=describe(options, gpus)),
        f"# Model and data lie under {mount}, on the volume of claim {claim!r}; applied again, training resumes from its last checkpoint.",
    ]
    return "\n".join(comment) + "\n" + yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=10**6)
