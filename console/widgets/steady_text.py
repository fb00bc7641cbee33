"""Text that is shown again and again, and drawn when it has changed."""

from __future__ import annotations

from textual.content import Content
from textual.visual import VisualType
from textual.widgets import Static


class SteadyText(Static):
    """A Static whose `update` with what it shows already does nothing: a new layout sends the whole screen to the terminal."""

    _last: object = None

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Show text. layout: as `Static.update`."""
        # contents are equal by their text alone
        shown = (content.plain, tuple(content.spans)) if isinstance(content, Content) else content
        if shown != self._last:
            self._last = shown
            super().update(content, layout=layout)
