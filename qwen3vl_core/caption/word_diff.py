"""Words of a caption, and the word-level difference of two captions. Imports no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "changed", "removed", "added"]

# joins two word characters into one word: dog's, dog’s, well-lit
_JOINERS = "'’-\u2010\u2011"
# scripts that write no spaces: each character stands for itself, or a whole sentence would be one word
_UNSPACED = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
# pairs of words above which the matcher may skip words that are everywhere, so that a degenerate text costs no minutes
_EXACT_PAIRS = 4_000_000


@dataclass(frozen=True)
class Word:
    """A word or a single other character, with the white space before it; a text's last white space has no core."""

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
    """The text cut into words; their spaces and cores joined give the text again."""
    found, start, length = [], 0, len(text)
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
        found.append(Word(text[start:core], text[core:end]))
        start = end
    return found


def count(text: str) -> int:
    """Number of words; punctuation is none."""
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


def difference(a: str, b: str, *, case: bool = True) -> list[tuple[Kind, str, str]]:
    """How `b` differs from `a`, in runs of words: (kind, text of a, text of b).

    same: both texts equal; changed: both there and different; removed: only in a; added: only in b. Joined in order the
    first texts give `a` and the second texts give `b`, white space and all. Punctuation that two rewritten passages happen
    to share is part of the change. case: False counts words that differ in capitals alone as the same.
    """
    words_a, words_b = split(a), split(b)
    runs: list[tuple[bool, str, str]] = []
    keys = [[w.core if case else w.core.casefold() for w in words] for words in (words_a, words_b)]
    pieces = list(_matches(*keys))
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
    if equal or text_a == text_b:
        return "same"
    return "changed" if text_a and text_b else "removed" if text_a else "added"
