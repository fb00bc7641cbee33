"""Says under a widget when the kernel has not answered a click, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anywidget
import ipywidgets as W
from traitlets import Dict, Instance, Int, List, Unicode, observe

BOX = "qwen3vl-box"
"""Class of the element whose buttons and fields are watched: the one around an `Answers`."""


class AnswersState(W.Widget):
    """Counts the clicks of a box, and the ones that the kernel has handled; the page shows `text` while it lags behind."""

    asked = Int().tag(sync=True)
    """Number of clicks, counted by the page."""
    answered = Int().tag(sync=True)
    stored: List[str] = List(Unicode()).tag(sync=True)
    """Classes of the pictures that stand in for the box in a page without a kernel; a page with one hides them."""
    shortcuts: Dict[str, str] = Dict(key_trait=Unicode(), value_trait=Unicode()).tag(sync=True)
    """What a key clicks while the focus is in the box: a CSS selector of a button below the box."""
    text = Unicode(
        "not answered yet: the kernel is running a cell and handles the click when that ends, or it has ended and the cell must run "
        "again; cells that wait with wait(run) answer at once, and so do the console and qwen3vl runs"
    ).tag(sync=True)

    @observe("asked")
    def _answer(self, change: object) -> None:
        self.answered = self.asked


class Answers(anywidget.AnyWidget):
    """Draws its state under a box. The state is a plain model, as anywidget drops messages to a widget that loads slowly."""

    _esm = Path(__file__).with_name("answers.js")
    shown = Instance(AnswersState, args=()).tag(sync=True, **W.widget_serialization)

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        super().__init__(shown=AnswersState(shortcuts=dict(keys or {})))

    def close(self) -> None:
        """Close it and its state."""
        if self.trait_has_value("shown"):
            self.shown.close()
        super().close()
