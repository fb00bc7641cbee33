"""Numbers, times and states as a person reads them in a narrow column. No screen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

GLYPHS = {
    "starting": "◌", "running": "▶", "stopping": "◼", "done": "✓", "failed": "✗", "stopped": "■", "lost": "?",
}  # fmt: skip
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


def number(value: float | None, digits: int = 4) -> str:
    """About `digits` significant digits: 1.214, 0.0123, 1.2e-5, 41.2k."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else "nan" if math.isnan(value) else "inf"
    size = abs(value)
    if size >= 10_000:
        for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= unit:
                return f"{value / unit:.3g}{name}"
    if size and size < 1e-3:
        mantissa, power = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.{digits}g}"


def tick(value: float, step: float) -> str:
    """A tick's label, with as many places as its distance to the next needs."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 1e-3:
        return number(value, 3)
    places = max(0, -math.floor(math.log10(abs(step) * 1.0000001))) if step else 3
    return f"{value:.{min(places, 6)}f}"


def span(seconds: float | None) -> str:
    """A time in one unit: 42s, 7m, 3h, 12d."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    seconds = max(0.0, seconds)
    for size, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{name}"
    return f"{int(seconds)}s"


def printable(text: object) -> str:
    """Text without control characters: they must not reach the terminal. Lines and tabs stay, as line ends and blanks."""
    text = str(text).expandtabs(4)
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def one_line(text: object, width: int = 300) -> str:
    """Text on one line, without control characters, cut with an ellipsis."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
