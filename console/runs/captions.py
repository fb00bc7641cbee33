"""Reads the captions of a compare run while they are written, and reads and writes its votes. Blocking; imports no Textual.

Votes are in the run's `votes.json`, described in `docs/run-record.md`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from console.runs.state import read_json, write_json
from console.runs.store import Run
from console.runs.tail import JsonlTail
from qwen3vl_core.caption.comparison import BASE, SAME, TUNED, Comparison, ReportCaption, ReportModel, ReportSample, tally
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import COMPARISON, SAMPLES, VERSION, VOTES, read_sample


@dataclass(frozen=True)
class RecordedCaption:
    """One model's caption of one picture, possibly unfinished."""

    text: str = ""
    seconds: float | None = None
    done: bool = False
    whole: bool = True
    """False when it was cut off at the maximum length."""


@dataclass
class CaptionedPicture:
    """A picture with its captions by model."""

    image: str
    prompt: str = ""
    captions: dict[str, RecordedCaption] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    """Reference captions."""

    def whole(self, names: Iterable[str]) -> bool:
        """Whether the captions of all these models are done."""
        return all(name in self.captions and self.captions[name].done for name in names)


@dataclass(frozen=True)
class ComparisonHead:
    """comparison.json, written before the first caption; for an older run only what its plan says."""

    models: dict[str, str] = field(default_factory=dict)
    """Name -> path, `base` first."""
    sizes: dict[str, str | None] = field(default_factory=dict)
    prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.models)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


