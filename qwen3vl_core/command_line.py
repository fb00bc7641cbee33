"""The command line, generated from the options. The module that does a command's work is imported when the command runs."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from qwen3vl_core import __version__
from qwen3vl_core.argument_parser import Parser, read_problems
from qwen3vl_core.colour import paint
from qwen3vl_core.entry_points import CONSOLE_COMMANDS, registered
from qwen3vl_core.errors import EXIT_DONE, RequestError
from qwen3vl_core.language import tr
from qwen3vl_core.layout.init_adapter import with_adapter
from qwen3vl_core.layout.resuming import completed
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.locations import DEFAULT_DEMO, DEFAULT_RUNS, runs_directory
from qwen3vl_core.options import (
    COMMANDS,
    FinetuneOptions,
    add_arguments,
    from_mapping,
    missing_values,
    option_problems,
    options_of,
    read_mapping,
    shell_line,
)
from qwen3vl_core.options.planfile import read_plan_file
from qwen3vl_core.options.planning import DoctorOptions, PlanOptions, RecipeOptions
from qwen3vl_core.problems import Problem
from qwen3vl_core.run_record import RUN_VARIABLE, TRACKER

WORK_MODULES = {
    "download": "qwen3vl_core.data.download",
    "prepare": "qwen3vl_core.data.prepare.command",
    "inspect": "qwen3vl_core.checkpoint.inspect",
    "convert": "qwen3vl_core.checkpoint.convert",
    "compare": "qwen3vl_core.caption.compare",
}
HELP = {
    "demo": "the whole loop on drawn pictures with a tiny model",
    "download": "a model or a dataset from ModelScope or Hugging Face",
    "prepare": "pictures and conversations to shards",
    "inspect": "contents and problems of a model, a checkpoint, a run or data",
    "convert": "Hugging Face <-> Megatron torch_dist",
    "plan": "check a finetune: is it valid, does it fit, how long does it take",
    "recipe": "read the values of the published scripts: 24 or 26 of a finetune, 6 or 7 of a conversion",
    "doctor": "check this machine: what is missing, and how to fix it",
    "finetune": "start a training run",
    "compare": "captions of two models side by side",
    "console": "the terminal console (the default)",
    "runs": "list, show, follow, stop and resume runs",
    "notebook": "JupyterLab on the example notebooks",
    "notify": "who is told about runs, and a test message to them",
    "completion": "completion of commands, options and runs for bash, zsh or fish",
}
EPILOGUE = """\
The loop on your own data:
  qwen3vl download model Qwen/Qwen3-VL-4B-Instruct --to Qwen3-VL-4B-Instruct
  qwen3vl prepare captions.json --to data
  qwen3vl convert Qwen3-VL-4B-Instruct base-mcore
  qwen3vl finetune --load base-mcore --train-data data --train-iters 500
  qwen3vl convert ~/.qwen3vl/runs/0001-finetune/checkpoints tuned-hf
  qwen3vl compare --base Qwen3-VL-4B-Instruct --tuned tuned-hf --images pictures/
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line, from the option declarations."""
    parser = Parser(
        prog="qwen3vl", description="Finetune Qwen3-VL on Megatron-Core: prepare, convert, train, watch, compare.",
        epilog=EPILOGUE, allow_abbrev=False, collect=True,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"qwen3vl {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    demo = commands.add_parser("demo", help=HELP["demo"], description=HELP["demo"], allow_abbrev=False)
    demo.add_argument("--dir", type=Path, default=DEFAULT_DEMO, help=tr("workspace of the demo (default {folder})", folder=DEFAULT_DEMO))
    demo.add_argument("--headless", action="store_true", help="run it in this terminal, without the console")
    demo.add_argument("--workspace-only", action="store_true", help="create the workspace and stop")
    for name, cls in COMMANDS.items():
        sub = commands.add_parser(name, help=HELP[name], description=cls.__doc__, allow_abbrev=False)
        add_arguments(sub, cls)
        record = sub.add_argument_group("Run")
        # the published recipe's last value is an output folder
        flags = ("--runs", "--output") if name == "finetune" else ("--runs",)
        record.add_argument(
            *flags,
            type=Path,
            default=None,
            metavar="DIR",
            help=tr("keep a record of this run in DIR (finetune: always, default $QWEN3VL_RUNS or {folder})", folder=DEFAULT_RUNS),
        )
        mode = record.add_mutually_exclusive_group()
        mode.add_argument(
            "--detach",
            action="store_true",
            help="return at once; the run continues without this terminal" + (" (the default)" if name == "finetune" else ""),
        )
        mode.add_argument("--foreground", action="store_true", help="wait and show the run's output; Ctrl-C stops the run")
        if name == "finetune":
            record.add_argument("--json", action="store_true", help="print the started run as JSON: its id, folder and state")
            _add_plan_file(sub)
    plan = commands.add_parser("plan", help=HELP["plan"], description=PlanOptions.__doc__, allow_abbrev=False)
    add_arguments(plan, PlanOptions)
    _add_plan_file(plan)
    add_arguments(plan, FinetuneOptions)
    recipe = commands.add_parser("recipe", help=HELP["recipe"], description=RecipeOptions.__doc__, allow_abbrev=False)
    add_arguments(recipe, RecipeOptions)
    recipe.add_argument("values", nargs="*", metavar="VALUE", help="after --, in the order of the published script")
    doctor = commands.add_parser("doctor", help=HELP["doctor"], description=DoctorOptions.__doc__, allow_abbrev=False)
    add_arguments(doctor, DoctorOptions)
    for name in CONSOLE_COMMANDS:
        commands.add_parser(name, help=HELP[name], add_help=False, allow_abbrev=False)
    return parser


def _add_plan_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        dest="plan_file",
        default=None,
        help="options from a plan file (YAML, or a run's plan.json); options of the command line take precedence",
    )


def _with_plan_file(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the command line over those of its plan file, if it names one."""
    file = values.pop("plan_file", None)
    return values if file is None else {**read_plan_file(FinetuneOptions, file), **values}


