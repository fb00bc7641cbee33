"""The exact command of a form, with a button that copies it."""

from __future__ import annotations

from pathlib import Path

import anywidget
import ipywidgets as W
from traitlets import Instance, Unicode


class CommandText(W.Widget):
    """The command, as a plain model: anywidget drops messages to a widget that loads slowly."""

    text = Unicode().tag(sync=True)


class CommandLine(anywidget.AnyWidget):
    """A command as text that wraps, and a button that copies it."""

    _esm = Path(__file__).with_name("command_line.js")
    shown = Instance(CommandText, args=()).tag(sync=True, **W.widget_serialization)

    @property
    def text(self) -> str:
        """The command."""
        return self.shown.text

    @text.setter
    def text(self, text: str) -> None:
        self.shown.text = text

    def close(self) -> None:
        """Close it and its text."""
        if self.trait_has_value("shown"):
            self.shown.close()
        super().close()
