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
    runs: tuple[list[tuple[bool, str]], list[tuple[bool, str]]] = ([], [])
    pieces = matcher.get_opcodes()
    for number, (kind, a0, a1, b0, b1) in enumerate(pieces):
        for side, text in ((0, "".join(words[0][a0:a1])), (1, "".join(words[1][b0:b1]))):
            # a blank that two rewritten passages share belongs to the change
            same = kind == "equal" and (bool(text.strip()) or number in (0, len(pieces) - 1))
            if text and runs[side] and runs[side][-1][0] == same:
                runs[side][-1] = (same, runs[side][-1][1] + text)
            elif text:
                runs[side].append((same, text))
    return _marked(runs[0], "del"), _marked(runs[1], "ins")


def _marked(runs: list[tuple[bool, str]], tag: str) -> str:
    """Runs of (same, text) as HTML; blanks around a difference are not marked."""
    made = []
    for same, text in runs:
        core = text.strip()
        if same or not core:
            made.append(escape(text))
        else:
            begin = text.index(core)
            made.append(f"{escape(text[:begin])}<{tag}>{escape(core)}</{tag}>{escape(text[begin + len(core):])}")
    return "".join(made)
