"""Plan files: the options of a command as YAML, written with their help, read back with their rules. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import read_small, write_text
from qwen3vl_core.language import filled
from qwen3vl_core.options.declare import options_of, recorded
from qwen3vl_core.problems import Problem
from qwen3vl_core.yaml_text import NotYamlError, load_yaml


def write_plan(path: str | Path, options: Any, comment: str = "") -> Path:
    """Write every option with its help, grouped; a required one without a value as a comment. Replaces the file atomically.

    Raises WorkError if it cannot be written.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    group = None
    for o in options_of(type(options)):
        if o.group != group:
            group = o.group
            lines += ["", f"# {group}"]
        value = recorded(o, getattr(options, o.name))
        notes = [o.help, *([o.unit] if o.unit else []), *([f"one of {', '.join(o.choices)}"] if o.choices else [])]
        if o.required and value in (None, "", []):
            lines.append(f"# {o.name}:  # required: {'; '.join(notes)}")
            continue
        lines.append(f"{o.name}: {_on_one_line(value)}  # {'; '.join(notes)}")
    target = Path(path).expanduser()
    try:
        write_text(target, "\n".join(lines).lstrip() + "\n")
    except OSError as error:
        raise WorkError(f"--save {target}: {error.strerror}; choose a file in a folder you may write to") from None
    return target


def _on_one_line(value: Any) -> str:
    """A value as YAML on one line."""
    import yaml

    shape: dict[str, Any] = dict(default_flow_style=True, width=10**9, allow_unicode=True)
    text = yaml.safe_dump(value, **shape).removesuffix("\n").removesuffix("\n...")
    # in double quotes a line break is two characters
    return yaml.safe_dump(value, default_style='"', **shape).removesuffix("\n") if "\n" in text else text


def read_plan_file(cls: type, path: str | Path) -> dict[str, Any]:
    """The mapping in a plan file, for `from_mapping`; names may be written with - or _.

    A run's `plan.json` can be read, too. Raises RequestError for a file that is missing or not a YAML mapping, and for a key that
    is given twice, is not an option of `cls`, or lacks a required value.
    """

    def problem(code: str, **rule: Any) -> Problem:
        return Problem(code, "plan", str(path), rule)

    try:
        text = read_small(Path(path).expanduser(), limits.PLAN_FILE).decode()
    except FileNotFoundError:
        raise RequestError(problem("no-such-plan")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(problem("plan-unreadable", reason=str(error))) from None
    return _values(cls, text, problem)


def read_plan_text(cls: type, text: str, place: str) -> dict[str, Any]:
    """`read_plan_file` of text that is in no file; `place` is what a problem calls it."""
    return _values(cls, text, lambda code, **rule: Problem(code, rule={**rule, "written": place}))


def _values(cls: type, text: str, problem: Callable[..., Problem]) -> dict[str, Any]:
    import yaml

    def refused(code: str, **rule: Any) -> RequestError:
        return RequestError(problem(code, **rule))

    class PlanLoader(yaml.SafeLoader):
        """Refuses duplicate keys, of which YAML would use the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, str) and key in seen:
                    raise refused("plan-given-twice", key=key, line=f" (line {key_node.start_mark.line + 1})")
                if isinstance(key, str):
                    seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        # the loader is SafeLoader with one more check
        content = load_yaml(text, PlanLoader)
    except NotYamlError as error:
        raise refused("plan-not-yaml", line=error.where) from None
    if isinstance(content, dict) and isinstance(content.get("options"), dict) and "kind" in content:
        content = content["options"]
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise refused("plan-not-a-mapping")
    declared = {o.name: o for o in options_of(cls)}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        o = declared.get(name)
        if o is None:
            close = difflib.get_close_matches(name, declared, 1, 0.5)
            advice = filled("did you mean {}?", close[0]) if close else filled("choose from {}", ", ".join(declared))
            problems.append(problem("plan-unknown-option", key=str(key), advice=advice))
        elif name in values:
            problems.append(problem("plan-given-twice", key=name, line=""))
        elif value is None and o.default is not None:
            problems.append(problem("plan-without-value", key=str(key), default=o.default))
        elif isinstance(value, dict) or (isinstance(value, list) and not o.many):
            problems.append(problem("plan-not-one-value", key=str(key)))
        else:
            values[name] = value
    if problems:
        raise RequestError(*problems)
    return values
