"""Captions of one picture with the words that differ marked, as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from console.notebook.html import escape
from qwen3vl_core.caption.word_diff import difference


def marked(texts: Sequence[str]) -> list[str]:
    """Captions of the same picture, the first model's first: of two, what only one has in `del` and `ins`; of more, what the
    first has not in `ins`. Differences in capitals are none, and an empty text has none."""
    first = texts[0].strip()
    made = [escape(first)]
    for other in (text.strip() for text in texts[1:]):
        base, tuned = [], []
        for kind, of_first, of_other in difference(first, other, case=False) if first and other else [("same", first, other)]:
            base.append(escape(of_first) if kind == "same" else _tagged(of_first, "del"))
            tuned.append(escape(of_other) if kind == "same" else _tagged(of_other, "ins"))
        made.append("".join(tuned))
        if len(texts) == 2:
            made[0] = "".join(base)
    return made


def _tagged(text: str, tag: str) -> str:
    """Words in a tag, the blanks around them outside of it."""
    core = text.strip()
    if not core:
        return escape(text)
    begin = text.index(core)
    return f"{escape(text[:begin])}<{tag}>{escape(core)}</{tag}>{escape(text[begin + len(core) :])}"
