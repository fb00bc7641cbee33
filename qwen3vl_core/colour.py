"""Colours of what commands print on a terminal. NO_COLOR turns them off; what is piped or written to a file has none."""

from __future__ import annotations

import os
import sys
from typing import Any

CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def coloured(stream: Any = None) -> bool:
    """Whether text for this stream (None: standard output) is coloured."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # closed, or no file at all
        return False


def paint(text: str, colour: str, stream: Any = None) -> str:
    """The text in a colour of CODES where the stream shows colours, else the text itself."""
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if text and coloured(stream) else text
