"""Keys in a text, as in the line of a dialog; a click on a key presses it."""

from __future__ import annotations

from collections.abc import Iterable

from textual import events
from textual.content import Content
from textual.style import Style
from textual.widgets import Static

from console.actions import shown
from qwen3vl_core.language import tr

GAP = "   "


class Keyed(Static):
    """Text with keys in it."""

    def on_click(self, event: events.Click) -> None:
        if (key := event.style.meta.get("key")) is not None:
            event.stop()
            self.app.simulate_key(key)


class Hints(Keyed):
    """`enter shows it   esc leaves`."""

    def __init__(self, *keys: tuple[str, str], id: str | None = None) -> None:
        """keys: (Textual's name of a key, what it does)."""
        self.parts = [
            Content.assemble((shown(key), "$footer-key-foreground bold"), f" {tr(words)}").stylize(Style.from_meta({"key": key}))
            for key, words in keys
        ]
        super().__init__(Content(GAP).join(self.parts), id=id, classes="hint")

    def on_resize(self) -> None:
        """Break lines between keys, not between a key and what it does."""
        self.update(packed(self.parts, self.size.width))


def packed(parts: Iterable[Content], width: int) -> Content:
    """The parts in lines of this width, broken between two of them."""
    lines: list[list[Content]] = [[]]
    for part in parts:
        if lines[-1] and sum(one.cell_length + len(GAP) for one in lines[-1]) + part.cell_length > width:
            lines.append([])
        lines[-1].append(part)
    return Content("\n").join(Content(GAP).join(line) for line in lines)
