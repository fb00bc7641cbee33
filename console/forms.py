"""What a form of options holds, the console's or a notebook's: its fields as text, the command, the rules, what disk and machine say.

Needs no toolkit: the screens and the widgets are drawn from it.
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

from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import is_url
from qwen3vl_core.formats import quantity
from qwen3vl_core.layout import gpus
from qwen3vl_core.layout.torchrun_command import model_ranks
from qwen3vl_core.layout.verdict import Verdict, judge
from qwen3vl_core.options import COMMANDS, Option, missing_values, option_problems, options_of, shell_line, to_arguments
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.problems import Problem, unique

INPUTS = ("model", "checkpoint", "dataset", "pictures", "captions")
"""Kinds of paths that a command reads."""
OUTPUTS = ("target", "to")
"""Options whose folder a command fills."""


def text_of(option: Option, value: Any) -> str | bool:
    """A value as a form's field holds it."""
    if option.type is bool:
        return bool(value)
    if value is None:
        return ""
    if option.many:
        return shell_line([str(v) for v in (value if isinstance(value, list | tuple) else [value])])
    return str(value)


def value_of(option: Option, text: str | bool) -> Any:
    """A field's content as a value: empty is the default. Raises RequestError."""
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
    """One line: what it is, its unit, range, choices (unless its field shows them) and default."""
    parts = [option.help]
    if option.choices and choices:
        parts.append("one of " + ", ".join(option.choices))
    low, high = option.minimum, option.maximum
    unit = f" {option.unit}" if option.unit else ""
    if low is not None and high is not None:
        parts.append(f"{low:g} to {high:g}{unit}")
    elif low is not None:
        parts.append(f"at least {low:g}{unit}")
    elif high is not None:
        parts.append(f"at most {high:g}{unit}")
    elif unit:
        parts.append(f"in{unit}")
    if option.many:
        parts.append("several, separated by blanks")
    if option.required:
        parts.append("required")
    elif option.type is bool:
        parts.append(f"default {'on' if option.default else 'off'}")
    elif option.default not in (None, "", []):
        parts.append(f"default {option.default}")
    return " · ".join(parts)


@dataclass(frozen=True)
class Plan:
    """A form's content."""

    kind: str
    command: str
    """What a person would type; leaves out what cannot be understood yet."""
    options: Any = None
    """The options object; None while a rule is broken."""
    problems: tuple[Problem, ...] = ()
    """Every broken rule that needs neither disk nor machine."""
    partial: Any = None
    """The options as far as they can be understood; what cannot is as by default."""
    understood: bool = True
    """Whether every field holds a value of its kind."""

    @property
    def problem(self) -> str:
        """The first of them, as a line."""
        return str(self.problems[0]) if self.problems else ""


@dataclass(frozen=True)
class FormCheck:
    """What the disk and the machine say about a plan."""

    problems: tuple[Problem, ...] = ()
    note: str = ""
    verdict: Verdict | None = None
    """Of a finetune."""


def read_plan(kind: str, texts: Mapping[str, str | bool]) -> Plan:
    """What a form of this kind says. Needs neither disk nor machine."""
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
    """GiB of this machine's first GPU, as they were when first asked; None: there is none."""
    return gpus.gpu_memory()


def look_here(kind: str, options: Any) -> FormCheck:
    """What the disk and the machine say. Blocking; never raises for a bad plan."""
    try:
        if kind == "finetune":
            return _look_at_finetune(options)
        problems, note = _look_at_paths(options)
        return FormCheck(tuple(problems), note)
    except RequestError as error:
        return FormCheck(error.problems)
    except OSError as error:
        return FormCheck((Problem("file-error", rule={"file": str(error.filename), "reason": str(error.strerror)}),))


def check_here(kind: str, options: Any) -> tuple[str, str]:
    """(the first broken rule as a line or empty, a note): what the disk and the machine say. Blocking; never raises for a bad plan."""
    check = look_here(kind, options)
    return (str(check.problems[0]) if check.problems else ""), ("" if check.problems else check.note)


def _look_at_finetune(options: Any) -> FormCheck:
    verdict = judge(options, PlanOptions(memory=gpu_memory() or 0.0))
    if verdict.problems:
        return FormCheck(verdict.problems, "", verdict)
    count = verdict.gpus
    parts = f"TP {options.tp} · PP {options.pp} · CP {options.cp} · DP {count // model_ranks(options)}"
    return FormCheck((), f"{parts} = {count} process{'es' if count > 1 else ''}", verdict)


def _look_at_paths(options: Any) -> tuple[list[Problem], str]:
    """(broken rules, a note) of a command that reads and writes: what it reads is there, where it writes is free."""
    problems: list[Problem] = []
    read, written = 0, None
    for option in options_of(type(options)):
        value = getattr(options, option.name)
        if not value:
            continue
        if option.path in INPUTS or (option.path == "file" and option.required):
            for path in value if option.many else [value]:
                if is_url(path):
                    continue
                whole = Path(path).expanduser()
                if not whole.exists():
                    problems.append(option.problem("no-such-path", path))
                elif option.name == "source" and whole.is_dir():
                    read += sum(each.stat().st_size for each in itertools.islice(whole.glob("*.safetensors"), 1000))
        elif option.name in OUTPUTS:
            written = Path(value).expanduser()
            full = written.is_dir() and any(written.iterdir())
            if full and getattr(options, "overwrite", True) is False:
                problems.append(option.problem("target-taken", value, None, {"overwrite": True}))
    if written is None:
        return problems, ""
    place = next((p for p in (written, *written.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if read > free:
        rule = {"folder": str(written), "needed": quantity(read, "B"), "free": quantity(free, "B")}
        problems.append(Problem("disk-full", rule=rule))
    return problems, (f"{quantity(read, 'B')} to read, " if read else "") + f"{quantity(free, 'B')} free where it writes"
