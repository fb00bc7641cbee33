"""The content of a form of options, in the console or a notebook: fields as text, the command, rules, checks of disk and machine.

Imports no UI toolkit: screens and widgets are built on it.
"""

from __future__ import annotations

import functools
import itertools
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.runs import forecast
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import is_url
from qwen3vl_core.formats import quantity
from qwen3vl_core.language import filled, tr
from qwen3vl_core.layout import gpus
from qwen3vl_core.layout.torchrun_command import model_ranks
from qwen3vl_core.layout.verdict import Verdict, judge
from qwen3vl_core.options import COMMANDS, Option, missing_values, option_problems, options_of, shell_line, to_arguments
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problems import Problem, unique

INPUTS = ("model", "checkpoint", "dataset", "pictures", "captions")
"""Kinds of paths that commands read."""
OUTPUTS = ("target", "to")
"""Options that name the folder that a command writes."""


def text_of(option: Option, value: Any) -> str | bool:
    """An option's value as the content of a form field."""
    if option.type is bool:
        return bool(value)
    if value is None:
        return ""
    if option.many:
        return shell_line([str(v) for v in (value if isinstance(value, list | tuple) else [value])])
    return str(value)


def value_of(option: Option, text: str | bool) -> Any:
    """The value of a form field's content; empty means the default. Raises RequestError."""
    if option.type is bool:
        return bool(text)
    text = str(text).strip()
    if not text:
        return option.default
    if not option.many:
        return option.parse(text)
    try:
        words = shlex.split(text)
    except ValueError:
        raise RequestError(option.problem("open-quotation-mark", text)) from None
    return [option.parse(word) for word in words]


def help_of(option: Option, choices: bool = True) -> str:
    """One line: help, choices (if `choices`), range, unit and default."""
    parts = [option.shown_help]
    if option.choices and choices:
        parts.append(tr("one of {choices}", choices=", ".join(option.choices)))
    low, high = option.minimum, option.maximum
    unit = f" {tr(option.unit)}" if option.unit else ""
    if low is not None and high is not None:
        parts.append(tr("{low} to {high}{unit}", low=f"{low:g}", high=f"{high:g}", unit=unit))
    elif low is not None:
        parts.append(tr("at least {low}{unit}", low=f"{low:g}", unit=unit))
    elif high is not None:
        parts.append(tr("at most {high}{unit}", high=f"{high:g}", unit=unit))
    elif unit:
        parts.append(tr("in {unit}", unit=unit.strip()))
    if option.many:
        parts.append(tr("several, separated by spaces"))
    if option.required:
        parts.append(tr("required"))
    elif option.type is bool:
        parts.append(tr("default on" if option.default else "default off"))
    elif option.default not in (None, "", []):
        parts.append(tr("default {value}", value=option.default))
    return " · ".join(parts)


@dataclass(frozen=True)
class Plan:
    """The content of a form."""

    kind: str
    command: str
    """The equivalent command; leaves out fields that cannot be parsed yet."""
    options: Any = None
    """The options object; None while a rule is broken."""
    problems: tuple[Problem, ...] = ()
    """Every broken rule that can be checked without disk and machine."""
    partial: Any = None
    """The options object, with defaults for fields that cannot be parsed."""
    understood: bool = True
    """Whether every field can be parsed."""

    @property
    def problem(self) -> str:
        """The first problem as a line; empty if there is none."""
        return str(self.problems[0]) if self.problems else ""


@dataclass(frozen=True)
class FormCheck:
    """The result of checking a plan against the disk and the machine."""

    problems: tuple[Problem, ...] = ()
    note: str = ""
    verdict: Verdict | None = None
    """For a finetune."""


