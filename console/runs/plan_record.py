"""Writes the record of a run before it starts: `plan.json` and `command.sh`. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import qwen3vl_core
from console.runs.state import write_json
from qwen3vl_core.addresses import without_secrets
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import absolute_path, replaced_file
from qwen3vl_core.language import filled
from qwen3vl_core.layout.gpus import FREE, NOT_FREE, VISIBLE, can_wait, chosen
from qwen3vl_core.layout.resuming import change_problems
from qwen3vl_core.layout.torchrun_command import gpu_count, model_ranks, training_command
from qwen3vl_core.options import COMMANDS, FinetuneOptions, from_mapping, options_of, shell_line, to_arguments, to_mapping
from qwen3vl_core.run_record import (
    CHECKPOINTS,
    COMMAND,
    ITERATION,
    PLAN,
    RUN_VARIABLE,
    VERSION,
    PlanRecord,
    checkpoint_step,
    version_problem,
)

PACKAGES = (
    "torch", "megatron-core", "megatron-energon", "transformers", "transformer-engine", "safetensors", "numpy", "pillow",
)  # fmt: skip


def source_root() -> Path | None:
    """The source tree that this package is imported from; None if it is installed in site-packages."""
    root = Path(qwen3vl_core.__file__).absolute().parents[1]
    return None if str(root) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")) else root


def python_path(inherited: str = "") -> str:
    """The PYTHONPATH with which a run's processes find this package from any folder."""
    root = source_root()
    return os.pathsep.join([*([str(root)] if root else []), *filter(None, [inherited])])


