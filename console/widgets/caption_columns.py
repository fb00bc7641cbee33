"""Captions of one picture beside each other, each in a box that scrolls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import HorizontalScroll, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

NARROWEST = 26
"""Columns of a box; more than fit are scrolled to."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class CaptionColumn:
    """What one box shows."""

    title: Content
    text: Content
    foot: Content
    best: bool = False
    """Its caption was voted best."""

    @property
    def look(self) -> tuple[Any, ...]:
        """Equal for two that look the same; Textual's contents are equal when only their texts are."""
        return self.best, *((part.plain, tuple(part.spans)) for part in (self.title, self.text, self.foot))


class CaptionBox(VerticalScroll, inherit_bindings=False):
    """Scrolls up and down only: left and right turn to another picture."""

    HELP = "↑↓ scroll this caption, tab goes to the next, v says that it is the best"
    BINDINGS: ClassVar = [
        Binding("up", "scroll_up", show=False), Binding("down", "scroll_down", show=False),
        Binding("pageup", "page_up", show=False), Binding("pagedown", "page_down", show=False),
        Binding("home", "scroll_home", show=False), Binding("end", "scroll_end", show=False),
    ]  # fmt: skip

    def __init__(self, place: int) -> None:
        super().__init__(id=f"caption-{place}", classes="caption")
        self.place = place
        self._shown: tuple[Any, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static(classes="caption-text")

    def show(self, column: CaptionColumn) -> None:
        """Show a caption, unless it is there already."""
        if column.look == self._shown:
            return
        self._shown = column.look
        self.border_title, self.border_subtitle = column.title, column.foot
        self.set_class(column.best, "-best")
        self.query_one(Static).update(column.text)

    def on_click(self, event: events.Click) -> None:
        self.focus()
        if event.chain == 2:
            self.post_message(CaptionColumns.Voted(self.place))


class CaptionColumns(HorizontalScroll, inherit_bindings=False):
    """As many boxes as there are captions; those that do not fit are scrolled to when they are focused."""

    class Voted(Message):
        """A box was clicked twice: its caption is the best."""

        def __init__(self, place: int) -> None:
            self.place = place
            super().__init__()

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.can_focus = False
        self._count = count

    def compose(self) -> ComposeResult:
        for place in range(self._count):
            yield CaptionBox(place)

    @property
    def boxes(self) -> list[CaptionBox]:
        """From left to right."""
        return list(self.query(CaptionBox))

    @property
    def focused_place(self) -> int:
        """Of the box that has the focus; else the first's."""
        return next((box.place for box in self.boxes if box.has_focus), 0)

    async def fit(self, count: int) -> None:
        """Have this many boxes."""
        if count == self._count:
            return
        for box in self.boxes[count:]:
            await box.remove()
        await self.mount_all(CaptionBox(place) for place in range(self._count, count))
        self._count = count
        self._share()

    def _share(self) -> None:
        """The same width for each; what is left over goes to the first ones."""
        each, left = divmod(self.size.width, max(self._count, 1))
        for box in self.boxes:
            box.styles.width = max(NARROWEST, each + (box.place < left))

    def on_resize(self) -> None:
        self._share()

    def show(self, columns: Sequence[CaptionColumn]) -> None:
        """Show captions; as many as there are boxes."""
        for box, column in zip(self.boxes, columns, strict=False):
            box.show(column)

    def top(self) -> None:
        """Every caption from its beginning."""
        for box in self.boxes:
            box.scroll_home(animate=False)
