"""An option as a field of a form: its text, its value, its line of help. No screen."""

from __future__ import annotations

import shlex
from typing import Any

from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import Option, shell_line


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


def help_of(option: Option) -> str:
    """One line: what it is, its unit, range, choices and default."""
    parts = [option.help]
    if option.choices:
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
    return f"{option.flag}  " + " · ".join(parts)
