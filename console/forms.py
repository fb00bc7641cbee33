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

from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import is_url
from qwen3vl_core.formats import quantity
from qwen3vl_core.layout import plan
from qwen3vl_core.layout.rules import check_plan, layout_faults
from qwen3vl_core.layout.torchrun_command import process_count
from qwen3vl_core.options import COMMANDS, Option, from_mapping, options_of, shell_line, to_arguments
from qwen3vl_core.options.planning import PlanOptions

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
        raise RequestError(f"{option.flag} {text}: a quotation mark is not closed; close it or leave it out") from None
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
    problems: tuple[str, ...] = ()
    """Every broken rule that needs neither disk nor machine, one line each."""
    partial: Any = None
    """The options as far as they can be understood; what cannot is as by default."""
    understood: bool = True
    """Whether every field holds a value of its kind."""

    @property
    def problem(self) -> str:
        """The first of them."""
        return self.problems[0] if self.problems else ""


@dataclass(frozen=True)
class Verdict:
    """What the disk and the machine say about a plan."""

    problems: tuple[str, ...] = ()
    note: str = ""
    report: dict[str, Any] | None = None
    """Of a finetune: what `qwen3vl plan --json` says; None where the model is not known."""


def read_plan(kind: str, texts: Mapping[str, str | bool]) -> Plan:
    """What a form of this kind says. Needs neither disk nor machine."""
    cls = COMMANDS[kind]
    values, problems = {}, []
    for option in options_of(cls):
        try:
            values[option.name] = value_of(option, texts.get(option.name, text_of(option, option.default)))
        except RequestError as error:
            problems.append(str(error))
    partial, understood = cls(**values), not problems
    command = shell_line(["qwen3vl", kind, *to_arguments(partial)])
    for option in options_of(cls):
        if option.required and option.name in values and values[option.name] in (None, "", []):
            problems.append(f"{option.flag}: required; {option.help[0].lower()}{option.help[1:]}")
    faults = getattr(partial, "faults", None)
    if callable(faults):
        problems += faults()
    elif not problems:
        try:
            from_mapping(cls, values)
        except RequestError as error:
            problems.append(str(error))
    if problems:
        return Plan(kind, command, None, tuple(dict.fromkeys(problems)), partial, understood)
    return Plan(kind, command, from_mapping(cls, values), (), partial)


@functools.cache
def gpu_memory() -> float | None:
    """GiB of this machine's first GPU, as they were when first asked; None: there is none."""
    return plan.gpu_memory()


def look_here(kind: str, options: Any) -> Verdict:
    """What the disk and the machine say. Blocking; never raises for a bad plan."""
    try:
        if kind == "finetune":
            return _look_at_finetune(options)
        problems, note = _look_at_paths(options)
        return Verdict(tuple(problems), note)
    except (RequestError, WorkError) as error:
        return Verdict((str(error),))
    except OSError as error:
        return Verdict((f"{error.filename}: {error.strerror}",))


def check_here(kind: str, options: Any) -> tuple[str, str]:
    """(the first broken rule or empty, a note): what the disk and the machine say. Blocking; never raises for a bad plan."""
    verdict = look_here(kind, options)
    return (verdict.problems[0] if verdict.problems else ""), ("" if verdict.problems else verdict.note)


def _look_at_finetune(options: Any) -> Verdict:
    problems, count = [], 0
    try:
        count = process_count(options)
    except RequestError as error:
        problems.append(str(error))
    found = None
    if options.load or options.size:
        try:
            planned = PlanOptions(gpus=count or options.tp * options.pp * options.cp, memory=gpu_memory() or 0.0)
            found = plan.report(options, planned)
            problems += found["faults"]
            a = plan.architecture_for(options)
            if "stages" not in found and count and next(layout_faults(options, a, count), None) is None:
                found |= plan.figures(options, a, count, found["memory_gib"], planned)
        except RequestError as error:
            problems.append(str(error))
    if options.load and not problems:
        try:
            check_plan(options, count)
        except RequestError as error:
            problems.append(str(error))
    if problems:
        return Verdict(tuple(dict.fromkeys(problems)), "", found)
    model = options.tp * options.pp * options.cp
    parts = f"TP {options.tp} · PP {options.pp} · CP {options.cp} · DP {count // model}"
    return Verdict((), f"{parts} = {count} process{'es' if count > 1 else ''}", found)


def _look_at_paths(options: Any) -> tuple[list[str], str]:
    """(broken rules, a note) of a command that reads and writes: what it reads is there, where it writes is free."""
    problems: list[str] = []
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
                    problems.append(f"{option.flag} {path}: no such file or folder; correct the path")
                elif option.name == "source" and whole.is_dir():
                    read += sum(each.stat().st_size for each in itertools.islice(whole.glob("*.safetensors"), 1000))
        elif option.name in OUTPUTS:
            written = Path(value).expanduser()
            full = written.is_dir() and any(written.iterdir())
            if full and getattr(options, "overwrite", True) is False:
                problems.append(f"{option.flag} {value}: is there already; choose another folder or add --overwrite")
    if written is None:
        return problems, ""
    place = next((p for p in (written, *written.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if read > free:
        problems.append(f"{written}: {quantity(read, 'B')} to write, {quantity(free, 'B')} free on that disk; choose another folder")
    return problems, (f"{quantity(read, 'B')} to read, " if read else "") + f"{quantity(free, 'B')} free where it writes"
