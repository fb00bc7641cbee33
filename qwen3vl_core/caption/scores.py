"""Scores of the captions of several models, with and without references. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen3vl_core.caption.reference_metrics import Cider, rouge_l
from qwen3vl_core.caption.word_diff import count, split

REPEATED_WORDS = 4
"""Length of the word sequences that `repetition` looks for."""


def repetition(text: str, length: int = REPEATED_WORDS) -> float:
    """Share of the word sequences of this length that occurred earlier in the text: 0 without repetition, near 1 for endless repetition."""
    words = [word.core.casefold() for word in split(text) if word.counts]
    sequences = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


@dataclass(frozen=True)
class ModelScores:
    """Scores of one model's captions."""

    words: float
    """Average number of words in a caption."""
    fewest_words: int
    most_words: int
    empty: int
    """Number of captions without a word."""
    repetition: float
    """Average of `repetition`."""
    rouge_l: float | None = None
    """0..1, average over the pictures with references; None without references."""
    cider: float | None = None
    """CIDEr-D, 0..10, average; None with fewer than two pictures with references."""
    length_ratio: float | None = None
    """Words of the captions for each word of their references."""


@dataclass(frozen=True)
class Scores:
    """Scores of several models' captions of the same pictures."""

    models: dict[str, ModelScores]
    differ: float
    """Share of the pictures whose captions are not all the same text, ignoring case."""
    referenced: int = 0
    """Number of pictures with references."""

    @property
    def base(self) -> ModelScores:
        """Scores of the first model."""
        return next(iter(self.models.values()))

    @property
    def tuned(self) -> ModelScores:
        """Scores of the second model."""
        return list(self.models.values())[1]

    def to_mapping(self) -> dict[str, Any]:
        """The scores as JSON values."""
        return {name: asdict(scores) for name, scores in self.models.items()} | {"differ": self.differ, "references": self.referenced}


def _of_model(texts: Sequence[str], references: Sequence[Sequence[str]], cider: Cider | None) -> ModelScores:
    counts = [count(text) for text in texts]
    reference_scores: dict[str, Any] = {}
    referenced = [index for index, of_picture in enumerate(references) if of_picture]
    if referenced:
        reference_scores["rouge_l"] = sum(rouge_l(texts[i], references[i]) for i in referenced) / len(referenced)
        reference_words = sum(sum(map(count, references[i])) / len(references[i]) for i in referenced)
        reference_scores["length_ratio"] = sum(counts[i] for i in referenced) / reference_words if reference_words else None
    if cider is not None:
        reference_scores["cider"] = sum(cider.score(number, texts[i]) for number, i in enumerate(referenced)) / len(referenced)
    return ModelScores(
        words=sum(counts) / len(counts), fewest_words=min(counts), most_words=max(counts), empty=counts.count(0),
        repetition=sum(map(repetition, texts)) / len(texts), **reference_scores,
    )  # fmt: skip


def score(texts: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]] = ()) -> Scores:
    """Score captions. texts: by model, one for each picture. references: any number for each picture; empty: none at all.

    Raises ValueError unless all models have the same number of captions, and at least one.
    """
    counts = [len(captions) for captions in texts.values()]
    if not counts or not counts[0] or len(set(counts)) > 1:
        raise ValueError(f"{' and '.join(map(str, counts)) or 'no'} captions: every model needs the same number, and at least one")
    references = references or [()] * counts[0]
    present = [captions for captions in references if captions]
    cider = Cider(present) if len(present) > 1 else None
    differ = sum(len(set(map(str.casefold, captions))) > 1 for captions in zip(*texts.values(), strict=True)) / counts[0]
    return Scores({name: _of_model(captions, references, cider) for name, captions in texts.items()}, differ, len(present))
