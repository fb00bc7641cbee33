"""How an option is declared: once, and rendered as command line, form, plan file and documentation.

An options class is a dataclass whose fields are made by `option(...)`. Everything that shows or reads options walks
`options_of(cls)`; nothing else knows their names. Imports no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shlex
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from qwen3vl_core.argument_parser import PROBLEMS, close_to
from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import keyed, tr
from qwen3vl_core.problems import Problem, flag_of

LONGEST_NAME = 255
"""Bytes of the name of a file or folder."""


@dataclass(frozen=True)
class Option:
    """One declared option, as returned by `options_of`."""

    name: str
    type: type
    default: Any
    help: str
    group: str
    required: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    path: str = ""
    """What kind of path the value is: `model`, `checkpoint`, `dataset`, `file`, `folder`, or empty: no path."""
    many: bool = False
    """Whether the value is a list."""
    positional: bool = False
    aliases: tuple[str, ...] = ()
    short: str = ""
    secret: bool = False
    """Whether its values are addresses that are recorded without their secrets."""

    @property
    def flag(self) -> str:
        """`global_batch_size` -> `--global-batch-size`, `from_` -> `--from`; a positional one keeps its bare name."""
        return self.name if self.positional else flag_of(self.name)

    @property
    def word(self) -> str:
        """What stands beside the flag where the user's language is not English."""
        return keyed(f"{self.help}.word", "")

    @property
    def shown_help(self) -> str:
        """The help in the user's language, with that word before it."""
        text = tr(self.help)
        return text if text.startswith(self.word) else f"{self.word}：{text}"

    def parse(self, text: str) -> Any:
        """Parse the text that a user typed. Raises RequestError that names the option, the value and the rule."""
        try:
            if self.type is bool:
                words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
                value = words[text.strip().lower()]
            else:
                value = self.type(text)
        except (KeyError, ValueError):
            kinds = {int: "a whole number", float: "a number", bool: "yes or no"}
            raise RequestError(self.problem("wrong-type", text, {"kind": kinds.get(self.type, "text")})) from None
        self.check(value)
        return value

    def problem(self, code: str, value: Any = None, rule: Mapping[str, Any] | None = None, *remedies: Mapping[str, Any]) -> Problem:
        """A problem of this option."""
        named = {"written": self.name.upper() if value in (None, "") else f"{self.name.upper()} {value}"} if self.positional else {}
        return Problem(code, self.name, value, {**named, **(rule or {})}, remedies)

    def missing(self) -> Problem:
        """The problem of a required option without a value."""
        return self.problem("required", None, {"help": f"{self.help[0].lower()}{self.help[1:]}"})

    def problem_of(self, value: Any) -> Problem | None:
        """The rule of this option alone that a value breaks, with the nearest valid value."""
        if value is None:
            return None
        if self.path and str(value).startswith("~") and os.path.expanduser(value) == value:
            return self.problem("no-such-user", value, {"user": str(value).partition("/")[0][1:]})
        if self.path and (count := max(len(part.encode("utf-8", "surrogatepass")) for part in str(value).split("/"))) > LONGEST_NAME:
            return self.problem("name-too-long", f"{str(value)[:40]}…", {"count": count, "most": LONGEST_NAME})
        if self.choices and value not in self.choices:
            near = close_to(str(value), self.choices)
            return self.problem("not-a-choice", value, {"choices": list(self.choices)}, *([{self.name: near}] if near else []))
        if self.type in (int, float) and not isinstance(value, bool):
            if value != value:
                return self.problem("not-a-number", str(value))
            unit = f" {self.unit}" if self.unit else ""
            for code, name, bound in (("below-minimum", "minimum", self.minimum), ("above-maximum", "maximum", self.maximum)):
                if bound is not None and (value < bound if name == "minimum" else value > bound):
                    return self.problem(code, value, {name: bound, "unit": unit}, {self.name: self.type(bound)})
        return None

    def check(self, value: Any) -> None:
        """Raises RequestError if a value breaks this option's own rule."""
        if (problem := self.problem_of(value)) is not None:
            raise RequestError(problem)