def read_plan(kind: str, texts: Mapping[str, str | bool]) -> Plan:
    """Parse the content of a form. Uses neither disk nor machine."""
    cls = COMMANDS[kind]
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for option in options_of(cls):
        try:
            values[option.name] = value_of(option, texts.get(option.name, text_of(option, option.default)))
        except RequestError as error:
            problems += error.problems
    partial, understood = cls(**values), not problems
    command = shell_line(["qwen3vl", kind, *to_arguments(partial)])
    failed = {problem.option for problem in problems}
    problems += [problem for problem in missing_values(partial) if problem.option not in failed]
    problems += option_problems(partial)
    return Plan(kind, command, None if problems else partial, unique(problems), partial, understood)


@functools.cache
def gpu_memory() -> float | None:
    """`gpus.gpu_memory`, cached."""
    return gpus.gpu_memory()


@functools.cache
def _peak() -> float:
    return gpus.gpu_peak_tflops() or 0.0


def plan_here(**values: Any) -> PlanOptions:
    """What to plan for: what is free of the GPUs of this machine, unless `values` say how much memory they have or which they are."""
    if values.get("memory") or values.get("gpu"):
        return PlanOptions(**values)
    return PlanOptions(**(values | {"peak_tflops": _peak()}))


def look_here(kind: str, options: Any, store: Path | None = None) -> FormCheck:
    """Check options against the disk and the machine. store: where the run would wait for GPUs. Blocking; never raises for a bad plan."""
    try:
        if kind == "finetune":
            return _look_at_finetune(options, store)
        problems, note = _look_at_paths(options)
        return FormCheck(tuple(problems), note)
    except RequestError as error:
        return FormCheck(error.problems)
    except OSError as error:
        return FormCheck((Problem("file-error", rule={"file": str(error.filename), "reason": str(error.strerror)}),))


def check_here(kind: str, options: Any) -> tuple[str, str]:
    """`look_here` as (the first problem as a line, or empty; a note)."""
    check = look_here(kind, options)
    return (str(check.problems[0]) if check.problems else ""), ("" if check.problems else check.note)


def _look_at_finetune(options: Any, store: Path | None) -> FormCheck:
    verdict = judge(options, plan_here())
    if verdict.problems:
        return FormCheck(verdict.problems, "", verdict)
    count = verdict.gpus
    template = "TP {} · PP {} · CP {} · DP {} = {} processes" if count > 1 else "TP {} · PP {} · CP {} · DP {} = {} process"
    note = filled(template, options.tp, options.pp, options.cp, count // model_ranks(options), count)
    waits = forecast.before_start(store, options) if store is not None else ""
    return FormCheck((), filled("{} · it is queued: {}", note, waits) if waits else note, verdict)


def _look_at_paths(options: Any) -> tuple[list[Problem], str]:
    """(problems, a note): whether the inputs of a command exist, and its target is free and has space."""
    problems: list[Problem] = []
    input_bytes, target = 0, None
    for option in options_of(type(options)):
        value = getattr(options, option.name)
        if not value:
            continue
        if option.path in INPUTS or (option.path == "file" and option.required):
            for path in value if option.many else [value]:
                if is_url(path):
                    continue
                expanded = Path(path).expanduser()
                if not expanded.exists():
                    problems.append(option.problem("no-such-path", path))
                elif option.name == "source" and expanded.is_dir():
                    input_bytes += sum(file.stat().st_size for file in itertools.islice(expanded.glob("*.safetensors"), 1000))
        elif option.name in OUTPUTS:
            target = Path(value).expanduser()
            is_taken = target.is_dir() and any(target.iterdir())
            if is_taken and getattr(options, "overwrite", True) is False:
                problems.append(option.problem("target-taken", value, None, {"overwrite": True}))
    if target is None:
        return problems, ""
    parent = next((p for p in (target, *target.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(parent).free
    if input_bytes > free:
        rule = {"folder": str(target), "needed": quantity(input_bytes, "B"), "free": quantity(free, "B")}
        problems.append(Problem("disk-full", rule=rule))
    room = quantity(free, "B")
    if input_bytes:
        return problems, filled("{} to read, {} free on the target's disk", quantity(input_bytes, "B"), room)
    return problems, filled("{} free on the target's disk", room)
