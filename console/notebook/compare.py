"""Two models' captions side by side, with the picture, the words that differ, and a vote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as W
import pandas as pd

from console.notebook.frames import captions
from console.notebook.live import Live
from console.notebook.page import box, escape, picture, read_picture, say, table
from console.notebook.samples import Caption, Sample, SampleFeed, read_votes, vote
from console.notebook.stores import as_run, open_store
from console.notebook.words import count_words, pair
from console.runs.store import Run, RunStore
from console.runs.text import GLYPHS

STATIC_PICTURES = 8
VOTES = (("base is better", "base"), ("as good", "same"), ("tuned is better", "tuned"))


class CompareCaptions(Live):
    """The captions of a `compare` run, as they are written.

    run: a number, id, name, `Run` or a `Launcher`; without one the newest comparison of the store, also one that starts
    later. Votes are kept beside the captions (votes.json) and come back with them; `captions(run)` has both as a data frame.
    """

    def __init__(self, run: Any = None, *, store: RunStore | Path | str | None = None) -> None:
        super().__init__()
        self._launcher = run if hasattr(run, "start_button") else None
        self.store = self._launcher.store if self._launcher is not None else open_store(store)
        chosen = as_run(run, self.store) if run is not None and self._launcher is None else None
        self._pinned = chosen is not None
        self._runs: dict[str, Run] = {}
        self._feed: SampleFeed | None = None
        self._votes: dict[str, str] = {}
        self._shown: Any = None
        self._quiet = False
        self.run_menu = W.Dropdown(options=[], description="run", layout=W.Layout(width="360px"))
        self.place = W.BoundedIntText(value=1, min=1, max=1, description="picture", layout=W.Layout(width="170px"))
        self.back_button = W.Button(icon="arrow-left", tooltip="The picture before", layout=W.Layout(width="40px"))
        self.next_button = W.Button(icon="arrow-right", tooltip="The next picture", layout=W.Layout(width="40px"))
        self.mark_box = W.Checkbox(value=True, description="mark differences", indent=False)
        self.image = W.Image(format="jpeg", layout=W.Layout(max_width="420px", object_fit="contain"))
        self.base, self.tuned, self.headline = W.HTML(), W.HTML(), W.HTML()
        half = {"width": "50%", "padding": "0 12px 0 0"}
        self.vote_buttons = W.ToggleButtons(options=[("no vote", ""), *VOTES], value="")
        self.back_button.on_click(lambda button: self.go(self.index - 1))
        self.next_button.on_click(lambda button: self.go(self.index + 1))
        self.place.observe(self._turned, names="value")
        self.mark_box.observe(lambda change: self._look(), names="value")
        self.run_menu.observe(self._chosen, names="value")
        self.vote_buttons.observe(self._voted, names="value")
        self.children = [
            W.HBox([self.run_menu, self.back_button, self.place, self.next_button, self.mark_box]), self.headline, self.image,
            W.HBox([W.VBox([self.base], layout=half), W.VBox([self.tuned], layout=half)]), self.vote_buttons, self.message,
        ]  # fmt: skip
        self._list(chosen)
        self.begin()

    # which run, which picture

    @property
    def run(self) -> Run | None:
        """The comparison on screen."""
        return self._runs.get(self.run_menu.value)

    @property
    def samples(self) -> list[Sample]:
        """Its pictures with their captions, as far as they are written."""
        return self._feed.samples if self._feed is not None else []

    @property
    def index(self) -> int:
        """Number of the picture on screen, from 0."""
        return self.place.value - 1

    def go(self, index: int) -> None:
        """Show another picture; beyond an end it stays."""
        self.place.value = min(max(index + 1, 1), self.place.max)

    def show(self, run: Any) -> None:
        """Show another comparison. Raises RequestError when it is not there."""
        chosen = as_run(run, self.store)
        with self.lock:
            self._pinned = True
            self._list(chosen)
        self._look()

    def _turned(self, change: Any) -> None:
        if not self._quiet:
            self._look()

    def _chosen(self, change: Any) -> None:
        if not self._quiet:
            self._pinned = True
            self._look()

    def _list(self, chosen: Run | None = None) -> None:
        listed = [run for run in self.store.list() if run.kind == "compare"]
        if self._launcher is not None and not self._pinned:
            chosen = self._launcher.run or chosen
        if chosen is not None and chosen not in listed:
            listed.insert(0, chosen)
        self._runs = {run.id: self._runs.get(run.id, run) for run in listed}
        wanted = chosen.id if chosen is not None else self.run_menu.value
        if not self._pinned and chosen is None and self._launcher is None:
            wanted = listed[0].id if listed else None
        if tuple(self._runs) != self.run_menu.options or wanted != self.run_menu.value:
            self._quiet = True
            try:
                self.run_menu.options = tuple(self._runs)
                self.run_menu.value = wanted if wanted in self._runs else None
            finally:
                self._quiet = False

    # what is shown

    def look(self) -> None:
        """Read what is new, and send what has changed."""
        self._list()
        run = self.run
        if run is None:
            self.headline.value = say(f"no comparison in {self.store.root} yet; one that starts, here or in the console, appears", "dim")
            return
        if self._feed is None or self._feed.run != run:
            self._feed, self._shown, self._votes = SampleFeed(run), None, read_votes(run)
            self._set(self.place, 1)
        self._feed.read()
        samples = self._feed.samples
        if self.place.max != max(len(samples), 1):
            self.place.max = max(len(samples), 1)
        status = run.status
        sample = samples[min(self.index, len(samples) - 1)] if samples else None
        captions = tuple(sample.captions.get(model, Caption()) for model in ("base", "tuned")) if sample else ()
        now = (run.id, status, len(samples), sample and sample.image, captions, self.mark_box.value)
        if now == self._shown:
            return
        before, self._shown = self._shown, now
        self.headline.value = self._headline(run, status, sample, len(samples))
        for widget, text in zip((self.base, self.tuned), self._captions(sample), strict=True):
            widget.value = text
        if before is None or before[3] != now[3]:
            self._show_picture(sample)
        self._set(self.vote_buttons, self._votes.get(sample.image, "") if sample else "")
        self.vote_buttons.disabled = sample is None

    def _set(self, widget: W.Widget, value: Any) -> None:
        """Change a control without hearing it as a person's choice."""
        self._quiet = True
        try:
            widget.value = value
        finally:
            self._quiet = False

    def _headline(self, run: Run, status: str, sample: Sample | None, many: int) -> str:
        models = [escape(path) for path in self._feed.head.models.values()] if self._feed is not None else ["?", "?"]
        line = f"{GLYPHS[status]} <b>{escape(run.id)}</b> {escape(status)}, {many} pictures · base {models[0]} · tuned {models[1]}"
        if sample is not None:
            line += f"<br>“{escape(sample.prompt)}” <span class=dim>{escape(Path(sample.image).name)}</span>"
        return box(line)

    def _captions(self, sample: Sample | None) -> tuple[str, str]:
        if sample is None:
            return "", ""
        found = [sample.captions.get(model, Caption()) for model in ("base", "tuned")]
        # a difference to half a sentence says nothing
        texts = pair(found[0].text, found[1].text, self.mark_box.value and all(c.done for c in found))
        return tuple(
            box(f"<b>{name}</b> <span class=dim>{_about(caption)}</span><p style='line-height:1.5'>{text}</p>")
            for name, caption, text in zip(("base", "tuned"), found, texts, strict=True)
        )

    def _show_picture(self, sample: Sample | None) -> None:
        self.message.value = ""
        try:
            self.image.value = read_picture(Path(sample.image)) if sample else b""
        except ValueError as error:
            self.image.value = b""
            self.message.value = say(f"{sample.image}: cannot be shown ({error})", "bad")

    # votes

    def vote(self, choice: str | None, index: int | None = None) -> None:
        """Say which caption of a picture is better: `base`, `tuned`, `same`, None to take it back. Raises RequestError."""
        with self.lock:
            sample = self.samples[self.index if index is None else index]
            self._votes = vote(self.run, sample.image, choice)
            if index in (None, self.index):
                self._set(self.vote_buttons, choice or "")

    def _voted(self, change: Any) -> None:
        if not self._quiet and self.samples:
            with self.telling():
                self.vote(change["new"] or None)

    def frame(self) -> pd.DataFrame:
        """`captions` of this comparison: pictures, texts, words, votes."""
        return captions(self.run) if self.run is not None else pd.DataFrame()

    def _repr_html_(self) -> str:
        rows = []
        with self.lock:
            for sample in self.samples[:STATIC_PICTURES]:
                rows.append([picture(Path(sample.image)), *self._captions(sample)])
        more = len(self.samples) - len(rows)
        note = f'<p class="dim">and {more} more</p>' if more > 0 else ""
        return self.headline.value + box(table(("picture", "base", "tuned"), rows) + note)


def _about(caption: Caption) -> str:
    if not caption.text and not caption.done:
        return "waiting …"
    seconds = f" · {caption.seconds:.1f} s" if caption.seconds is not None else ""
    return f"{count_words(caption.text)} words{seconds}{'' if caption.done else ' · writing …'}"
