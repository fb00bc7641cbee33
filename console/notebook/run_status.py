"""The table of runs under a monitor's curves, and what the curves leave out, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from console.curves.visible import Visible
from console.formatting import GLYPHS
from console.notebook.html import escape, table
from console.runs.series import MetricSeries
from console.runs.store import Run
from qwen3vl_core.formats import number, span
from qwen3vl_core.run_metrics import LOSS, STEP_SECONDS, TOKENS_PER_SECOND, title_of
from qwen3vl_core.run_record import ALIVE, TRAIN

IN_TABLE = (LOSS, TOKENS_PER_SECOND)
"""Metrics of the table."""


def status_row(run: Run, status: str, series: MetricSeries, colour: str) -> list[str]:
    """A run's row: name in its colour, status, step, last metrics, time left."""
    row, total = series.latest.get(TRAIN, {}), series.train_iters
    step = row.get("step")
    left = "–"
    if status in ALIVE and isinstance(step, int) and total and isinstance(seconds := row.get(STEP_SECONDS), int | float):
        left = span((total - step) * seconds)
    progress = f"{step}/{total}" if step is not None and total else "–" if step is None else str(step)
    cells = [progress, *(number(row.get(key)) for key in IN_TABLE), left]
    dot = f'<span style="color:{colour}">●</span>'
    return [f"{dot} {escape(run.id)}", f"{GLYPHS[status]} {escape(status)}", *map(escape, cells)]


def status_table(rows: Iterable[Sequence[str]]) -> str:
    """The table of these rows."""
    return table(("run", "status", "step", *map(title_of, IN_TABLE), "left"), rows)


def left_out(cut: Visible | None, over: str, lacking: Sequence[str]) -> str:
    """What is not in the picture; empty for nothing. over: what x counts; lacking: ids of runs that record nothing to count it."""
    parts = [] if cut is None else [
        f"outside of y, as they are far from all others: {cut.spikes} points; without “cut spikes” they are shown"
    ]  # fmt: skip
    parts += [f"not drawn, as nothing is recorded to count {over}: {', '.join(lacking)}"] if lacking else []
    return "".join(f'<div class="dim">{escape(part)}</div>' for part in parts)
