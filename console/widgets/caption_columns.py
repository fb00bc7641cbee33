"""Captions of one picture side by side, each in a scrollable box."""

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
"""Smallest width of a box in columns; boxes that do not fit are scrolled to."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class CaptionColumn:
    """Content of one box."""

    title: Content
    text: Content
    foot: Content
    best: bool = False
    """Whether its caption was voted best."""

    @property
    def look(self) -> tuple[Any, ...]:
        """Key that is equal if both look the same. Textual's contents compare equal if only their texts do."""
        return self.best, *((part.plain, tuple(part.spans)) for part in (self.title, self.text, self.foot))


class CaptionBox(VerticalScroll, inherit_bindings=False):
    """Scrolls vertically only: left and right go to another picture."""

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
        """Show a caption, unless it is already shown."""
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
    """One box per caption; boxes that do not fit are scrolled to when they get the focus."""

    class Voted(Message):
        """A box was double-clicked: a vote for its caption."""

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
        """The boxes from left to right."""
        return list(self.query(CaptionBox))

    @property
    def focused_place(self) -> int:
        """Index of the focused box; 0 if none has the focus."""
        return next((box.place for box in self.boxes if box.has_focus), 0)

    async def fit(self, count: int) -> None:
        """Set the number of boxes."""
        if count == self._count:
            return
        for box in self.boxes[count:]:
            await box.remove()
        await self.mount_all(CaptionBox(place) for place in range(self._count, count))
        self._count = count
        self._share()

    def _share(self) -> None:
        """Give each box the same width; remaining columns go to the first ones."""
        each, left = divmod(self.size.width, max(self._count, 1))
        for box in self.boxes:
            box.styles.width = max(NARROWEST, each + (box.place < left))

    def on_resize(self) -> None:
        self._share()

    def show(self, columns: Sequence[CaptionColumn]) -> None:
        """Show captions, one per box."""
        for box, column in zip(self.boxes, columns, strict=False):
            box.show(column)

    def top(self) -> None:
        """Scroll each caption to its beginning."""
        for box in self.boxes:
            box.scroll_home(animate=False)
