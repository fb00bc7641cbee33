"""Many samples of a dataset at once: a grid of pictures, questions and answers, with a search and token counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ipywidgets as W

from console.notebook.html import box, escape, picture, say
from console.notebook.shards import DatasetSample, Split
from qwen3vl_core.errors import RequestError

SHOWN = 12
"""Samples of a page."""
SIDE = 200
"""Longest side of a picture, in pixels."""
LETTERS = 160
"""Letters of a question or an answer that a card has room for."""
SEARCH_SECONDS = 2.0
"""How long a click searches: the next one goes on from there."""


class SampleGrid(W.VBox):
    """Cards of a split's samples. A search finds those whose key, questions or answers have a text in them, in any case."""

    def __init__(self, split: Split, opened: Callable[[int], None], counts: Callable[[DatasetSample], str]) -> None:
        """opened: called with the index of a sample that is to be shown whole. counts: what a card says of its sample's size."""
        self._split, self._opened, self._counts = split, opened, counts
        self._found: list[int] = []
        self._searched = self._first = 0
        self.search = W.Text(
            placeholder="search keys, questions, answers", continuous_update=False, layout=W.Layout(width="300px"), description="search"
        )
        self.more_button = W.Button(description="search on", tooltip="Search the samples after these", layout=W.Layout(width="100px"))
        self.back_button = W.Button(icon="arrow-left", tooltip="The samples before", layout=W.Layout(width="40px"))
        self.next_button = W.Button(icon="arrow-right", tooltip="The next samples", layout=W.Layout(width="40px"))
        self.told = W.HTML()
        self.cards = W.GridBox([], layout=W.Layout(grid_template_columns="repeat(auto-fill, minmax(210px, 1fr))", grid_gap="12px"))
        self.search.observe(lambda change: self.show(self._split), names="value")
        self.more_button.on_click(lambda button: self._go_on())
        self.back_button.on_click(lambda button: self._turn(-SHOWN))
        self.next_button.on_click(lambda button: self._turn(SHOWN))
        controls = W.HBox([self.search, self.more_button, self.back_button, self.next_button])
        super().__init__(children=[controls, self.told, self.cards])

    @property
    def numbers(self) -> list[int]:
        """Indices of the samples on this page, from 0."""
        if not self.search.value.strip():
            return list(range(self._first, min(self._first + SHOWN, len(self._split))))
        return self._found[self._first : self._first + SHOWN]

    def show(self, split: Split) -> None:
        """Show a split from its beginning, with the search that there is."""
        self._split, self._found, self._searched, self._first = split, [], 0, 0
        self._go_on()

    def _go_on(self) -> None:
        """Search until the page after this one is full, or the time is up."""
        text, until = self.search.value.strip().casefold(), time.monotonic() + SEARCH_SECONDS
        wanted = self._first + SHOWN + 1
        while text and self._searched < len(self._split) and len(self._found) < wanted and time.monotonic() < until:
            try:
                if text in _searchable(self._split[self._searched]):
                    self._found.append(self._searched)
            except RequestError:
                pass  # a damaged one has no text; the grid without a search shows it, with the reason
            self._searched += 1
        self._draw()

    def _turn(self, step: int) -> None:
        many = len(self._found) if self.search.value.strip() else len(self._split)
        self._first = min(max(self._first + step, 0), max(many - 1, 0) // SHOWN * SHOWN)
        self._go_on()

    def _draw(self) -> None:
        searched, many = bool(self.search.value.strip()), len(self._split)
        numbers = self.numbers
        before, self.cards.children = self.cards.children, tuple(self._card(number) for number in numbers)
        for card in before:
            for part in (*card.children, card):
                part.close()
        known = len(self._found) if searched else many
        at_end = not searched or self._searched == many
        self.more_button.layout.visibility = "hidden" if at_end else "visible"
        self.back_button.disabled = self._first == 0
        self.next_button.disabled = self._first + SHOWN >= known
        text = f"{self._first + 1:,} to {self._first + len(numbers):,} of " if numbers else ""
        if searched:
            text += f"{known:,} found in {'all' if at_end else 'the first'} {self._searched:,}" + ("" if at_end else f" of {many:,}")
        else:
            text += f"{many:,}"
        self.told.value = say(f"{text} samples", "dim")

    def _card(self, number: int) -> W.VBox:
        try:
            page = _page(self._split[number], self._counts)
        except RequestError as error:
            page = say(str(error), "bad")
        button = W.Button(description=f"{number + 1:,}", tooltip="Show this sample whole", layout=W.Layout(width="auto"))
        button.on_click(lambda clicked: self._opened(number))
        return W.VBox([W.HTML(page), button], layout=W.Layout(border="1px solid rgba(128, 128, 128, .35)", padding="6px"))


def _page(sample: DatasetSample, counts: Callable[[DatasetSample], str]) -> str:
    media = [part for message in sample.messages for part in media_of(message)]
    shown = _thumbnail(sample, media[0]) if media else ""
    more = f' <span class="dim">and {len(media) - 1} more</span>' if len(media) > 1 else ""
    texts = [
        f"<p class=caption>{'<mark>' if role == 'assistant' else ''}{escape(cut)}{'</mark>' if role == 'assistant' else ''}</p>"
        for role, cut in ((str(message.get("role")), _cut(text_of(message))) for message in sample.messages[:4])
        if cut
    ]
    return box(f'{shown}{more}{"".join(texts)}<span class="dim">{escape(sample.key)}<br>{escape(counts(sample))}</span>')


def _thumbnail(sample: DatasetSample, part: dict[str, Any]) -> str:
    frames = part.get("frames")
    name = frames[0] if isinstance(frames, list) and frames else part.get("part")
    content = sample.parts.get(name) if isinstance(name, str) else None
    if content is None:
        return f'<span class="bad">✗ {escape(name)} is not in the shard</span>'
    if part.get("type") == "video" and not frames:
        return '<span class="dim">a video</span>'
    return picture(content, SIDE)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _searchable(sample: DatasetSample) -> str:
    return "\n".join([sample.key, *map(text_of, sample.messages)]).casefold()


def parts_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message's content."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, without its pictures."""
    return "".join(str(part.get("text", "")) for part in parts_of(message) if part.get("type") == "text")


def media_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The pictures and videos of a message."""
    return [part for part in parts_of(message) if part.get("type") != "text"]
