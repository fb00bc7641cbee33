"""From what a form holds to options, the command and the first broken rule. Imports no Textual."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.widgets.fields import text_of, value_of
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import is_url
from qwen3vl_core.layout.command import process_count
from qwen3vl_core.layout.rules import check_plan
from qwen3vl_core.options import COMMANDS, from_mapping, options_of, shell_line, to_arguments

KINDS = ("prepare", "convert", "finetune", "compare")
"""Commands that the console starts, in the order of the work."""
INPUTS = ("model", "checkpoint", "dataset", "pictures", "captions")
"""Kinds of paths that a command reads."""


@dataclass(frozen=True)
class Plan:
    """A form's content."""

    kind: str
    command: str
    """What a person would type; leaves out what cannot be understood yet."""
    options: Any = None
    """The options object; None while a rule is broken."""
    problem: str = ""
    """The first broken rule, in one line."""


def read_plan(kind: str, texts: Mapping[str, str | bool]) -> Plan:
    """What a form of this kind says. Needs neither disk nor machine."""
    cls = COMMANDS[kind]
    values, problem = {}, ""
    for option in options_of(cls):
        try:
            values[option.name] = value_of(option, texts.get(option.name, text_of(option, option.default)))
        except RequestError as error:
            problem = problem or str(error)
    command = shell_line(["qwen3vl", kind, *to_arguments(cls(**values))])
    if problem:
        return Plan(kind, command, None, problem)
    try:
        options = from_mapping(cls, values)
        check = getattr(options, "check", None)
        if callable(check):  # prepare has an option of that name
            check()
    except RequestError as error:
        return Plan(kind, command, None, str(error))
    return Plan(kind, command, options)


def check_here(kind: str, options: Any) -> tuple[str, str]:
    """(broken rule or empty, a note): what the disk and the machine say. Blocking; never raises for a bad plan."""
    try:
        if kind == "finetune":
            count = process_count(options)
            check_plan(options, count)
            model = options.tp * options.pp * options.cp
            parts = f"TP {options.tp} · PP {options.pp} · CP {options.cp} · DP {count // model}"
            return "", f"{parts} = {count} process{'es' if count > 1 else ''}"
        for option in options_of(type(options)):
            value = getattr(options, option.name)
            if value and (option.path in INPUTS or (option.path == "file" and option.required)):
                for path in value if option.many else [value]:
                    if not is_url(path) and not Path(path).expanduser().exists():
                        return f"{option.flag} {path}: no such file or folder; correct the path", ""
    except (RequestError, WorkError) as error:
        return str(error), ""
    except OSError as error:
        return f"{error.filename}: {error.strerror}", ""
    return "", ""


def read_workspace(folder: Path | None) -> dict[str, Any]:
    """`workspace.json` of a demo workspace; empty when there is none."""
    if folder is None:
        return {}
    try:
        value = json.loads((Path(folder) / "workspace.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _free(path: Any) -> Any:
    """The path, or with -2, -3, … the first that nothing stands on yet."""
    if not isinstance(path, str) or not path:
        return None
    found, number = Path(path).expanduser(), 2
    while found.exists():
        found, number = Path(f"{path}-{number}").expanduser(), number + 1
    return str(found)


def prefill(kind: str, workspace: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Values that a new form of this kind begins with; only those that the workspace gives and the options know."""
    get = workspace.get
    finetune = get("finetune")
    values: dict[str, Any] = {
        "prepare": {"source": get("train_json"), "to": _free(get("data"))},
        "convert": {"source": get("base"), "target": _free(get("base_mcore"))},
        "finetune": {"load": get("base_mcore"), "train_data": get("data"), **(finetune if isinstance(finetune, dict) else {})},
        "compare": {
            "base": get("base"), "tuned": get("tuned_hf"), "prompt": get("prompt"), "references": get("references"),
            "images": [get("heldout_images")] if isinstance(get("heldout_images"), str) else None,
        },
    }.get(kind, {})  # fmt: skip
    known = {option.name for option in options_of(COMMANDS[kind])}
    return {name: value for name, value in values.items() if name in known and value is not None}
