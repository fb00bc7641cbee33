"""The data of a comparison, for the reports. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_core.caption.scores import Scores, score
from qwen3vl_core.caption.word_diff import count

BASE, TUNED = "base", "tuned"
SAME = "same"
"""The vote for equally good captions."""
RESERVED = (SAME, "differ", "difference", "image", "picture", "prompt", "references", "vote", "votes")
"""Names that no model may have, because the reports use them as keys."""


@dataclass(frozen=True)
class ReportCaption:
    """One caption in a report."""

    text: str
    seconds: float
    whole: bool = True
    """False when it was cut off at `max_new_tokens`."""

    @property
    def words(self) -> int:
        return count(self.text)


@dataclass(frozen=True)
class ReportSample:
    """A picture with its captions by model, in the order of the models."""

    image: str
    captions: Mapping[str, ReportCaption]
    prompt: str = ""
    """The prompt for this picture; empty: the comparison's prompt."""
    references: tuple[str, ...] = ()
    """Reference captions."""

    @property
    def base(self) -> ReportCaption:
        """The caption of the first model."""
        return next(iter(self.captions.values()))

    @property
    def tuned(self) -> ReportCaption:
        """The caption of the second model."""
        return list(self.captions.values())[1]


@dataclass(frozen=True)
class ReportModel:
    """One of the models."""

    path: str
    size: str | None
    """Name of the published size, None for a custom shape."""


@dataclass
class Comparison:
    """Several models' captions of the same pictures."""

    prompt: str
    models: dict[str, ReportModel]
    """By name: `base` first, then `tuned`, or a name for each of several checkpoints."""
    samples: list[ReportSample]
    sampling: dict[str, Any] = field(default_factory=dict)
    """The options that determine the generated text."""
    notes: list[str] = field(default_factory=list)
    """Warnings about the models and the pictures."""
    votes: dict[str, str] = field(default_factory=dict)
    """Picture -> name of the model with the best caption, or `same`."""

    @property
    def names(self) -> list[str]:
        """Names of the models, in their order."""
        return list(self.models)

    def scores(self) -> Scores:
        texts = {name: [sample.captions[name].text for sample in self.samples] for name in self.models}
        return score(texts, [sample.references for sample in self.samples])

    def tally(self) -> dict[str, int]:
        """Votes of each model, then of `same`."""
        return tally(self.votes.values(), self.names)


def tally(votes: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    """Number of votes of each model, then of `same`; votes for anything else do not count."""
    counts = dict.fromkeys([*names, SAME], 0)
    for vote in votes:
        if vote in counts:
            counts[vote] += 1
    return counts
