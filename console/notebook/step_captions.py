"""The captions that a finetune wrote of the same pictures, at one step after another: a slider beside the curve."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as W

from console.notebook.html import box, escape, picture
from console.runs.caption_history import CaptionHistory, HistoryFeed
from console.runs.store import Run
from qwen3vl_core.caption.report import marked_html

SHOWN = 6
"""Pictures that are shown at once."""
SIDE = 110
"""Longest side of a picture, in pixels."""


class StepCaptions(W.VBox):
    """Captions of a run at a step, with the words marked that the caption before did not have. It follows the newest step until the
    slider is moved to another."""

    def __init__(self) -> None:
        self._feed: HistoryFeed | None = None
        self._stories: tuple[CaptionHistory, ...] = ()
        self._pictures: dict[str, str] = {}
        self._shown: object = None
        self.slider = W.SelectionSlider(options=[("–", 0)], description="captions at", layout=W.Layout(width="98%"))
        self.page = W.HTML()
        self.slider.observe(lambda change: self._draw(), names="value")
        super().__init__(children=[self.slider, self.page], layout=W.Layout(display="none", flex="1 1 280px", min_width="0"))

    @property
    def steps(self) -> list[int]:
        """Steps with captions, in ascending order."""
        return sorted({step for story in self._stories for step, _ in story.captions if step is not None})

    def show(self, run: Run | None) -> None:
        """Read what a run has written since the last call; a run without captions takes no room."""
        if run is None:
            self._feed, self._stories = None, ()
        elif self._feed is None or self._feed.run != run:
            self._feed = HistoryFeed(run)
        if self._feed is not None:
            self._stories = self._feed.read()
        steps = self.steps
        self.layout.display = "" if steps else "none"
        known = [value for _, value in self.slider.options]
        if steps and steps != known:
            follows = self.slider.value == known[-1]
            before = self.slider.value
            with self.slider.hold_sync():
                self.slider.options = [(f"step {step:,}", step) for step in steps]
                self.slider.value = before if before in steps and not follows else steps[-1]
        self._draw()

    def _draw(self) -> None:
        now = (self._stories, self.slider.value)
        if now == self._shown:
            return
        self._shown = now
        self.page.value = self.html()

    def html(self) -> str:
        """The captions at the slider's step."""
        rows = []
        for story in self._stories[:SHOWN]:
            before, text = "", None
            for step, written in story.captions:
                if step is None or step > self.slider.value:
                    break
                before, text = text or "", written
            if text is None:
                continue
            if story.image not in self._pictures:
                self._pictures[story.image] = picture(Path(story.image), SIDE)
            *_, marked = marked_html([before.strip(), text.strip()], escape, uneven=False)
            words = marked or '<span class="dim">(nothing)</span>'
            rows.append(f"<tr><td>{self._pictures[story.image]}</td><td class=caption>{words}</td></tr>")
        more = len(self._stories) - SHOWN
        note = f'<p class="dim">and {more} more pictures</p>' if more > 0 else ""
        return box(f"<table>{''.join(rows)}</table>{note}") if rows else ""
