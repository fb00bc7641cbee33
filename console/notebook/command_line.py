"""The exact command of a form, with a button that copies it."""

from __future__ import annotations

from pathlib import Path

import anywidget
from traitlets import Unicode


class CommandLine(anywidget.AnyWidget):
    """A command as text that wraps, and a button that copies it."""

    _esm = Path(__file__).with_name("command_line.js")
    text = Unicode().tag(sync=True)
