"""A form rendered from an options class, and what its content means. Nothing here knows the name of an option."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as W

from console.notebook.page import box, escape
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import is_url
from qwen3vl_core.layout.command import process_count
from qwen3vl_core.layout.rules import check_plan
from qwen3vl_core.options import COMMANDS, FinetuneOptions, Option, from_mapping, options_of, shell_line, to_arguments

READ = ("model", "checkpoint", "dataset", "pictures", "captions")
"""Kinds of paths that a command reads."""


def text_of(option: Option, value: Any) -> str | bool:
    """A value as its field holds it."""
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
    """One line: what it is, its choices or range, its unit and default."""
    parts = [option.help]
    if option.choices and choices:
        parts.append("one of " + ", ".join(option.choices))
    bounds = [f"at least {option.minimum:g}"] if option.minimum is not None else []
    bounds += [f"at most {option.maximum:g}"] if option.maximum is not None else []
    if bounds or option.unit:
        parts.append(" ".join(filter(None, [", ".join(bounds), option.unit])))
    if option.many:
        parts.append("several, separated by blanks")
    if option.required:
        parts.append("required")
    elif option.default not in (None, "", [], False):
        parts.append(f"default {option.default}")
    return " · ".join(parts)


def field_of(option: Option, value: str | bool, *, hint: str = "", width: str = "340px", label: str = "170px") -> W.Widget:
    """The widget of an option. Raises RequestError for a value that it cannot hold."""
    layout = W.Layout(width=width)
    common = {"description": option.flag.removeprefix("--"), "style": {"description_width": label}, "tooltip": help_of(option)}
    if option.type is bool:
        return W.Checkbox(value=bool(value), indent=True, layout=layout, **common)
    if option.choices:
        shown = [("any", ""), *((c, c) for c in option.choices)] if option.default is None else [(c, c) for c in option.choices]
        if value not in dict(shown).values():
            raise RequestError(f"{option.flag} {value}: must be one of {', '.join(option.choices)}")
        return W.Dropdown(options=shown, value=value, layout=layout, **common)
    hint = hint or ("required" if option.required else "" if option.default in (None, "", []) else str(option.default))
    return W.Text(value=str(value), placeholder=hint, layout=layout, **common)


@dataclass(frozen=True)
class Plan:
    """What a form says."""

    kind: str
    command: str
    """What a person would type; leaves out what cannot be understood yet."""
    options: Any = None
    """The options object; None while a rule is broken."""
    problem: str = ""
    """The first broken rule, in one line."""
    draft: Any = None
    """The options object as far as it goes, also while a rule between options is broken; None while a field is not understood."""


def read_plan(kind: str, texts: Mapping[str, str | bool]) -> Plan:
    """The rules that need neither disk nor machine."""
    cls = COMMANDS[kind]
    values, problem = {}, ""
    for option in options_of(cls):
        try:
            values[option.name] = value_of(option, texts[option.name])
        except RequestError as error:
            problem = problem or str(error)
    draft = cls(**values)
    command = shell_line(["qwen3vl", kind, *to_arguments(draft)])
    if problem:
        return Plan(kind, command, None, problem)
    try:
        options = from_mapping(cls, values)
        check = getattr(options, "check", None)
        if callable(check):  # prepare has an option of that name
            check()
    except RequestError as error:
        return Plan(kind, command, None, str(error), draft)
    return Plan(kind, command, options, "", draft)


def check_here(options: Any) -> str:
    """What the disk and the machine say to a plan whose own rules hold; gives a note. Blocking. Raises RequestError."""
    if isinstance(options, FinetuneOptions):
        count = process_count(options)
        check_plan(options, count)
        model = options.tp * options.pp * options.cp
        many = "processes" if count > 1 else "process"
        return f"TP {options.tp} · PP {options.pp} · CP {options.cp} · DP {count // model} = {count} {many}"
    for option in options_of(type(options)):
        value = getattr(options, option.name)
        if value and (option.path in READ or (option.path == "file" and option.required)):
            for path in value if option.many else [value]:
                if not is_url(path) and not Path(path).expanduser().exists():
                    raise RequestError(f"{option.flag} {path}: no such file or folder; correct the path")
    return "every rule holds"


def verdict(options: Any) -> tuple[bool, str]:
    """(whether it may start, the note or the broken rule) of `check_here`."""
    try:
        return True, check_here(options)
    except (RequestError, WorkError) as error:
        return False, str(error)
    except OSError as error:
        return False, f"{error.filename}: {error.strerror}; choose a place you may read"


class Form(W.Tab):
    """The fields of an options class, one tab a group; `changed` is called when a field holds something else."""

    def __init__(self, cls: type, values: Mapping[str, Any], changed: Callable[[], None]) -> None:
        self.cls, self._changed = cls, changed
        self.options = {o.name: o for o in options_of(cls)}
        unknown = [name for name in values if name not in self.options]
        if unknown:
            raise RequestError(f"{unknown[0]}: no such option; there are {', '.join(self.options)}")
        self.begin = {name: text_of(o, values.get(name, o.default)) for name, o in self.options.items()}
        self.fields: dict[str, W.Widget] = {name: self._field(o) for name, o in self.options.items()}
        """The widget of each option, by name."""
        self.groups = list(dict.fromkeys(o.group for o in self.options.values()))
        boxes = [W.VBox([self._row(o) for o in self.options.values() if o.group == group]) for group in self.groups]
        self._quiet = False
        super().__init__(children=boxes, titles=self._titles())
        for field in self.fields.values():
            field.observe(self._edited, names="value")

    def _field(self, option: Option) -> W.Widget:
        wide = "560px" if (option.path or option.type is str) and not option.choices else "340px"
        return field_of(option, self.begin[option.name], width=wide)

    def _row(self, option: Option) -> W.Widget:
        # a menu shows its choices itself
        text = f'<div class="dim" style="line-height:1.3">{escape(help_of(option, choices=False))}</div>'
        note = W.HTML(box(text), layout=W.Layout(flex="1 1 0%", min_width="0", margin="4px 0 0 8px"))
        return W.HBox([self.fields[option.name], note])

    def _titles(self) -> list[str]:
        """Names of the groups, with a dot where an option differs from its default."""
        differs = {o.group for name, o in self.options.items() if self.fields[name].value != text_of(o, o.default)}
        return [f"{group} •" if group in differs else group for group in self.groups]

    def _edited(self, change: Any) -> None:
        if not self._quiet:
            self._tell()

    def _tell(self) -> None:
        titles = self._titles()
        if list(self.titles) != titles:
            self.titles = titles
        self._changed()

    def texts(self) -> dict[str, str | bool]:
        """What every field holds."""
        return {name: field.value for name, field in self.fields.items()}

    def fill(self, values: Mapping[str, Any]) -> None:
        """Put values into their fields; the others keep what they hold. Raises RequestError."""
        for name, value in values.items():
            option = self.options.get(name)
            if option is None:
                raise RequestError(f"{name}: no such option; there are {', '.join(self.options)}")
            text = text_of(option, value)
            if option.choices and text not in (*option.choices, *([""] if option.default is None else [])):
                raise RequestError(f"{option.flag} {value}: must be one of {', '.join(option.choices)}")
        self._put({name: text_of(self.options[name], value) for name, value in values.items()})

    def reset(self) -> None:
        """Every field as the form began."""
        self._put(self.begin)

    def _put(self, texts: Mapping[str, str | bool]) -> None:
        self._quiet = True
        try:
            for name, text in texts.items():
                self.fields[name].value = text
        finally:
            self._quiet = False
        self._tell()