class SampleFeed:
    """Reads the captions of one run as they are written; later rows of a picture and model replace earlier ones."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._tail = JsonlTail(run.path / SAMPLES)
        self._samples: dict[str, CaptionedPicture] = {}
        self._announced: dict[str, tuple[str, ...]] = {}
        self._head_of: tuple[int, ...] | None = None
        self.head = self._plain_head()

    @property
    def samples(self) -> list[CaptionedPicture]:
        """In the order of comparison.json, else in the order in which they were written."""
        return list(self._samples.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return self.head.names

    def read(self) -> bool:
        """Read new rows. Returns whether there were any."""
        restarted = self._read_head()
        rows = self._tail.read()
        replaced = self._tail.replaced
        if restarted or replaced:
            self._samples = {image: CaptionedPicture(image, references=texts) for image, texts in self._announced.items()}
        if restarted and not replaced:
            # rows written before comparison.json was read belong to this comparison
            self._tail = JsonlTail(self.run.path / SAMPLES)
            rows = self._tail.read()
        for row in rows:
            self._take(row)
        return bool(rows) or replaced or restarted

    def _plain_head(self) -> ComparisonHead:
        options = self.run.options
        tuned = options.get("tuned")
        paths = {BASE: options.get("base"), TUNED: tuned[0] if isinstance(tuned, list) and tuned else tuned}
        return ComparisonHead({name: str(path or "?") for name, path in paths.items()}, {}, str(options.get("prompt") or ""))

    def _read_head(self) -> bool:
        """Read comparison.json if it has changed. Returns whether the comparison has started, or started again, since the last call."""
        path = self.run.path / COMPARISON
        try:
            stat = path.stat()
        except OSError:
            return False
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp == self._head_of:
            return False
        self._head_of = stamp
        value = read_json(path)
        models = value.get("models")
        if not isinstance(models, dict) or not models:
            return False
        described = {name: model if isinstance(model, dict) else {} for name, model in models.items()}
        sampling = value.get("sampling")
        self.head = ComparisonHead(
            {name: str(model.get("path") or "?") for name, model in described.items()},
            {name: model.get("size") if isinstance(model.get("size"), str) else None for name, model in described.items()},
            str(value.get("prompt") or ""), sampling if isinstance(sampling, dict) else {}, _texts(value.get("notes")),
        )  # fmt: skip
        pictures = value.get("pictures")
        rows = [row for row in pictures if isinstance(row, dict)] if isinstance(pictures, list) else []
        self._announced = {row["image"]: _texts(row.get("references")) for row in rows if isinstance(row.get("image"), str)}
        return True

    def _take(self, row: dict[str, Any]) -> None:
        parsed = read_sample(row)
        if parsed is None or parsed.model not in self.head.models:
            return
        sample = self._samples.setdefault(parsed.image, CaptionedPicture(parsed.image))
        if parsed.prompt is not None:
            sample.prompt = parsed.prompt
        sample.captions[parsed.model] = RecordedCaption(parsed.text, parsed.seconds, parsed.done, parsed.whole)

    def comparison(self, votes: Votes | None = None) -> Comparison:
        """The pictures that have all captions so far, for the reports. Raises WorkError when there are none."""
        samples = []
        for sample in self.samples:
            if sample.whole(self.names):
                chosen = {name: sample.captions[name] for name in self.names}
                texts = {name: ReportCaption(caption.text, caption.seconds or 0.0, caption.whole) for name, caption in chosen.items()}
                samples.append(ReportSample(sample.image, texts, sample.prompt, sample.references))
        if not samples:
            raise WorkError(filled("{}: no picture has all its captions yet; wait, or look at its log", self.run.id))
        notes = list(self.head.notes)
        if len(samples) < len(self._samples):
            notes.append(f"{len(samples):,} of {len(self._samples):,} pictures have all captions.")
        models = {name: ReportModel(path, self.head.sizes.get(name)) for name, path in self.head.models.items()}
        choices = {s.image: votes.choices[s.image] for s in samples if votes and s.image in votes.choices}
        return Comparison(self.head.prompt, models, samples, self.head.sampling, notes, choices)


def read_samples(run: Run) -> list[CaptionedPicture]:
    """All samples that a run has written."""
    feed = SampleFeed(run)
    feed.read()
    return feed.samples


@dataclass(frozen=True)
class Votes:
    """Votes for the best caption of each picture."""

    choices: dict[str, str] = field(default_factory=dict)
    """Picture -> name of a model, or `same`."""
    blind: frozenset[str] = frozenset()
    """Pictures whose vote was given blind."""

    def tally(self, names: Iterable[str]) -> dict[str, int]:
        """Votes of each model, then of `same`."""
        return tally(self.choices.values(), names)


def read_votes(run: Run, names: Iterable[str] = (BASE, TUNED)) -> Votes:
    """A run's votes for one of these models or for `same`; others are ignored."""
    saved = read_json(run.path / VOTES)
    votes, blind, allowed = saved.get("votes"), saved.get("blind"), {*names, SAME}
    choices = {k: v for k, v in votes.items() if isinstance(v, str) and v in allowed} if isinstance(votes, dict) else {}
    return Votes(choices, frozenset(image for image in _texts(blind) if image in choices))


def vote(run: Run, image: str, choice: str | None, names: Iterable[str] = (BASE, TUNED), *, blind: bool = False) -> Votes:
    """Save a vote in the run's folder; None withdraws it. Returns all votes. Raises RequestError and WorkError."""
    allowed = [*names, SAME]
    if choice is not None and choice not in allowed:
        raise RequestError(filled("vote {}: must be one of {}", choice, ", ".join(allowed)))
    before = read_votes(run, allowed)
    choices = {k: v for k, v in {**before.choices, image: choice}.items() if v}
    hidden = (before.blind - {image}) | ({image} if blind and choice else set())
    value: dict[str, Any] = {"v": VERSION, "votes": choices}
    if hidden:
        value["blind"] = sorted(hidden)
    try:
        write_json(run.path / VOTES, value)
    except OSError as error:
        raise WorkError(
            filled("{}: {}; the vote was not saved; make the run's folder writable", run.path / VOTES, error.strerror)
        ) from error
    return Votes(choices, frozenset(hidden))
