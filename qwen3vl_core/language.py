"""The language of what people read: English, or Chinese from the catalogue in `qwen3vl_core/chinese`.

`QWEN3VL_LANG` decides, else `language:` of the console's settings, else what was chosen on the first page, else the locale. JSON, records
of runs and their logs are English whatever it is. The first frame imports this module, and the catalogue only in Chinese.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from qwen3vl_core.run_record import RUN_VARIABLE
from qwen3vl_core.settings_path import settings_file

VARIABLE = "QWEN3VL_LANG"
ENGLISH, CHINESE = "en", "zh"
LANGUAGES = {ENGLISH: "English", CHINESE: "中文"}
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
_SETTING = re.compile(r"^language:[ \t]*[\"']?([A-Za-z_-]+)", re.MULTILINE)

_language = ""
_texts: Mapping[str, str] = {}


def language() -> str:
    """`en` or `zh`; decided when it is first asked for."""
    if not _language:
        in_a_run = RUN_VARIABLE in os.environ  # its log is English
        use(ENGLISH if in_a_run else wanted() or (CHINESE if _is_chinese(_locale()) else ENGLISH))
    return _language


def use(name: str) -> None:
    """Speak this language from now on."""
    global _language, _texts
    _language = name
    _texts = importlib.import_module("qwen3vl_core.chinese").texts() if name == CHINESE else {}


def wanted() -> str | None:
    """The language that the user has named: by the variable, in the settings, or on the first page; None where nothing is said."""
    named = os.environ.get(VARIABLE) or _setting() or _remembered()
    if not named:
        return None
    return CHINESE if _is_chinese(named) else ENGLISH


def is_unclear() -> bool:
    """Whether to ask: nothing is said, and the locale is Chinese or none."""
    locale = _locale().partition(".")[0]
    return wanted() is None and (locale in ("", "C", "POSIX") or _is_chinese(locale))


def remember(name: str) -> None:
    """Begin with this language the next time; the variable and the settings have precedence."""
    with contextlib.suppress(OSError):  # then it is asked again
        file = settings_file().with_suffix(".language")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name + "\n", encoding="utf-8")


def tr(text: str, /, **values: object) -> str:
    """A text in the user's language; `values` fill its placeholders. A text that the catalogue lacks stays English."""
    if not _language:
        language()
    text = _texts.get(text, text)
    return text.format_map(values) if values else text


def keyed(key: str, text: str) -> str:
    """The text that the catalogue has under a stable key, else this English one."""
    if not _language:
        language()
    return _texts.get(key, text)


class Filled(str):
    """An English text that knows what it was made of, so that it can be said in another language later: see `filled`."""

    template: str
    values: tuple[object, ...]


def filled(template: str, *values: object) -> Filled:
    """The English text, with each {} of the template replaced by a value; values may be such texts too."""
    text = Filled(template.format(*values))
    text.template, text.values = template, values
    return text


def phrase(text: str) -> str:
    """A text that was made elsewhere, in the user's language; one of `filled` with its values. As it is if the catalogue lacks it."""
    if not isinstance(text, Filled):
        return tr(text)
    if not _language:
        language()
    values = [phrase(value) if isinstance(value, str) else value for value in text.values]
    return _texts.get(text.template, text.template).format(*values)


def _locale() -> str:
    return next((value for name in _LOCALE if (value := os.environ.get(name))), "")


def _is_chinese(name: str) -> bool:
    """Whether a locale's name is Chinese, and the terminal can show it: `zh`, `zh_CN.UTF-8`."""
    if not name.lower().startswith("zh"):
        return False
    with contextlib.suppress(LookupError, UnicodeEncodeError, TypeError):
        LANGUAGES[CHINESE].encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        return True
    return False


def _setting() -> str:
    """Of the settings file, which is YAML: the one line, as a command must not wait for a reader of YAML. Their reader names mistakes."""
    found = _SETTING.search(_beginning(settings_file()))
    return found[1] if found else ""


def _remembered() -> str:
    return _beginning(settings_file().with_suffix(".language"))[:16].strip()


def _beginning(file: Path) -> str:
    """Of a regular file: every command reads these, and would wait for a FIFO for ever."""
    with contextlib.suppress(OSError, ValueError):
        if file.is_file():
            with open(file, encoding="utf-8") as stream:
                return stream.read(1 << 16)
    return ""
