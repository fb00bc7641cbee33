"""The Chinese catalogue: plain tables, English text (or a stable key) -> Chinese. Imported only where Chinese is spoken.

A text keeps the placeholders of the English one, its keys and flags. `tests/test_chinese.py` finds what is missing here.
"""

from __future__ import annotations

from qwen3vl_core.chinese.actions import ACTIONS
from qwen3vl_core.chinese.commands import COMMANDS
from qwen3vl_core.chinese.doctor import TEMPLATES
from qwen3vl_core.chinese.errors import ERRORS
from qwen3vl_core.chinese.options import AROUND, OPTIONS, PREFIXES
from qwen3vl_core.chinese.problems import PROBLEMS, WORDS
from qwen3vl_core.chinese.screens import SCREENS


def texts() -> dict[str, str]:
    """Every text that is found by its English one."""
    named = {f"{name}.{part}": text for name, words in ACTIONS.items() for part, text in zip(("label", "tooltip"), words, strict=True)}
    helps = {text: chinese for text, (_, chinese) in OPTIONS.items()}
    helps |= {before + text: PREFIXES[before] + chinese for text, chinese in helps.items() for before in PREFIXES}
    beside = {f"{before}{text}.word": word for text, (word, _) in OPTIONS.items() for before in ("", *PREFIXES)}
    broken = {f"{code}.{part}": text for code, texts in PROBLEMS.items() for part, text in zip(("rule", "advice"), texts, strict=True)}
    return {**AROUND, **COMMANDS, **TEMPLATES, **ERRORS, **WORDS, **SCREENS, **broken, **helps, **beside, **named}


__all__ = ["ACTIONS", "ERRORS", "OPTIONS", "PREFIXES", "PROBLEMS", "TEMPLATES", "texts"]
