"""Shows samples of a prepared dataset: pictures, conversation, and the trained part of it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd

from console.notebook.answers import BOX, Answers
from console.notebook.brief import Brief
from console.notebook.html import box, escape, picture, say, table
from console.notebook.live import close_all, take_cell
from console.notebook.sample_grid import SampleGrid, media_of, parts_of, text_of
from console.notebook.shards import DatasetSample, Split, picture_tokens, report_of, splits
from console.notebook.stored import Stored
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import quantity

TURN, TURN_END = "<|im_start|>", "<|im_end|>"
STATIC_SAMPLES = 4
SHOWN_FRAMES = 6
LARGEST_VIDEO = 8_000_000
"""Largest video that is embedded in a page, in bytes."""


class DatasetPreview(Stored, W.VBox, metaclass=Brief):
    """A grid of samples with a search, or one at a time: pictures and conversation, the trained part highlighted.

    dataset: a folder made by `qwen3vl prepare`. model: a Hugging Face folder, by which tokens are counted and the trained ones marked.
    grid: begin with the grid. Raises RequestError for a folder that is not a dataset, and for a split that it does not have.
    """

    _closed = True  # until __init__ has finished: a widget that could not be created has nothing to close

    def __init__(self, dataset: Path | str, split: str | None = None, *, model: Path | str | None = None, grid: bool = False) -> None:
        self.dataset = Path(dataset).expanduser().absolute()
        available = splits(self.dataset)
        if split is None and available:
            split = "train" if "train" in available else available[0]
        self._split = Split(self.dataset, split or "train")
        self.tokenizer = _tokenizer(model) if model is not None else None
        self._picture_tokens = picture_tokens(model) if model is not None else None
        self.split_menu = W.Dropdown(options=available, value=split, description="split", layout=W.Layout(width="200px"))
        self.place = W.BoundedIntText(value=1, min=1, max=len(self._split), description="sample", layout=W.Layout(width="180px"))
        self.back_button = W.Button(icon="arrow-left", tooltip="The previous sample", layout=W.Layout(width="40px"))
        self.next_button = W.Button(icon="arrow-right", tooltip="The next sample", layout=W.Layout(width="40px"))
        self.random_button = W.Button(description="random", icon="random", tooltip="A random sample", layout=W.Layout(width="80px"))
        self.view_buttons = W.ToggleButtons(options=[("one", False), ("grid", True)], value=grid, style={"button_width": "60px"})
        self.about, self.page = W.HTML(), W.HTML()
        self.grid = SampleGrid(self._split, self._open, self._counts)
        self._random = np.random.default_rng(0)
        self.split_menu.observe(self._chosen, names="value")
        self.place.observe(lambda change: self._show(), names="value")
        self.back_button.on_click(lambda button: self.go(self.index - 1))
        self.next_button.on_click(lambda button: self.go(self.index + 1))
        self.random_button.on_click(lambda button: self.go(int(self._random.integers(len(self)))))
        self.view_buttons.observe(lambda change: self._show(), names="value")
        self._turning = W.HBox([self.back_button, self.place, self.next_button, self.random_button])
        controls = W.HBox([self.split_menu, self.view_buttons, self._turning], layout=W.Layout(flex_flow="row wrap"))
        super().__init__(children=[self.about, controls, self.grid, self.page, Answers()])
        self.add_class(BOX)
        self._closed = False
        take_cell(self)
        self.about.value = self._about()
        self._show()

    def __repr__(self) -> str:
        return f"DatasetPreview({str(self.dataset)!r}, {self.split_menu.value!r}, {len(self)} samples)"

    def __len__(self) -> int:
        return len(self._split)

    @property
    def index(self) -> int:
        """Index of the shown sample, from 0."""
        return self.place.value - 1

    @property
    def sample(self) -> DatasetSample:
        """The shown sample. Raises RequestError when it is damaged."""
        return self._split[self.index]

    def go(self, index: int) -> None:
        """Show another sample; an index beyond an end shows the last one there."""
        self.place.value = min(max(index + 1, 1), self.place.max)

    def _chosen(self, change: Any) -> None:
        try:
            self._split = Split(self.dataset, change["new"])
        except RequestError as error:
            self.page.value = say(str(error), "bad")
            return
        self.place.max = len(self._split)
        self.grid.show(self._split)
        if self.place.value != 1:
            self.place.value = 1
        else:
            self._show()

    def _about(self) -> str:
        report = report_of(self.dataset)
        rows, left_out = [], ""
        for name, counts in (report.get("splits") or {}).items():
            if isinstance(counts, dict):
                rows.append([escape(name), *(escape(f"{counts.get(k, 0):,}") for k in ("samples", "pictures", "turns", "bytes"))])
        refused = report.get("refused")
        if isinstance(refused, dict) and refused:
            left_out = f"<span>left out: {escape(', '.join(f'{v} {k}'.replace('_', ' ') for k, v in refused.items()))}</span>"
        return box(
            f"<b>{escape(self.dataset)}</b>" + (table(("split", "samples", "pictures", "turns", "bytes"), rows) if rows else "") + left_out
        )

    def _open(self, number: int) -> None:
        """Show a sample of the grid whole."""
        self.place.value = number + 1
        self.view_buttons.value = False

    def _counts(self, sample: DatasetSample) -> str:
        """What a sample takes: tokens with a model, else words and pictures."""
        media = sum(len(media_of(message)) for message in sample.messages)
        pictures = f"{media} picture{'s' if media != 1 else ''}" if media else "no picture"
        if self.tokenizer is None:
            words = sum(len(text_of(message).split()) for message in sample.messages)
            return f"{words} words · {pictures}"
        trained = sum(len(self.trained_tokens(text_of(m))) for m in sample.messages if m.get("role") == "assistant")
        text = sum(len(self.tokenizer.encode(text_of(m), add_special_tokens=False).ids) for m in sample.messages)
        parts = [f"{text} text tokens, {trained} trained"]
        names = [part.get("part") for m in sample.messages for part in media_of(m) if part.get("type") != "video"]
        tokens = [self._picture_tokens(sample.parts[name]) for name in names if name in sample.parts] if self._picture_tokens else []
        return " · ".join([*parts, f"{sum(filter(None, tokens))} picture tokens" if any(tokens) else pictures])

    def _show(self) -> None:
        shows_grid = self.view_buttons.value
        self.grid.layout.display = "" if shows_grid else "none"
        self.page.layout.display = self._turning.layout.display = "none" if shows_grid else ""
        if shows_grid:
            if not self.grid.cards.children:
                self.grid.show(self._split)
            self.renew()
            return
        try:
            self.page.value = self._html(self.sample)
            self.renew()
        except RequestError as error:
            self.page.value = say(str(error), "bad")

    def _html(self, sample: DatasetSample, side: int = 320) -> str:
        parts, trained = [f'<p class="dim">{escape(sample.key)} in {escape(sample.shard)}</p>'], 0
        for message in sample.messages:
            role = str(message.get("role"))
            inner = "".join(self._content(part, sample, side, role) for part in parts_of(message))
            if role == "assistant":
                text = "".join(str(part.get("text", "")) for part in parts_of(message) if part.get("type") == "text")
                inner, number = self._answer(text)
                trained += number
            parts.append(f"<p><b>{escape(role)}</b><br>{inner}</p>")
        tokens = f" · {trained} trained tokens" if self.tokenizer is not None else ""
        return box("".join(parts) + f'<p class="dim"><mark>highlighted</mark>: trained{tokens}</p>')

    def _content(self, part: dict[str, Any], sample: DatasetSample, side: int, role: str) -> str:
        if part.get("type") == "text":
            return escape(part.get("text", ""))
        frames = part.get("frames")
        if isinstance(frames, list) and frames:
            return self._frames(part, frames, sample, side)
        name = part.get("part")
        content = sample.parts.get(name) if isinstance(name, str) else None
        if content is None:
            return f'<span class="bad">✗ {escape(part.get("type"))} {escape(name)} is not in the shard</span>'
        if part.get("type") == "video":
            return _video(content, side) + "<br>"
        return picture(content, side) + "<br>"

    def _frames(self, part: dict[str, Any], frames: list[Any], sample: DatasetSample, side: int) -> str:
        """A video whose frames are pictures: the first, the last and some between them, as thumbnails."""
        step = max((len(frames) - 1) / (SHOWN_FRAMES - 1), 1.0)
        chosen = [frames[round(i * step)] for i in range(min(SHOWN_FRAMES, len(frames)))]
        small = max(side // 3, 80)
        drawn = [picture(sample.parts[name], small) if isinstance(name, str) and name in sample.parts else "✗" for name in chosen]
        fps = part.get("fps")
        rate = f", {fps:g} fps" if isinstance(fps, int | float) else ""
        return f'{" ".join(drawn)}<br><span class="dim">{len(frames)} frames{rate}</span><br>'

    def trained_tokens(self, text: str) -> list[str]:
        """The trained tokens of an answer, including its end token, as text. Raises RequestError without a model."""
        if self.tokenizer is None:
            raise RequestError("trained_tokens: needs a tokenizer; give DatasetPreview(..., model=FOLDER)")
        opening = f"{TURN}assistant\n"
        turn = f"{opening}{text}{TURN_END}"
        encoded = self.tokenizer.encode(turn, add_special_tokens=False)
        return [turn[begin:end] for begin, end in encoded.offsets if begin >= len(opening)]

    def _answer(self, text: str) -> tuple[str, int]:
        """(HTML, number of trained tokens) of an assistant's turn."""
        if self.tokenizer is None:
            return f"<mark>{escape(text)}{escape(TURN_END)}</mark>", 0
        tokens = self.trained_tokens(text)
        edge = "border-right:1px solid rgba(128,128,128,.6)"
        return "".join(f'<mark style="{edge}">{escape(token)}</mark>' for token in tokens), len(tokens)

    def frame(self, limit: int = 1000) -> pd.DataFrame:
        """The first `limit` samples of the split: key, turns, pictures, their bytes, question, answer, number of trained tokens."""
        rows = []
        for number in range(min(limit, len(self._split))):
            sample = self._split[number]
            texts = {role: " ".join(text_of(m) for m in sample.messages if m.get("role") == role) for role in ("user", "assistant")}
            answers = [text_of(m) for m in sample.messages if m.get("role") == "assistant"]
            rows.append({
                "key": sample.key, "turns": len(sample.messages), "pictures": len(sample.parts),
                "bytes": sum(map(len, sample.parts.values())), "question": texts["user"], "answer": texts["assistant"],
                "trained_tokens": sum(len(self.trained_tokens(a)) for a in answers) if self.tokenizer is not None else None,
            })  # fmt: skip
        return pd.DataFrame(rows, columns=["key", "turns", "pictures", "bytes", "question", "answer", "trained_tokens"])

    def close(self) -> None:
        """Close the widget."""
        if not self._closed:
            self._closed = True
            close_all(self)
            super().close()

    def _repr_html_(self) -> str:
        shown = [self._html(self._split[n], 160) for n in range(self.index, min(self.index + STATIC_SAMPLES, len(self._split)))]
        return self._about() + "".join(shown)


def _video(content: bytes, side: int) -> str:
    """An embedded video with controls, or its size if it is too large to embed."""
    if len(content) > LARGEST_VIDEO:
        return f'<span class="dim">a video of {quantity(len(content), "B")}; up to {quantity(LARGEST_VIDEO, "B")} are shown</span>'
    kind = "webm" if content.startswith(b"\x1aE\xdf\xa3") else "mp4"
    data = base64.b64encode(content).decode("ascii")
    return f'<video controls muted style="max-width:{side}px" src="data:video/{kind};base64,{data}"></video>'


def _tokenizer(model: Path | str) -> Any:
    from tokenizers import Tokenizer

    file = Path(model).expanduser() / "tokenizer.json"
    if not file.is_file():
        raise RequestError(f"{model}: no tokenizer.json; give a Hugging Face folder of the model")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        # the library raises plain Exception for whatever the file holds
        raise RequestError(f"{file}: cannot be read ({error}); copy it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
