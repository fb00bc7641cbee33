"""Reads what the Compare screen shows of a run, outside the screen's thread. Blocking; imports no Textual."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field, replace

from console.runs.captions import CaptionedPicture, ComparisonHead, SampleFeed, Votes, read_votes
from console.runs.store import Run
from qwen3vl_core.caption.scores import Scores
from qwen3vl_core.errors import WorkError
from qwen3vl_core.run_record import VOTES

SCORE_SHARE = 5.0
"""Scores are computed again after this many times the seconds that they took the last time."""


@dataclass(frozen=True)
class CompareView:
    """State of a comparison at one moment. `CompareFeed.read` returns the same object as long as nothing has changed."""

    run_id: str = ""
    head: ComparisonHead = field(default_factory=ComparisonHead)
    samples: tuple[CaptionedPicture, ...] = ()
    votes: Votes = field(default_factory=Votes)
    scores: Scores | None = None
    """Scores of the pictures that had all captions when they were computed."""
    whole: int = 0
    """Number of pictures that have all captions."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return self.head.names


class CompareFeed:
    """Reads one comparison at a time; keeps what it has read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._feed: SampleFeed | None = None
        self._view = CompareView()
        self._votes_stamp: tuple[int, ...] = ()
        self._scored = -1
        self._next_scores = 0.0

    def read(self, run: Run) -> CompareView:
        """The current state of the comparison."""
        with self.lock:
            if self._feed is None or self._feed.run != run:
                self._feed, self._view = SampleFeed(run), CompareView(run.id, SampleFeed(run).head)
                self._votes_stamp, self._scored, self._next_scores = (), -1, 0.0
            view = self._view
            if self._feed.read():
                samples = tuple(CaptionedPicture(s.image, s.prompt, dict(s.captions), s.references) for s in self._feed.samples)
                names = self._feed.names
                view = replace(view, head=self._feed.head, samples=samples, whole=sum(s.whole(names) for s in samples))
            view = self._with_votes(view, run)
            self._view = self._with_scores(view, self._feed)
            return self._view

    def _with_votes(self, view: CompareView, run: Run) -> CompareView:
        try:
            stat = (run.path / VOTES).stat()
        except OSError:
            return replace(view, votes=Votes()) if view.votes.choices else view
        stamp = (stat.st_ino, stat.st_mtime_ns, hash(view.names))
        if stamp == self._votes_stamp:
            return view
        self._votes_stamp = stamp
        return replace(view, votes=read_votes(run, view.names))

    def _with_scores(self, view: CompareView, feed: SampleFeed) -> CompareView:
        now = time.monotonic()
        if not view.whole or view.whole == self._scored or (now < self._next_scores and view.whole < len(view.samples)):
            return view
        try:
            scores = feed.comparison().scores()
        except WorkError:
            return view
        self._scored = view.whole
        self._next_scores = now + SCORE_SHARE * (time.monotonic() - now)
        return replace(view, scores=scores)


def shuffled(names: tuple[str, ...], image: str, secret: str) -> tuple[str, ...]:
    """The models in the order in which a blind comparison shows them for this picture; the same every time."""
    order = list(names)
    random.Random(f"{secret}:{image}").shuffle(order)
    return tuple(order)
