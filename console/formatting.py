"""Statuses, small curves and foreign text on a terminal. No screen; numbers and times are in `qwen3vl_core.formats`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

GLYPHS = {
    "starting": "◌", "running": "▶", "stopping": "◍", "done": "✓", "failed": "✗", "stopped": "■", "lost": "?",
}  # fmt: skip
"""A run's status at a glance, also without colour."""
COLOURS = {
    "starting": "text-accent", "running": "text-primary", "stopping": "text-warning", "done": "text-success",
    "failed": "text-error", "stopped": "text-warning", "lost": "text-error",
}  # fmt: skip
"""Theme variables."""

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float], width: int) -> str:
    """At most `width` block characters: the mean of each part of the finite values."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return ""
    cells = min(width, len(finite))
    edges = [round(k * len(finite) / cells) for k in range(cells + 1)]
    means = [sum(finite[a:z]) / (z - a) for a, z in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale) if scale else 3] for mean in means)


def printable(text: object) -> str:
    """Text without control characters: they must not reach the terminal. Lines and tabs stay, as line ends and blanks."""
    text = str(text).expandtabs(4)
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def one_line(text: object, width: int = 300) -> str:
    """Text on one line, without control characters, cut with an ellipsis."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
