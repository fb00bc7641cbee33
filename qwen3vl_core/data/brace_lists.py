"""How many names a brace list stands for, without making them: `train-{00000..00041}.tar`. Imports no torch."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?")
_DEEPEST = 32
_LETTERS = 52
"""The most that a range of letters holds."""


def count_names(pattern: str, depth: int = 0) -> int:
    """The number of names of a pattern, or a bound on it, as braceexpand expands it. Raises ValueError for braces that do not match or are
    nested too deeply, and for numbers of more than 18 digits."""
    if depth > _DEEPEST:
        raise ValueError("braces are nested too deeply")
    total, at = 1, 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "{":
            end = _closing(pattern, at)
            total *= _choices(pattern[at + 1 : end], depth)
            at = end
        elif pattern[at] == "}":
            raise ValueError("braces do not match")
        at += 1
    return total


def _closing(pattern: str, opening: int) -> int:
    depth = 0
    at = opening
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] in "{}":
            depth += 1 if pattern[at] == "{" else -1
            if not depth:
                return at
        at += 1
    raise ValueError("braces do not match")


def _choices(inside: str, depth: int) -> int:
    """Of what is between two braces: a range, a list, or else the text itself in braces."""
    if numbers := _NUMBERS.fullmatch(inside):
        first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
        return abs(last - first) // max(step, 1) + 1
    if re.fullmatch(r"-?\d+\.\.-?\d+(?:\.\.-?\d+)?", inside):
        raise ValueError("a number has too many digits")
    if re.fullmatch(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?", inside):
        return _LETTERS
    return sum(count_names(part, depth + 1) for part in _split(inside))


def _split(inside: str) -> list[str]:
    """At the commas that are in no inner braces."""
    parts, begin, at = [], 0, 0
    while at < len(inside):
        if inside[at] == "\\":
            at += 1
        elif inside[at] == "{":
            at = _closing(inside, at)
        elif inside[at] == ",":
            parts.append(inside[begin:at])
            begin = at + 1
        at += 1
    return [*parts, inside[begin:]]
