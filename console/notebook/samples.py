"""The captions that a comparison writes, and the votes of the one who reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from console.runs.state import read_json, write_json
from console.runs.store import Run
from console.runs.tail import JsonlTail
from qwen3vl_core.errors import RequestError, WorkError

SAMPLES, VOTES = "samples.jsonl", "votes.json"
MODELS = ("base", "tuned")
CHOICES = ("base", "same", "tuned")


@dataclass(frozen=True)
class Caption:
    """One model's caption of one picture, as far as it is written."""

    text: str = ""
    seconds: float | None = None
    done: bool = False


@dataclass
class Sample:
    """A picture with its captions by model: `base`, `tuned`."""

    image: str
    prompt: str = ""
    captions: dict[str, Caption] = field(default_factory=dict)


class SampleFeed:
    """Reads the samples of one run as they are written; later rows of a picture and model replace earlier ones."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._tail = JsonlTail(run.path / SAMPLES)
        self._samples: dict[str, Sample] = {}

    @property
    def samples(self) -> list[Sample]:
        """In the order in which their pictures came."""
        return list(self._samples.values())

    def read(self) -> bool:
        """Take in what is new; whether there was any."""
        rows = self._tail.read()
        if self._tail.replaced:
            self._samples.clear()
        for row in rows:
            self._take(row)
        return bool(rows) or self._tail.replaced

    def _take(self, row: dict[str, Any]) -> None:
        image, model, text, seconds = (row.get(key) for key in ("image", "model", "text", "seconds"))
        if not (isinstance(image, str) and isinstance(text, str) and model in MODELS):
            return
        sample = self._samples.setdefault(image, Sample(image))
        if isinstance(row.get("prompt"), str):
            sample.prompt = row["prompt"]
        known = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        sample.captions[model] = Caption(text, float(seconds) if known else None, row.get("done") is not False)


def read_samples(run: Run) -> list[Sample]:
    """All samples that a run has written."""
    feed = SampleFeed(run)
    feed.read()
    return feed.samples


def read_votes(run: Run) -> dict[str, str]:
    """Picture -> `base`, `tuned` or `same`."""
    votes = read_json(run.path / VOTES).get("votes")
    return {k: v for k, v in votes.items() if v in CHOICES} if isinstance(votes, dict) else {}


def vote(run: Run, image: str, choice: str | None) -> dict[str, str]:
    """Write one vote beside the run's captions, None to take it back; gives all. Raises RequestError and WorkError."""
    if choice not in (*CHOICES, None):
        raise RequestError(f"vote {choice}: must be one of {', '.join(CHOICES)}")
    votes = {k: v for k, v in {**read_votes(run), image: choice}.items() if v}
    try:
        write_json(run.path / VOTES, {"v": 1, "votes": votes})
    except OSError as error:
        raise WorkError(f"{run.path / VOTES}: {error.strerror}; the vote was not kept; make the run's folder writable") from error
    return votes
