"""Small charts of a run's other metrics beside the large one; a click makes one of them the large one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.strip import Strip

from console.curves.lines import CurveLine
from console.formatting import metric_title
from console.widgets.curve import Curve
from qwen3vl_core.formats import number
from qwen3vl_core.run_metrics import GRAD_NORM, LOSS, LR, MEMORY, MFU, STEP_SECONDS, TOKENS_PER_SECOND

CHARTED = (LOSS, GRAD_NORM, LR, TOKENS_PER_SECOND, MFU, MEMORY, STEP_SECONDS)
"""Metrics that have a small chart, in their order."""
NARROWEST = 22
"""Columns of a chart that still has room for its axis."""


class SmallChart(Curve, can_focus=False):
    """One of them: its name and last value, its curve."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = ""

    def _legend(self, width: int) -> Strip:
        base, _, text, _, _ = self._styles()
        value = ""
        if self.lines:
            finite = self.lines[0].y[np.isfinite(self.lines[0].y)]
            value = number(float(finite[-1])) if len(finite) else ""
        return Strip([Segment(" ", base), Segment(self.title, text + Style(bold=True)), Segment(f"  {value}", text)]).adjust_cell_length(
            width, base
        )

    def on_mouse_down(self, event: events.MouseDown) -> None:
        event.prevent_default()  # it is not dragged

    def on_click(self) -> None:
        self.post_message(ChartGrid.Chosen(self.metric))


class ChartGrid(Horizontal):
    """A row of small charts, as many as fit."""

    class Chosen(Message):
        """A chart was clicked."""

        def __init__(self, metric: str) -> None:
            self.metric = metric
            super().__init__()

    def compose(self) -> ComposeResult:
        for _ in CHARTED:
            yield SmallChart()

    def show(self, charts: Mapping[str, CurveLine], room: int) -> None:
        """Show these metrics' lines in the order of CHARTED, as many as fit into `room` columns."""
        names = [name for name in CHARTED if name in charts][: max(room // NARROWEST, 1)]
        self.display = bool(names)
        for place, chart in enumerate(self.query(SmallChart)):
            chart.display = place < len(names)
            if place < len(names):
                name = names[place]
                if chart.metric != name:
                    chart.metric, chart.view = name, None
                chart.show([charts[name]], metric_title(name))
