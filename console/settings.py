"""The user's settings: colours and keys, from a small YAML file. Imports no Textual.

# ~/.qwen3vl/settings.yaml, or the file that QWEN3VL_SETTINGS names
theme: nord
language: zh            # or en; QWEN3VL_LANG has precedence
bell: off               # no bell and no notification of the terminal when a run that you follow ends
notify: [env:MY_ROBOT]  # as --notify and --notify-command, for every finetune without its own
keys:
  runs.stop: X          # any action of the help (?) by its id; several keys: "x,delete"
  monitor.log_y: "g"
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small
from qwen3vl_core.formats import one_clear_line
from qwen3vl_core.language import ENGLISH, LANGUAGES
from qwen3vl_core.settings_path import DEFAULT_SETTINGS, settings_file
from qwen3vl_core.yaml_text import NotYamlError, load_yaml

TEMPLATE = """\
# Settings of the console (qwen3vl console). Remove the # of a line to change it, then restart the console or press comma again.

# one of {themes}
# theme: nord

# 中文: zh, English: en
# language: zh

# no bell and no notification of the terminal when a run that you follow ends
# bell: off

# who is told when a finetune ends, fails, stalls or its loss is NaN, where it has no --notify of its own
# notify: [env:QWEN3VL_NOTIFY]
# notify_command: notify-send qwen3vl

# keys:
{actions}"""
NAMES = ("theme", "keys", "language", "bell", "notify", "notify_command")
_NAMED = {
    "?": "question_mark", "/": "slash", "+": "plus", "-": "minus", "=": "equals_sign", ".": "full_stop", ":": "colon", ";": "semicolon",
    "esc": "escape", "return": "enter", "del": "delete", "pgup": "pageup", "pgdn": "pagedown", "<": "less_than_sign",
    ">": "greater_than_sign", "[": "left_square_bracket", "]": "right_square_bracket", "!": "exclamation_mark", "#": "number_sign",
    "@": "at", "*": "asterisk", "_": "underscore", "~": "tilde", "'": "apostrophe", '"': "quotation_mark", "|": "vertical_line",
    "(": "left_parenthesis", ")": "right_parenthesis", "{": "left_curly_bracket", "}": "right_curly_bracket", "\\": "backslash",
    "&": "ampersand", "%": "percent_sign", "$": "dollar_sign", "^": "circumflex_accent", "`": "grave_accent",
}  # fmt: skip
"""Common names of keys -> Textual's names."""
_WORDS = {
    "enter", "space", "tab", "escape", "backspace", "delete", "insert", "home", "end", "pageup", "pagedown", "up", "down", "left", "right",
    "comma", *_NAMED.values(), *(f"f{n}" for n in range(1, 25)),
}  # fmt: skip
_KEY = re.compile(r"(?:(?:ctrl|alt|shift|meta|super|hyper)\+)*(\S|[a-z][a-z0-9_]+)")


def is_key(name: str) -> bool:
    """Whether Textual knows this key: `X`, `f5`, `ctrl+x`, `question_mark`."""
    match = _KEY.fullmatch(name)
    return match is not None and (len(match[1]) == 1 or match[1] in _WORDS)


@dataclass(frozen=True)
class Settings:
    """The content of the settings file. problems: a line for each invalid entry, which is skipped."""

    theme: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    """Action id -> Textual's names of its keys, separated by commas."""
    problems: tuple[str, ...] = ()
    file: Path = DEFAULT_SETTINGS
    bell: bool = True
    """Whether the terminal rings when a run that is followed ends."""


def key_names(text: str) -> str:
    """`"X, ?"` -> `"X,question_mark"`: Textual's names of the keys."""
    if text.strip() == ",":
        return "comma"
    names = [word.strip() for word in text.split(",")]
    return ",".join(_NAMED.get(name.lower(), name) for name in names if name)


def _short(value: object) -> str:
    """What a message quotes of a value of the file."""
    return str(value)[:80]


def _close(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"


def read_settings(actions: Collection[str], themes: Collection[str], file: Path | None = None) -> Settings:
    """The settings. actions: ids of all actions; themes: names of all themes. Never raises."""
    file = file or settings_file()
    try:
        text = read_small(file, limits.PLAN_FILE).decode()
    except FileNotFoundError:
        return Settings(file=file)
    except (OSError, UnicodeDecodeError, RequestError) as error:
        return Settings(problems=(f"{file}: cannot be read ({error})",), file=file)
    try:
        content = load_yaml(text) or {}
    except NotYamlError as error:
        return Settings(problems=(f"{file}: not YAML{error.where}; write theme: nord",), file=file)
    if not isinstance(content, dict):
        return Settings(problems=(f"{file}: must hold theme: and keys:, one per line",), file=file)
    unknown = [name for name in content if name not in NAMES]
    problems = [f"{file}: {_short(name)}: no such setting; {_close(str(name), NAMES)}" for name in unknown]
    theme = content.get("theme")
    if theme is not None and theme not in themes:
        problems.append(f"{file}: theme: {_short(theme)}: no such theme; {_close(str(theme), themes)}")
        theme = None
    keys: dict[str, str] = {}
    entries = content.get("keys") or {}
    if not isinstance(entries, dict):
        problems.append(f"{file}: keys: must be a mapping, as in runs.stop: X")
        entries = {}
    for action, value in entries.items():
        if action not in actions:
            problems.append(f"{file}: keys: {_short(action)}: no such action; {_close(str(action), actions)}")
        elif not isinstance(value, str | int) or isinstance(value, bool) or not all(map(is_key, key_names(str(value)).split(","))):
            problems.append(f"{file}: keys: {action}: must be a key, as in X, ctrl+x or f5")
        else:
            keys[action] = key_names(str(value))
    if (named := content.get("language", ENGLISH)) not in tuple(LANGUAGES):
        problems.append(f"{file}: language: {_short(named)}: must be one of {', '.join(LANGUAGES)}")
    bell = content.get("bell", True)
    if not isinstance(bell, bool):
        problems.append(f"{file}: bell: must be on or off")
        bell = True
    problems += _notify_problems(content, str(file))
    return Settings(theme, keys, tuple(map(one_clear_line, problems)), file, bell)


def _notify_problems(content: Mapping[str, Any], file: str) -> list[str]:
    """Of the receivers of messages, which each run reads by itself."""
    from qwen3vl_core import notify  # late: few settings have them

    listed, command = content.get("notify"), content.get("notify_command")
    problems = []
    for text in listed if isinstance(listed, list) else [] if listed is None else [listed]:
        try:
            if not isinstance(text, str):
                raise RequestError("must be an address such as env:QWEN3VL_NOTIFY, or a list of them")
            notify.check(text)
        except RequestError as error:
            problems.append(f"{file}: notify: {str(error).removeprefix('--notify ')}")
    try:
        if command is not None:
            notify.check_command(command if isinstance(command, str) else "")
    except RequestError as error:
        problems.append(f"{file}: notify_command: {str(error).removeprefix('--notify-command ')}")
    return problems
