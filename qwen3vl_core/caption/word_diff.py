"""Words of a caption, and the word-level difference of two captions. Imports no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "changed", "removed", "added"]
Mark = Literal["", "first", "other", "common"]
"""The mark of a run of words: none; only the first caption has it; the first caption lacks it; both have it."""
UNEVEN, LEAST_WORDS = 2.0, 12
"""Of captions whose lengths differ by this factor, the longer with so many words, that is marked which is common: nearly all the rest is
different, and would be struck out."""
TELLING = 4
"""Fewest letters of a common word that is marked by itself: articles and the like are common to all captions."""

# joins two word characters into one word: dog's, dog’s, well-lit
_JOINERS = "'’-\u2010\u2011"
# scripts without spaces: each character is a word, as otherwise a whole sentence would be one
_UNSPACED = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
# above this many pairs of words the matcher may skip very frequent words, so that a degenerate text does not take minutes
_EXACT_PAIRS = 4_000_000


@dataclass(frozen=True)
class Word:
    """A word or a single other character, with the white space before it; trailing white space is a word with an empty core."""

    space: str
    core: str

    @property
    def counts(self) -> bool:
        """True for a word, False for punctuation."""
        return any(character.isalnum() for character in self.core)


def _is_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LNM"


def _is_unspaced(character: str) -> bool:
    code = ord(character)
    return code >= 0x3040 and any(low <= code <= high for low, high in _UNSPACED)


def split(text: str) -> list[Word]:
    """Split a text into words; their spaces and cores concatenated give the text again."""
    words, start, length = [], 0, len(text)
    while start < length:
        core = start
        while core < length and text[core].isspace():
            core += 1
        end = core + 1
        if core < length and _is_word(text[core]) and not _is_unspaced(text[core]):
            while end < length:
                joined = text[end] in _JOINERS and end + 1 < length and _is_word(text[end + 1]) and not _is_unspaced(text[end + 1])
                if not joined and (not _is_word(text[end]) or _is_unspaced(text[end])):
                    break
                end += 1
        end = min(end, length)
        words.append(Word(text[start:core], text[core:end]))
        start = end
    return words


def count(text: str) -> int:
    """Number of words, without punctuation."""
    return sum(word.counts for word in split(text))


def _matches(a: list[str], b: list[str]) -> Iterator[tuple[int, int, int, int, bool]]:
    """(start and end in a, start and end in b, equal) of runs that cover both lists."""
    shorter = min(len(a), len(b))
    head = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    tail = next((i for i in range(shorter - head) if a[-1 - i] != b[-1 - i]), shorter - head)
    middle_a, middle_b = a[head : len(a) - tail], b[head : len(b) - tail]
    if head:
        yield 0, head, 0, head, True
    matcher = SequenceMatcher(None, middle_a, middle_b, autojunk=len(middle_a) * len(middle_b) > _EXACT_PAIRS)
    for tag, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        yield a_from + head, a_to + head, b_from + head, b_to + head, tag == "equal"
    if tail:
        yield len(a) - tail, len(a), len(b) - tail, len(b), True


def difference(a: str, b: str) -> list[tuple[Kind, str, str]]:
    """How `b` differs from `a`, in runs of words: (kind, text of a, text of b).

    same: equal except for case, which means little at the beginning of a sentence; changed: different in both;
    removed: only in a; added: only in b. The first texts concatenated give `a`, the second texts give `b`, including white space.
    Punctuation that two rewritten passages happen to share is part of the change.
    """
    words_a, words_b = split(a), split(b)
    runs: list[tuple[bool, str, str]] = []
    pieces = list(_matches(*([word.core.casefold() for word in words] for words in (words_a, words_b))))
    for number, (a_from, a_to, b_from, b_to, equal) in enumerate(pieces):
        part_a, part_b = words_a[a_from:a_to], words_b[b_from:b_to]
        inner = 0 < number < len(pieces) - 1
        if not equal or (inner and not any(w.counts for w in part_a)):
            runs.append((False, "".join(w.space + w.core for w in part_a), "".join(w.space + w.core for w in part_b)))
            continue
        for word_a, word_b in zip(part_a, part_b, strict=True):
            if word_a.space == word_b.space:
                runs.append((True, word_a.space + word_a.core, word_b.space + word_b.core))
            else:
                runs += [(False, word_a.space, word_b.space), (True, word_a.core, word_b.core)]
    merged: list[tuple[bool, str, str]] = []
    for equal, text_a, text_b in runs:
        if not text_a and not text_b:
            continue
        if merged and merged[-1][0] == equal:
            merged[-1] = (equal, merged[-1][1] + text_a, merged[-1][2] + text_b)
        else:
            merged.append((equal, text_a, text_b))
    return [(_kind(equal, text_a, text_b), text_a, text_b) for equal, text_a, text_b in merged]


def _kind(equal: bool, text_a: str, text_b: str) -> Kind:
    if equal or text_a.casefold() == text_b.casefold():
        return "same"
    return "changed" if text_a and text_b else "removed" if text_a else "added"


def mark_differences(texts: Sequence[str], *, uneven: bool = True) -> list[list[tuple[str, Mark]]]:
    """Captions of one picture, the first model's first, as runs of words with their marks; concatenated they give the texts.

    With two captions, runs that only one of them has are marked; with more, runs that the first one lacks. White space around a
    marked run is not part of it. Nothing is marked if a caption is empty. Where one of the two is much longer, and most of it is
    different, what both have is marked instead, in both; not with `uneven=False`.
    """
    marked: list[list[tuple[str, Mark]]] = [[(text, "")] for text in texts]
    for index, other in enumerate(texts[1:], start=1):
        if not texts[0].strip() or not other.strip():
            continue
        runs = difference(texts[0], other)
        if uneven and _mostly_different(texts[0], other, runs):
            marked[index] = [run for kind, _, text in runs for run in _mark(text, _common(kind, text))]
            if len(texts) == 2:
                marked[0] = [run for kind, text, _ in runs for run in _mark(text, _common(kind, text))]
            continue
        marked[index] = [run for kind, _, text in runs for run in _mark(text, "" if kind == "same" else "other")]
        if len(texts) == 2:
            marked[0] = [run for kind, text, _ in runs for run in _mark(text, "" if kind == "same" else "first")]
    return marked


def _mostly_different(first: str, other: str, runs: Sequence[tuple[Kind, str, str]]) -> bool:
    """Whether one caption is much longer than the other, and half of it or more is not in the other."""
    shorter, longer = sorted((count(first), count(other)))
    common = sum(count(text) for kind, text, _ in runs if kind == "same")
    return longer >= LEAST_WORDS and longer >= UNEVEN * shorter and 2 * common <= longer


def _common(kind: Kind, text: str) -> Mark:
    words = [word.core for word in split(text) if word.counts] if kind == "same" else []
    return "common" if len(words) > 1 or any(len(word) >= TELLING for word in words) else ""


def _mark(text: str, mark: Mark) -> Iterator[tuple[str, Mark]]:
    """A run of words with its mark, and the white space around it without a mark."""
    core = text.strip() if mark else text
    begin = text.index(core)
    end = begin + len(core)
    parts: tuple[tuple[str, Mark], ...] = ((text[:begin], ""), (core, mark), (text[end:], ""))
    return (part for part in parts if part[0])
