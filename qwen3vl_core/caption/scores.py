"""What can be counted about two sets of captions without knowing what is in the pictures. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3vl_core.caption.words import count, split

REPEATED_WORDS = 4
"""Length of the word sequences that `repetition` looks for."""


def repetition(text: str, length: int = REPEATED_WORDS) -> float:
    """Share of the word sequences of this length that stood in the text before: 0 none, near 1 the same words for ever."""
    words = [word.core.casefold() for word in split(text) if word.counts]
    sequences = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


@dataclass(frozen=True)
class ModelScores:
    """Of one model's captions."""

    words: float
    """Average words of a caption."""
    fewest_words: int
    most_words: int
    empty: int
    """Captions without a word."""
    repetition: float
    """Average of `repetition`."""


@dataclass(frozen=True)
class Scores:
    """Of two models' captions of the same pictures."""

    base: ModelScores
    tuned: ModelScores
    differ: float
    """Share of the pictures whose two captions are not the same text."""


def _of_model(texts: Sequence[str]) -> ModelScores:
    counts = [count(text) for text in texts]
    return ModelScores(
        words=sum(counts) / len(counts), fewest_words=min(counts), most_words=max(counts), empty=counts.count(0),
        repetition=sum(map(repetition, texts)) / len(texts),
    )  # fmt: skip


def score(base: Sequence[str], tuned: Sequence[str]) -> Scores:
    """Raises ValueError unless both hold one caption for each of the same pictures, and at least one."""
    if len(base) != len(tuned) or not base:
        raise ValueError(f"{len(base)} and {len(tuned)} captions: must be as many of each, and at least one")
    differ = sum(a != b for a, b in zip(base, tuned, strict=True)) / len(base)
    return Scores(_of_model(base), _of_model(tuned), differ)
