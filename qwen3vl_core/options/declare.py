"""How an option is declared: once, and rendered as command line, form, plan file and documentation.

An options class is a dataclass whose fields are made by `option(...)`. Everything that shows or reads options walks
`options_of(cls)`; nothing else knows their names. Imports no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
import types
import typing
from dataclasses import MISSING, dataclass
from typing import Any

from qwen3vl_core.errors import RequestError


@dataclass(frozen=True)
class Option:
    """One declared option, as `options_of` gives it."""

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
    """The value is a list."""
    positional: bool = False
    aliases: tuple[str, ...] = ()
    short: str = ""

    @property
    def flag(self) -> str:
        """`global_batch_size` -> `--global-batch-size`, `from_` -> `--from`; a positional one keeps its bare name."""
        return self.name if self.positional else "--" + self.name.rstrip("_").replace("_", "-")

    def parse(self, text: str) -> Any:
        """A value from what a person typed. Raises RequestError that names the option, the value and the rule."""
        try:
            if self.type is bool:
                words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
                value = words[text.strip().lower()]
            else:
                value = self.type(text)
        except (KeyError, ValueError):
            kinds = {int: "a whole number", float: "a number", bool: "yes or no"}
            raise RequestError(f"{self.flag} {text}: must be {kinds.get(self.type, 'text')}") from None
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Raises RequestError when one value breaks this option's own rule, with the nearest value that would do."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise RequestError(f"{self.flag} {value}: must be one of {', '.join(self.choices)}")
        if self.type in (int, float) and not isinstance(value, bool):
            if value != value:
                raise RequestError(f"{self.flag} {value}: must be a number")
            unit = f" {self.unit}" if self.unit else ""
            if self.minimum is not None and value < self.minimum:
                raise RequestError(f"{self.flag} {value}: must be at least {self.minimum:g}{unit}; use {self.minimum:g}")
            if self.maximum is not None and value > self.maximum:
                raise RequestError(f"{self.flag} {value}: must be at most {self.maximum:g}{unit}; use {self.maximum:g}")


def option(default: Any = MISSING, *, help: str, group: str, **rules: Any) -> Any:
    """A dataclass field that carries its declaration. Without a default the option is required."""
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
    # forms, lists of runs and commands ask for them all the time
    hints = typing.get_type_hints(cls)
    found = []
    for item in dataclasses.fields(cls):
        kind, many = _plain_type(hints[item.name])
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        found.append(Option(name=item.name, type=kind, default=default, **{"many": many, **item.metadata}))
    return tuple(found)


class _Parse(argparse.Action):
    """Puts parsed values in the namespace, so that a RequestError keeps its own words."""

    def __init__(self, *args: Any, declared: Option, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.declared = declared

    def __call__(self, parser, namespace, values, flag=None) -> None:
        if self.declared.many:
            setattr(namespace, self.dest, [self.declared.parse(v) for v in values])
        else:
            setattr(namespace, self.dest, self.declared.parse(values))


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Render an options class as arguments of `parser`, grouped, each with its help, range and default."""
    groups: dict[str, Any] = {}
    for o in options_of(cls):
        if o.group not in groups:
            groups[o.group] = parser.add_argument_group(o.group)
        group = groups[o.group]
        notes = []
        if o.unit:
            notes.append(o.unit)
        if not o.required and o.default not in (None, [], False, "") and not o.positional:
            notes.append(f"default {o.default}")
        text = o.help + (f" ({', '.join(map(str, notes))})" if notes else "")
        text = text.replace("%", "%%")
        metavar = o.path.upper() if o.path else {int: "N", float: "X"}.get(o.type, "TEXT")
        if o.choices:
            metavar = "{" + ",".join(o.choices) + "}"
        common: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        names = [o.flag, *o.aliases, *([o.short] if o.short else [])]
        if o.positional:
            group.add_argument(
                o.name,
                action=_Parse,
                declared=o,
                metavar=o.name.upper(),
                nargs=None if o.required else "?",
                help=text,
                default=argparse.SUPPRESS,
            )
        elif o.type is bool:
            group.add_argument(*names, dest=o.name, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(*names, dest=o.name, action=_Parse, declared=o, metavar=metavar, nargs="+" if o.many else None, **common)


def from_mapping(cls: type, values: dict[str, Any], *, partial: bool = False) -> Any:
    """An options object from a plan's mapping. Raises RequestError for unknown names, wrong types and missing values.

    partial: required ones may be missing, for a plan that is looked at and not started.
    """
    declared = {o.name: o for o in options_of(cls)}
    unknown = [name for name in values if name not in declared]
    if unknown:
        raise RequestError(f"{unknown[0]}: no such option; there are {', '.join(declared)}")
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        o = declared[name]
        if o.many:
            items = value if isinstance(value, list) else [value]
            parsed[name] = [o.parse(str(v)) for v in items]
        elif value is None:
            parsed[name] = None
        else:
            parsed[name] = value if o.type is bool and isinstance(value, bool) else o.parse(str(value))
    made = cls(**parsed)
    for o in declared.values():
        value = getattr(made, o.name)
        if o.required and not partial and value in (None, "", []):
            raise RequestError(f"{o.flag}: required; {o.help[0].lower()}{o.help[1:]}")
    return made


def to_mapping(options: Any) -> dict[str, Any]:
    """The plan's mapping of an options object: every option, defaults too."""
    return {o.name: getattr(options, o.name) for o in options_of(type(options))}


def to_arguments(options: Any) -> list[str]:
    """The command line that gives this options object: only what differs from the defaults."""
    words: list[str] = []
    trailing: list[str] = []
    for o in options_of(type(options)):
        value = getattr(options, o.name)
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
    """A command as a person may paste it."""
    return shlex.join(words)