def versions() -> dict[str, str]:
    """Installed versions of Python, this package and its dependencies; packages that are not installed are left out."""
    import importlib.metadata  # late: lists of runs do not need it

    result = {"python": platform.python_version(), "qwen3vl": qwen3vl_core.__version__}
    for name in PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def git_commit() -> str | None:
    """Commit of the source tree, with `-dirty` appended when tracked files differ; None outside a git checkout."""
    root, tool = source_root(), shutil.which("git")
    # site-packages inside another project's checkout is not a source tree of this package
    if tool is None or root is None or not (root / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run([tool, "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("-dirty" if ask("status", "--porcelain", "--untracked-files=no") else "")


def with_absolute_paths(options: Any) -> Any:
    """The options with absolute paths, as a run may be resumed, cloned and read from other folders than it was started in."""
    changes = {}
    for o in options_of(type(options)):
        value = getattr(options, o.name)
        if not o.path or value in (None, ""):
            continue
        paths = [absolute_path(v) for v in (value if o.many else [value])]
        changes[o.name] = paths if o.many else paths[0]
    return type(options)(**{o.name: changes.get(o.name, getattr(options, o.name)) for o in options_of(type(options))})


def with_chosen_gpus(options: Any, taken: Collection[str] = ()) -> Any:
    """The options of a finetune with the indices of its GPUs in place of `--gpu-ids free`, unless it is to wait until they are free.
    Raises RequestError.

    taken: GPUs that are not free, as runs hold them or wait for them.
    """
    if not isinstance(options, FinetuneOptions) or not options.gpu_ids:
        return options
    ids, problem = chosen(options.gpu_ids, options.nproc, taken)
    if problem is not None and (problem.code != NOT_FREE or not can_wait(options.queue, max(options.nproc, model_ranks(options)))):
        raise RequestError(problem)
    return dataclasses.replace(options, gpu_ids=ids or FREE)


def with_gpus(run_dir: Path, plan: PlanRecord, ids: str) -> PlanRecord:
    """The plan of a run that waited for any GPUs, with those that it has got; written to its record. Raises OSError."""
    changed: PlanRecord = {**plan, "options": {**plan["options"], "gpu_ids": ids}, "gpus": gpu_count(ids)}
    write_record(run_dir, changed)
    return changed


def child_command(kind: str, options: Any, run_dir: Path) -> list[str]:
    """The command that does the work of a run, as a list of words. Raises RequestError for an invalid layout."""
    if kind == "finetune":
        return training_command(options, run_dir)
    assert kind in COMMANDS, kind
    return [sys.executable, "-m", "qwen3vl_core.cli", kind, *to_arguments(options)]


def check_recordable(values: Mapping[str, Any], words: Iterable[str] = ()) -> None:
    """Raises RequestError for an option that holds a secret, or a word of a command: the record of a run would keep it."""
    entries = [(f"--{name.replace('_', '-')} ", item) for name, value in values.items() for item in _texts(value)]
    for flag, text in [*entries, *(("command: ", word) for word in words)]:
        shown = without_secrets(text)
        if shown != text:
            raise RequestError(
                filled(
                    "{}{}: holds a user, password or token, which the run's record would keep; give it by the tool's own configuration or "
                    "environment variable",
                    flag,
                    shown,
                )
            )


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, str)]


def make_plan(kind: str, name: str, options: dict[str, Any], command: list[str]) -> PlanRecord:
    """The content of `plan.json`. Calls nvidia-smi and git, which takes a fraction of a second."""
    return {
        "v": VERSION,
        "kind": kind,
        "name": name,
        "options": options,
        "command": command,
        "cwd": os.getcwd(),
        "versions": versions(),
        "git": git_commit(),
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": gpu_count(options.get("gpu_ids")),
        "created": time.time(),
        "changed": [],
    }


def change_options(run_dir: Path, plan: PlanRecord, changes: Mapping[str, Any]) -> PlanRecord:
    """Rewrite a finetune's record with other values for some options. Returns the previous record.

    Raises RequestError with every problem: a change that the run's checkpoint does not allow, or options that cannot start here.
    """
    from qwen3vl_core.layout.verdict import judge

    if problem := version_problem(plan):
        raise RequestError(f"run {run_dir.name}: {problem}")
    if plan.get("kind") != "finetune":
        raise RequestError(filled("run {}: not a finetune; only finetunes resume with other options", run_dir.name))
    steps = [step for step in (checkpoint_step(entry.name) for entry in (run_dir / CHECKPOINTS).glob(f"{ITERATION}*")) if step is not None]
    values = plan.get("options")
    if not isinstance(values, dict):
        raise RequestError(filled("run {}: {} holds no options; start a new run", run_dir.name, PLAN))
    options = with_chosen_gpus(with_absolute_paths(from_mapping(FinetuneOptions, values | dict(changes))))
    new = to_mapping(options)
    check_recordable({name: new[name] for name in changes})
    problems = list(change_problems(values, {name: getattr(options, name) for name in changes}, max(steps, default=0)))
    judge(options, problems=problems).require_valid()
    changed = {name: [values.get(name), value] for name, value in new.items() if values.get(name) != value}
    history = [*plan.get("changed", []), {"time": time.time(), "options": changed}]
    command = [str(word) for word in child_command("finetune", options, run_dir)]
    write_record(run_dir, {**plan, "options": new, "command": command, "changed": history})
    return plan


def command_script(run_dir: Path, plan: PlanRecord) -> str:
    """The content of `command.sh`: the exact command with its folder and environment, to run by hand."""
    root = source_root()
    lines = [
        "#!/usr/bin/env bash",
        f"# The command of run {run_dir.name}. By hand it runs here, in this terminal, without a supervisor.",
        "set -euo pipefail",
        shell_line(["cd", plan["cwd"]]),
        "export " + shell_line([f"{RUN_VARIABLE}={run_dir}"]) + " PYTHONUNBUFFERED=1",
        *(["export " + shell_line([f"{VISIBLE}={ids}"])] if (ids := plan["options"].get("gpu_ids")) and ids != FREE else []),
        *(["export " + shell_line([f"PYTHONPATH={root}"]) + '"${PYTHONPATH:+:$PYTHONPATH}"'] if root else []),
        "exec " + shell_line(plan["command"]),
    ]
    return "\n".join(lines) + "\n"


def write_record(run_dir: Path, plan: PlanRecord, final_dir: Path | None = None) -> None:
    """Write both files into `run_dir`, which will be renamed to `final_dir`. Raises OSError."""
    with replaced_file(run_dir / COMMAND, mode=0o755) as script:
        script.write_text(command_script(final_dir or run_dir, plan), encoding="utf-8")
    write_json(run_dir / PLAN, plan)
