"""The base class of the boxes over a screen."""

from __future__ import annotations

from typing import TypeVar

from textual import events
from textual.screen import ModalScreen, Screen

Answer = TypeVar("Answer")

SHRINKING = "OptionList, .words"
"""What gives way in a box that is too tall: it scrolls. The headline, the buttons and the keys stay."""
LEAST_ROWS = 2


class Dialog(ModalScreen[Answer]):
    """A box with the class `dialog` over a screen, which shows through; its style is read when the first one is shown."""

    CSS_PATH = "dialog.tcss"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (24, "-tall")]  # noqa: RUF012  Textual declares it without ClassVar

    def _on_mount(self, event: events.Mount) -> None:
        # Textual calls its own one and a subclass's on_mount, too
        self.screen_layout_refresh_signal.subscribe(self, self._fit)

    def _fit(self, screen: Screen[Answer]) -> None:
        """Leave its keys in view: lists and texts get the rows that the rest does not need."""
        boxes = self.query(".dialog")
        if not boxes:
            return
        box = boxes.first()
        shrinking = [child for child in box.query(SHRINKING) if child.parent is box and child.display]
        fixed = [child for child in box.children if child.display and child not in shrinking]
        if not shrinking:
            return
        needed = sum(child.outer_size.height + child.styles.margin.top + child.styles.margin.bottom for child in fixed)
        most = box.styles.max_height
        share = (most.value or 90.0) / 100 if most is not None and most.is_percent else 0.9
        room = int(self.size.height * share) - box.gutter.height - needed
        for child in shrinking:
            rows = max(room // len(shrinking), LEAST_ROWS)
            if child.styles.max_height is None or child.styles.max_height.value != rows or child.styles.max_height.is_percent:
                child.styles.max_height = rows
