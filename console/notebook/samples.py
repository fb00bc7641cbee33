"""The captions that a comparison writes, and the votes of the one who reads them, as the notebook uses them."""

from __future__ import annotations

from console.runs import captions
from console.runs.captions import Caption, Sample, SampleFeed, read_samples
from console.runs.store import Run

__all__ = ["Caption", "Sample", "SampleFeed", "read_samples", "read_votes", "vote"]


def read_votes(run: Run) -> dict[str, str]:
    """Picture -> `base`, `tuned` or `same`."""
    return captions.read_votes(run).choices


def vote(run: Run, image: str, choice: str | None) -> dict[str, str]:
    """Write one vote beside the run's captions, None to take it back; gives all. Raises RequestError and WorkError."""
    return captions.vote(run, image, choice).choices
