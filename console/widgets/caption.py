"""Two captions of one picture, with the words that differ marked."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from textual.content import Content

from console.widgets.words import printable

ONLY_FIRST = "$text-error strike"
"""Words that only the first caption has; struck through, so that no colour is needed to see it."""
ONLY_SECOND = "$text-success bold underline"
_WORDS = re.compile(r"\s+|[^\W_]+(?:['’-][^\W_]+)*|.", re.DOTALL)
_EXACT_PAIRS = 1_000_000
"""Pairs of words above which words that are everywhere are not matched, so that a degenerate text costs no seconds."""


def words_of(text: str) -> list[str]:
    """Words, punctuation and white space; joined they give the text again."""
    return _WORDS.findall(text)


def count_words(text: str) -> int:
    """Number of words; punctuation is none."""
    return sum(any(c.isalnum() for c in word) for word in words_of(text))


def pair(first: str, second: str, marked: bool) -> tuple[Content, Content]:
    """Both captions as they are shown; marked: with their differences."""
    first, second = printable(first).strip(), printable(second).strip()
    if not marked or not first or not second:
        return Content(first), Content(second)
    words = words_of(first), words_of(second)
    # case says little at the beginning of a sentence
    plain = [[word.lower() for word in side] for side in words]
    matcher = SequenceMatcher(None, *plain, autojunk=len(plain[0]) * len(plain[1]) > _EXACT_PAIRS)
    parts: tuple[list, list] = ([], [])
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        for side, text, style in ((0, "".join(words[0][a0:a1]), ONLY_FIRST), (1, "".join(words[1][b0:b1]), ONLY_SECOND)):
            if text:
                parts[side].append((text, "" if tag == "equal" or text.isspace() else style))
    return Content.assemble(*parts[0]), Content.assemble(*parts[1])
