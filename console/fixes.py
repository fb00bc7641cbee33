"""Turns the fixes of a problem into changes of form fields, which a key applies. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from console.forms import text_of
from qwen3vl_core.language import tr
from qwen3vl_core.options import Option
from qwen3vl_core.problems import Problem


@dataclass(frozen=True)
class Fix:
    """New values of fields."""

    changes: Mapping[str, str | bool]

    def __str__(self) -> str:
        parts = []
        for name, text in self.changes.items():
            flag = name.replace("_", "-")
            parts.append(f"{flag} {tr('on') if text is True else tr('off') if text is False else text if text else tr('empty')}")
        return ", ".join(parts)


def fixes(problem: Problem, options: Mapping[str, Option]) -> list[Fix]:
    """The fixes of a problem for which this form has the fields, best first."""
    return [
        Fix({name: text_of(options[name], options[name].default if value is None else value) for name, value in remedy.items()})
        for remedy in problem.remedies
        if remedy.keys() <= options.keys()
    ]
