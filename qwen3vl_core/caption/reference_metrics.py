"""Metrics of captions against references: ROUGE-L and CIDEr-D as the COCO captioning evaluation defines them.

Words are those of `caption.word_diff`, without punctuation and case; in scripts without spaces each character is a word. Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from qwen3vl_core.caption.word_diff import split

ROUGE_BETA = 1.2
"""Weight of the recall in ROUGE-L, as in the COCO evaluation."""
LONGEST_GRAM = 4
CIDER_SIGMA = 6.0
"""Words; width of the Gaussian length penalty of CIDEr-D."""


def plain_words(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return [word.core.casefold() for word in split(text) if word.counts]


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for column, other in enumerate(b, 1):
            diagonal, row[column] = row[column], diagonal + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]


def rouge_l(text: str, references: Sequence[str]) -> float:
    """ROUGE-L, 0..1: F score of the longest common subsequence, from the best precision and the best recall over the references."""
    words = plain_words(text)
    reference_words = [reference for reference in map(plain_words, references) if reference]
    if not words or not reference_words:
        return 0.0
    common = [_common(words, reference) for reference in reference_words]
    precision = max(common) / len(words)
    recall = max(count / len(reference) for count, reference in zip(common, reference_words, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _grams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST_GRAM + 1) for i in range(len(words) - n + 1))


class Cider:
    """CIDEr-D of captions against the references of their pictures, from which the document frequencies of n-grams are counted.

    references: at least one for each picture. With a single picture every inverse document frequency is 0, and so is every score.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self._counts = [[_grams(plain_words(text)) for text in texts] for texts in references]
        seen: Counter[tuple[str, ...]] = Counter()
        for counts in self._counts:
            seen.update({gram for count in counts for gram in count})
        self._seen, self._pictures = seen, math.log(max(len(self._counts), 1))
        self._vectors = [[self._vector(count) for count in counts] for counts in self._counts]

    def _vector(self, counts: Counter[tuple[str, ...]]) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """(TF-IDF weights by n, their norms, number of bigrams)."""
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST_GRAM)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (self._pictures - math.log(max(1, self._seen[gram])))
        norms = [math.sqrt(sum(weight * weight for weight in part.values())) for part in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    def score(self, picture: int, text: str) -> float:
        """CIDEr-D of one picture's caption, 0..10."""
        weights, norms, length = self._vector(_grams(plain_words(text)))
        total = 0.0
        for reference_words, other_norms, other_length in self._vectors[picture]:
            closeness = math.exp(-((length - other_length) ** 2) / (2 * CIDER_SIGMA**2))
            for mine, theirs, norm, other_norm in zip(weights, reference_words, norms, other_norms, strict=True):
                if norm and other_norm:
                    shared = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
                    total += closeness * shared / (norm * other_norm)
        return 10 * total / LONGEST_GRAM / len(self._vectors[picture])
