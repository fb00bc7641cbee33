"""Small curves of many metrics at once, in a grid as wide as the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as W

from console.notebook.html import box

WIDTH, HEIGHT = 340, 170
POINTS = 200
"""Most points of a line."""
_STYLE = (
    "<style>.qwen3vl .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 8px; }"
    ".qwen3vl .grid svg { width: 100%; height: auto; }</style>"
)


class MetricGrid(W.HTML):
    """A drawing of each metric; drawn again when what is shown changes."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: object = None

    def show(self, metrics: Sequence[str], now: object, draw: Callable[[str], str]) -> None:
        """Draw these metrics unless `now`, which tells one state of the runs from another, is what is shown. draw: metric -> SVG."""
        if (tuple(metrics), now) == self._shown:
            return
        self._shown = (tuple(metrics), now)
        self.value = (
            box(_STYLE + f'<div class="grid">{"".join(f"<div>{draw(metric)}</div>" for metric in metrics)}</div>') if metrics else ""
        )
