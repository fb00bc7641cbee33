"""A list whose entries can be marked: `[x]` and `[ ]`, which are told apart without colours."""

from __future__ import annotations

from typing import TypeVar

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widgets import SelectionList
from textual.widgets._toggle_button import ToggleButton

Value = TypeVar("Value")


class MarkList(SelectionList[Value]):
    """A SelectionList that shows whether an entry is marked by a character; Textual's shows it by a colour alone."""

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        segments = list(strip)
        if len(segments) < 4 or segments[1].text != ToggleButton.BUTTON_INNER:
            return strip  # a line without an entry
        option = self.get_option_at_index(self.scroll_offset.y + y)
        marked = option.value in self._selected
        under, button = segments[3].style or Style(), segments[1].style or Style()
        pen = under + Style(bold=marked, meta=button.meta)
        return Strip([Segment("[x]" if marked else "[ ]", pen), *segments[3:]])
