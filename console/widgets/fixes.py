"""From a fault's line to the change that mends it: a fault says its way out in words, and a key applies it. No screen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from console.forms import text_of
from qwen3vl_core.options import Option

_PAIR = re.compile(r"(?:use|and) --([a-z0-9-]+) ([^\s,;)]+)")
_VALUES = re.compile(r"\buse (?!--)([^\s,;)]+)(?: or ([^\s,;)]+))?")
_ADD = re.compile(r"\badd --([a-z0-9-]+)")
_NEEDS = re.compile(r"\bneeds --([a-z0-9-]+)")
_LEAVE = re.compile(r"\bleave (--[a-z0-9-]+|it|one of them|one part) out\b|\bor leave (it|--[a-z0-9-]+) out\b")


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


def fixes(fault: str, options: Mapping[str, Option]) -> list[Fix]:
    """The ways out that the fault names, the best first: an exact value before leaving something out."""
    head, _, tail = fault.rpartition("; ")
    advice = tail if head else fault
    found: list[Fix] = []

    def add(changes: dict[str, str]) -> None:
        fitting: dict[str, str | bool] = {}
        for flag, text in changes.items():
            option = options.get(flag.removeprefix("--").replace("-", "_"))
            if option is None:
                return
            fitting[option.name] = text == "yes" if option.type is bool else text
        if fitting and Fix(fitting) not in found:
            found.append(Fix(fitting))

    subject = re.match(r"--([a-z0-9-]+)|([a-z_]+) ", fault)
    about = (subject[1] or subject[2]) if subject else ""
    pairs = _PAIR.findall(advice)
    together = " and --" in advice
    if pairs and together:
        add(dict(pairs))
    else:
        for flag, text in pairs:
            add({flag: text})
    for flag in _ADD.findall(advice):
        add({flag: "yes"})
    if re.search(r"\badd it\b", advice) and (needs := _NEEDS.search(fault)):
        add({needs[1]: "yes"})
    bare = _VALUES.search(advice)
    if bare and about:
        # of two values that would do, the larger does not take work away
        for text in filter(None, (bare[2], bare[1])):
            add({about: text})
    for leave, also in _LEAVE.findall(advice):
        flag = leave or also
        name = about if flag in ("it", "one of them") else flag.removeprefix("--")
        option = options.get(name.replace("-", "_"))
        if option is not None:
            text = text_of(option, option.default)
            made = Fix({option.name: text})
            if made not in found:
                found.append(made)
    return found
