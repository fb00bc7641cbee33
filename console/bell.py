"""Tells the user at the terminal that a run they follow has ended: the bell and a notification (OSC 9). Imports no Textual."""

from __future__ import annotations

import os
from typing import IO, Any

from qwen3vl_core.formats import printable

VARIABLE = "QWEN3VL_BELL"
"""0: no bell and no notification, whatever the settings say."""
LONGEST = 200


def is_on() -> bool:
    """Whether the user wants it: the environment variable, else the settings."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen:
        return chosen.lower() not in ("0", "off", "no", "false")
    from console.settings import read_settings  # late: at the end of a run

    return read_settings((), ()).bell


def sequence(text: str) -> str:
    """What a terminal gets: the notification, which terminals without it ignore, and the bell."""
    return f"\x1b]9;{printable(text)[:LONGEST]}\x1b\\\a"


def ring(text: str, stream: IO[Any]) -> None:
    """Write it to a stream that is a terminal; to nothing else."""
    try:
        if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb") and is_on():
            stream.write(sequence(text))
            stream.flush()
    except (OSError, ValueError):
        return  # the terminal is gone
