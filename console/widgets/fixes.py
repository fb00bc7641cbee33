"""From a problem's fixes to changes of a form's fields, which a key applies. No screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from console.forms import text_of
from qwen3vl_core.options import Option
from qwen3vl_core.problems import Problem


@dataclass(frozen=True)
class Fix:
    """Fields and what they should hold."""

    changes: Mapping[str, str | bool]

    def __str__(self) -> str:
        parts = []
        for name, text in self.changes.items():
            flag = name.replace("_", "-")
            parts.append(f"{flag} {'on' if text is True else 'off' if text is False else text if text else 'empty'}")
        return ", ".join(parts)


def fixes(problem: Problem, options: Mapping[str, Option]) -> list[Fix]:
    """The problem's fixes that this form has the fields for, the best first."""
    return [
        Fix({name: text_of(options[name], options[name].default if value is None else value) for name, value in remedy.items()})
        for remedy in problem.remedies
        if remedy.keys() <= options.keys()
    ]
