"""Captions of one picture with the words that differ marked."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from qwen3vl_core.caption.word_diff import mark_differences
from qwen3vl_core.formats import printable

ONLY_FIRST = "$text-error strike"
"""Words that only the first caption has; struck through, so that no colour is needed to see it."""
ONLY_SECOND = "$text-success bold underline"
COMMON = "$text-primary bold"
"""Words that both captions have, where one is much longer."""
NEUTRAL = "underline"
"""Both styles in a blind comparison: they must not identify the models."""


def _shown(text: str) -> str:
    return printable(text).strip()


def several(texts: Sequence[str], marked: bool, blind: bool = False) -> list[Content]:
    """Formatted captions of one picture. Marked are the words that only one of two has, or of more, those that are not in the first;
    where one is much longer, the words that both have."""
    shown = [_shown(text) for text in texts]
    # in a random order there is no reference caption
    if not marked or (blind and len(shown) != 2):
        return [Content(text) for text in shown]
    styles = {
        "": "",
        "first": NEUTRAL if blind else ONLY_FIRST,
        "other": NEUTRAL if blind else ONLY_SECOND,
        "common": NEUTRAL if blind else COMMON,
    }
    return [Content.assemble(*((text, styles[mark]) for text, mark in runs)) for runs in mark_differences(shown)]


def with_new_words(before: str, text: str) -> Content:
    """A caption with the words marked that the previous caption does not have; none if there is no previous one."""
    *_, runs = mark_differences([_shown(before), _shown(text)], uneven=False)
    return Content.assemble(*((words, ONLY_SECOND if mark else "") for words, mark in runs))
