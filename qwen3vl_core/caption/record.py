"""What a comparison is made of, for the reports. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qwen3vl_core.caption.scores import Scores, score
from qwen3vl_core.caption.words import count

MODELS = ("base", "tuned")


@dataclass(frozen=True)
class Text:
    """One caption in a report."""

    text: str
    seconds: float
    whole: bool
    """False when it was cut off at the longest length."""

    @property
    def words(self) -> int:
        return count(self.text)


@dataclass(frozen=True)
class Sample:
    """A picture and its two captions."""

    image: str
    base: Text
    tuned: Text


@dataclass(frozen=True)
class Model:
    """One of the two models."""

    path: str
    size: str | None
    """Name of the published size, None for a shape of one's own."""


@dataclass
class Comparison:
    """Two models' captions of the same pictures."""

    prompt: str
    base: Model
    tuned: Model
    samples: list[Sample]
    sampling: dict[str, Any] = field(default_factory=dict)
    """The options that decide what is written."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know about the models."""

    def scores(self) -> Scores:
        return score([s.base.text for s in self.samples], [s.tuned.text for s in self.samples])