def run_planner(name: str, values: dict[str, Any]) -> int:
    """Run one of the commands that only print a report."""
    module = importlib.import_module(f"qwen3vl_core.layout.{name}")
    problems = read_problems(values)
    if name == "plan":
        own = {o.name for o in options_of(PlanOptions)}
        plan, plan_problems = read_mapping(PlanOptions, {k: values.pop(k) for k in list(values) if k in own})
        options, finetune_problems = read_mapping(FinetuneOptions, _with_plan_file(values))
        return module.run(options, plan, [*problems, *plan_problems, *finetune_problems])
    if problems:
        raise RequestError(*problems)
    if name == "recipe":
        words = values.pop("values")
        return module.run(words, from_mapping(RecipeOptions, values))
    return module.run(from_mapping(DoctorOptions, values), runs_directory(Path(values["runs"]) if values.get("runs") else None))


def run_work(name: str, values: dict[str, Any]) -> int:
    """Run one of the commands that do work: in this process, or as a recorded run. Raises RequestError with all problems."""
    runs, detach, foreground = values.pop("runs"), values.pop("detach"), values.pop("foreground")
    as_json = values.pop("json", False) if name == "finetune" else bool(values.get("json")) and name == "prepare"
    problems = read_problems(values)
    if as_json and foreground:
        problems.append(Problem("json-in-foreground", rule={"written": "--json"}))
    options, value_problems = read_mapping(COMMANDS[name], _with_plan_file(values))
    problems += value_problems
    failed = {problem.option for problem in problems}
    problems += [problem for problem in missing_values(options) if problem.option not in failed]
    if name == "finetune" and not problems:
        options = with_adapter(completed(options))
    if name == "finetune":
        # reported here, and not in the log of a run that cannot start
        now = replace(options, queue="never") if foreground and options.queue == "auto" else options
        for caution in judge(now, problems=problems).require_valid().cautions:
            print(f"qwen3vl: warning: {caution.shown}", file=sys.stderr)
    elif problems := [*problems, *option_problems(options)]:
        raise RequestError(*problems)
    if name == "finetune" or detach or runs is not None:
        launch = registered("qwen3vl.launcher", "launch")
        stay = foreground or (name != "finetune" and not detach)
        # the log of a recorded run is for people
        options = replace(options, json=False) if name == "prepare" else options
        return launch(name, options, runs=runs_directory(runs), foreground=stay, as_json=as_json)
    module = WORK_MODULES[name]
    if name == "inspect" and importlib.import_module("qwen3vl_core.data.inspect.command").holds_data(options.path):
        module = "qwen3vl_core.caption.sample_losses" if options.losses else "qwen3vl_core.data.inspect.command"
    _imported(module).run(options)
    if not as_json and sys.stderr.isatty() and RUN_VARIABLE not in os.environ and (following := next_command(name, options)):
        print(paint(f"next: {following}", "dim", sys.stderr), file=sys.stderr)
    return EXIT_DONE


def next_command(name: str, options: Any) -> str:
    """The command that usually follows a successful one; … stands for what it cannot know. Empty for none."""
    if name == "download" and options.kind == "model":
        return shell_line(["qwen3vl", "convert", options.to, options.to.rstrip("/") + "-mcore"])
    if name in ("download", "prepare"):
        return shell_line(["qwen3vl", "inspect", options.to])
    if name == "convert":
        target = Path(options.target).expanduser()
        if (target / "config.json").is_file() and not (target / TRACKER).is_file():
            return f"qwen3vl compare --base … {shell_line(['--tuned', options.target])} --images …"
        return f"qwen3vl finetune {shell_line(['--load', options.target])} --train-data …"
    return ""


def _imported(name: str) -> ModuleType:
    """Import a module that needs torch, without garbage collection, which would take a tenth of the import time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if enabled:
            gc.enable()
