"""The lines of a monitor's figure: how one looks, in plotly and as SVG, and which colour belongs to which run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from console.notebook.html import COLOURS
from console.notebook.svg import SvgLine
from console.runs.store import Run

DIM = 0.45
"""Opacity of the raw values under the smoothed line."""


@dataclass(frozen=True)
class Trace:
    """One line of the figure."""

    key: tuple[str, str]
    """(id of the run, `raw`, `smooth` or `eval`)."""
    x: np.ndarray
    y: np.ndarray
    colour: str


class RunColours:
    """A colour for each run, which stays while others come and go: by its number, or if a run beside it has that one, the next."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}

    def of(self, run: Run, shown: Sequence[Run]) -> str:
        """The colour of one of the shown runs."""
        if run.id not in self._slots:
            taken = {self._slots[other.id] for other in shown if other.id in self._slots}
            wanted = [(run.number - 1 + place) % len(COLOURS) for place in range(len(COLOURS))]
            self._slots[run.id] = next((slot for slot in wanted if slot not in taken), wanted[0])
        return COLOURS[self._slots[run.id]]


def scatter(trace: Trace, smoothed: bool) -> go.Scatter:
    """A line for plotly. smoothed: whether its run has an average, under which the values themselves are faint."""
    run, role = trace.key
    looks: dict[str, dict[str, Any]] = {
        "raw": {
            "line": {"color": trace.colour, "width": 1 if smoothed else 1.8}, "opacity": DIM if smoothed else 1.0,
            "showlegend": not smoothed,
        },
        "smooth": {"line": {"color": trace.colour, "width": 2.2}},
        "eval": {
            "line": {"color": trace.colour, "width": 1.5, "dash": "dot"}, "mode": "lines+markers",
            "marker": {"size": 7, "symbol": "diamond"},
        },
    }  # fmt: skip
    name = {"raw": f"{run} as measured" if smoothed else run, "smooth": run, "eval": f"{run} val"}[role]
    fixed = {"name": name, "meta": list(trace.key), "mode": "lines", "connectgaps": False, "legendgroup": run}
    return go.Scatter(x=trace.x, y=trace.y, **{**fixed, **looks[role]})


def svg_line(trace: Trace, smoothed: bool) -> SvgLine:
    """The same line for `svg.drawing`."""
    run, role = trace.key
    dim = role == "raw" and smoothed
    name = "" if dim else f"{run} val" if role == "eval" else run
    return SvgLine(name, trace.x, trace.y, trace.colour, 1.0 if dim else 1.8, DIM if dim else 1.0, role == "eval")