def option(default: Any = MISSING, *, help: str, group: str, **rules: Any) -> Any:
    """A dataclass field with the declaration of an option. Without a default the option is required."""
    metadata = {"help": help, "group": group, "required": default is MISSING, **rules}
    if default is MISSING:
        return dataclasses.field(default=None, metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _plain_type(hint: Any) -> tuple[type, bool]:
    """`int | None` -> (int, False); `list[str]` -> (str, True)."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def options_of(cls: type) -> list[Option]:
    """The declarations of an options class, in order."""
    return list(_options_of(cls))


@functools.cache
def _options_of(cls: type) -> tuple[Option, ...]:
    # cached: forms, lists of runs and commands call it often
    hints = typing.get_type_hints(cls)
    declarations = []
    for item in dataclasses.fields(cls):
        kind, many = _plain_type(hints[item.name])
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        declarations.append(Option(name=item.name, type=kind, default=default, **{"many": many, **item.metadata}))
    return tuple(declarations)


class _Parse(argparse.Action):
    """Puts parsed values in the namespace, and the problems of those that cannot be parsed, so that all of them can be reported."""

    def __init__(self, *args: Any, declared: Option, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.declared = declared

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        try:
            parsed = [self.declared.parse(v) for v in values] if self.declared.many else self.declared.parse(values)
        except RequestError as error:
            setattr(namespace, PROBLEMS, [*getattr(namespace, PROBLEMS, ()), *error.problems])
        else:
            setattr(namespace, self.dest, parsed)


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add the options of a class as arguments of `parser`, grouped, each with its help, range and default."""
    groups: dict[str, Any] = {}
    for o in options_of(cls):
        if o.group not in groups:
            groups[o.group] = parser.add_argument_group(o.group)
        group = groups[o.group]
        notes = []
        if o.required:
            notes.append(tr("required"))
        if o.unit:
            notes.append(tr(o.unit))
        if not o.required and o.default not in (None, [], False, "") and not o.positional:
            notes.append(tr("default {value}", value=o.default))
        text = o.shown_help + (f" ({', '.join(map(str, notes))})" if notes else "")
        text = text.replace("%", "%%")
        metavar = o.path.upper() if o.path else {int: "N", float: "X"}.get(o.type, "TEXT")
        if o.choices:
            metavar = "{" + ",".join(o.choices) + "}"
        common: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        names = [o.flag, *o.aliases, *([o.short] if o.short else [])]
        if o.positional:
            nargs = None if o.required else "?"
            added = group.add_argument(
                o.name, action=_Parse, declared=o, metavar=o.name.upper(), nargs=nargs, help=text, default=argparse.SUPPRESS
            )
            # `missing_values` says so, with the problems of the other options
            added.required = False
        elif o.type is bool:
            group.add_argument(*names, dest=o.name, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(*names, dest=o.name, action=_Parse, declared=o, metavar=metavar, nargs="+" if o.many else None, **common)


def read_mapping(cls: type, values: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """(an options object, problems of the values): unknown names and values that break an option's own rule are left out, so that
    the other rules can still be checked. Never raises."""
    declared = {o.name: o for o in options_of(cls)}
    problems: list[Problem] = []
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        o = declared.get(name)
        if o is None:
            problems.append(Problem("unknown-option", rule={"name": name, "names": list(declared)}))
            continue
        try:
            if value is None:
                # of an option that is never None, as left out
                parsed[name] = None if o.required else list(o.default) if o.many else o.default
            elif o.many:
                parsed[name] = [o.parse(str(v)) for v in (value if isinstance(value, list) else [value])]
            else:
                parsed[name] = value if o.type is bool and isinstance(value, bool) else o.parse(str(value))
        except RequestError as error:
            problems += error.problems
    return cls(**parsed), problems


def missing_values(options: Any) -> list[Problem]:
    """A problem for each required option that has no value. A finetune's `resume` or `init_adapter` brings its `load`."""
    given = {"load"} if getattr(options, "resume", None) or getattr(options, "init_adapter", None) else set()
    required = [o for o in options_of(type(options)) if o.required and o.name not in given]
    return [o.missing() for o in required if getattr(options, o.name) in (None, "", [])]


def option_problems(options: Any) -> list[Problem]:
    """Every rule of the options that needs neither disk nor machine and is broken: each option's own, then those between them."""
    own = [o.problem_of(v) for o in options_of(type(options)) for v in _items(o, getattr(options, o.name))]
    between = getattr(options, "problems", None)
    return [*filter(None, own), *(between() if callable(between) else ())]


def _items(o: Option, value: Any) -> list[Any]:
    return value if o.many and isinstance(value, list) else [value]


def check_options(options: Any) -> None:
    """Raises RequestError for every rule that `option_problems` finds broken."""
    if problems := option_problems(options):
        raise RequestError(*problems)


def with_remedy(options: Any, remedy: Mapping[str, Any]) -> Any:
    """The options with a problem's remedy applied."""
    defaults = {o.name: o.default for o in options_of(type(options))}
    return dataclasses.replace(options, **{name: defaults[name] if value is None else value for name, value in remedy.items()})


def from_mapping(cls: type, values: Mapping[str, Any], *, partial: bool = False) -> Any:
    """An options object from a plan's mapping. Raises RequestError for unknown names, invalid values and missing ones.

    partial: required ones may be missing, for a plan that is checked and not started.
    """
    options, problems = read_mapping(cls, values)
    if not partial:
        failed = {p.option for p in problems}
        problems += [p for p in missing_values(options) if p.option not in failed]
    if problems:
        raise RequestError(*problems)
    return options


def to_mapping(options: Any) -> dict[str, Any]:
    """The mapping for a plan: every option, including defaults."""
    return {o.name: recorded(o, getattr(options, o.name)) for o in options_of(type(options))}


def recorded(o: Option, value: Any) -> Any:
    """A value as plans and command lines hold it: of a secret one a reference."""
    if not o.secret or not value:
        return value
    from qwen3vl_core import notify  # late: most options have no secrets

    return [notify.reference(text) for text in value] if o.many else notify.reference(value)


def to_arguments(options: Any) -> list[str]:
    """The command line of this options object: only options that differ from their defaults."""
    words: list[str] = []
    trailing: list[str] = []
    for o in options_of(type(options)):
        value = recorded(o, getattr(options, o.name))
        if o.positional:
            if value is not None:
                words.append(str(value))
            continue
        if value == o.default or value is None:
            continue
        if o.type is bool:
            trailing.append(o.flag if value else "--no-" + o.flag[2:])
        elif o.many:
            trailing += [o.flag, *map(str, value)]
        else:
            trailing += [o.flag, str(value)]
    return words + trailing


def shell_line(words: list[str]) -> str:
    """A command quoted for a shell."""
    return shlex.join(words)
