"""Glyphs and colours of statuses, sparklines, paths, and text on one line. Numbers, times and `printable` are in `qwen3vl_core.formats`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from qwen3vl_core.formats import parameter_count, printable
from qwen3vl_core.language import CHINESE, language, phrase, tr
from qwen3vl_core.run_metrics import METRICS, title_of

GLYPHS = {
    "queued": "◷", "starting": "◌", "running": "▶", "stopping": "◍", "done": "✓", "failed": "✗", "stopped": "■", "lost": "?",
}  # fmt: skip
"""The glyph of each status, distinct without colour."""
COLOURS = {
    "queued": "muted", "starting": "text-accent", "running": "text-primary", "stopping": "text-warning", "done": "text-success",
    "failed": "text-error", "stopped": "text-warning", "lost": "text-error",
}  # fmt: skip
"""The theme variable of each status."""

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float], width: int) -> str:
    """At most `width` block characters, each for the mean of a part of the finite values."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return ""
    cells = min(width, len(finite))
    edges = [round(k * len(finite) / cells) for k in range(cells + 1)]
    means = [sum(finite[a:z]) / (z - a) for a, z in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale) if scale else 3] for mean in means)


def one_line(text: object, width: int = 300) -> str:
    """Printable text on one line, cut with an ellipsis."""
    line = " ".join(printable(text).split())
    if len(line) * 2 <= width or (line.isascii() and len(line) <= width):
        return line
    return cut(line, width)


def cut(line: str, width: int) -> str:
    """Text in at most `width` cells, of which a Chinese character takes two; a longer one ends with an ellipsis."""
    if line.isascii():
        return line if len(line) <= width else line[: width - 1] + "…"
    from rich.cells import cell_len, set_cell_size  # late: few lines need it

    return line if cell_len(line) <= width else set_cell_size(line, max(width - 1, 0)) + "…"


def runs_text(count: int) -> str:
    """`1 run`, `1,200 runs`."""
    return tr("1 run") if count == 1 else tr("{count:,} runs", count=count)


def parameters_text(count: float) -> str:
    """`8.77 billion`; in Chinese `87.7 亿`."""
    if language() == CHINESE:
        return f"{count / 1e8:.1f} 亿" if count >= 1e8 else f"{count / 1e4:.0f} 万"
    return parameter_count(count)


def metric_title(key: str) -> str:
    """The title of a metric in the user's language: `grad norm`, `val loss`."""
    return tr(title_of(key))


def metric_label(key: str) -> str:
    """Title and unit of a metric."""
    unit = METRICS[key].unit if key in METRICS else ""
    return f"{metric_title(key)} ({tr(unit)})" if unit and unit != METRICS[key].title else metric_title(key)


def gpu_text(gpu: Any) -> str:
    """Who uses a GPU: `free`, a run, `another process (4711)`. gpu: a `GpuUse`."""
    return tr("free") if gpu.free else gpu.words.replace("another process", tr("another process"))


def error_text(error: Exception) -> str:
    """An error for people, in their language where it is one of ours."""
    told = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else str(error)
    return str(getattr(error, "shown", phrase(told)))


def cause_text(error: str) -> str:
    """A run's recorded error, whose head is a known cause: `out of GPU memory: torch.OutOfMemoryError …`."""
    head, colon, rest = error.partition(": ")
    return tr(head) + colon + rest


def plain_json(value: Any) -> Any:
    """The value with NaN and infinity as null."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short_path(path: Path | str, width: int) -> str:
    """A path with `~` for the home folder; a long one keeps its end: `…/demo/runs`."""
    text, home = one_line(path, 4096), os.path.expanduser("~")
    text = "~" + text[len(home) :] if text == home or text.startswith(home + "/") else text
    if len(text) <= width:
        return text
    parts = text.split("/")
    while len(parts) > 2 and len("/".join(parts)) + 2 > width:
        parts = parts[1:]
    ends = "…/" + "/".join(parts)
    return ends if len(ends) <= width else "…" + text[-(width - 1) :] if width > 1 else "…"[:width]
