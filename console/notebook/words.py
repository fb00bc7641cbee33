"""Two captions with the words that differ marked, as HTML."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from console.notebook.page import escape

_WORDS = re.compile(r"\s+|[^\W_]+(?:['’-][^\W_]+)*|.", re.DOTALL)
_EXACT_PAIRS = 1_000_000
"""Pairs of words above which words that are everywhere are not matched, so that a degenerate text costs no seconds."""


def words_of(text: str) -> list[str]:
    """Words, punctuation and white space; joined they give the text again."""
    return _WORDS.findall(text)


def count_words(text: str) -> int:
    """Number of words; punctuation is none."""
    return sum(any(c.isalnum() for c in word) for word in words_of(text))


def pair(first: str, second: str, marked: bool = True) -> tuple[str, str]:
    """Both captions as HTML; marked: words only in the first are struck through, words only in the second inserted."""
    first, second = first.strip(), second.strip()
    if not marked or not first or not second:
        return escape(first), escape(second)
    words = words_of(first), words_of(second)
    # case says little at the beginning of a sentence
    keys = [[word.lower() for word in side] for side in words]
    matcher = SequenceMatcher(None, *keys, autojunk=len(keys[0]) * len(keys[1]) > _EXACT_PAIRS)
    parts: tuple[list[str], list[str]] = ([], [])
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        for side, tag, text in ((0, "del", "".join(words[0][a0:a1])), (1, "ins", "".join(words[1][b0:b1]))):
            plain = kind == "equal" or not text.strip()
            parts[side].append(escape(text) if plain else f"<{tag}>{escape(text)}</{tag}>")
    return "".join(parts[0]), "".join(parts[1])
