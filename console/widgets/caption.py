"""Captions of one picture with the words that differ marked."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from console.formatting import printable
from qwen3vl_core.caption.word_diff import difference

ONLY_FIRST = "$text-error strike"
"""Words that only the first caption has; struck through, so that no colour is needed to see it."""
ONLY_SECOND = "$text-success bold underline"
NEUTRAL = "underline"
"""Both in a blind comparison: it must not tell which model is which."""


def _marked(text: str, style: str) -> list[tuple[str, str]]:
    """The text in a style, the blanks around it without."""
    core = text.strip()
    if not core:
        return [(text, "")]
    begin = text.index(core)
    return [(text[:begin], ""), (core, style), (text[begin + len(core) :], "")]


def pair(first: str, second: str, marked: bool, styles: tuple[str, str] = (ONLY_FIRST, ONLY_SECOND)) -> tuple[Content, Content]:
    """Both captions as they are shown; marked: with their differences."""
    first, second = printable(first).strip(), printable(second).strip()
    if not marked or not first or not second:
        return Content(first), Content(second)
    parts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    # case says little at the beginning of a sentence
    for kind, one, other in difference(first, second, case=False):
        for side, text, style in zip(parts, (one, other), styles, strict=True):
            side += [(text, "")] if kind == "same" else _marked(text, style)
    return Content.assemble(*parts[0]), Content.assemble(*parts[1])


def several(texts: Sequence[str], marked: bool, blind: bool = False) -> list[Content]:
    """Captions as they are shown: of two, what only one has is marked; of more, what is not in the first."""
    if len(texts) == 2:
        return list(pair(texts[0], texts[1], marked, (NEUTRAL, NEUTRAL) if blind else (ONLY_FIRST, ONLY_SECOND)))
    first = Content(printable(texts[0]).strip()) if texts else Content("")
    # of several in a random order none is the one that the others differ from
    return [first, *(pair(texts[0], text, marked and not blind)[1] for text in texts[1:])]
