"""Curves as a plain SVG, for viewers without scripts and for files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from console.curves.ticks import step_ticks, value_range, value_ticks
from console.notebook.html import escape

LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 44
"""Margins of the drawing, in pixels."""
LEGEND = 16
"""Height of a line of the legend."""


@dataclass(frozen=True)
class SvgLine:
    """One line: x [n] and y [n], where NaN is a gap; a line without a name is not in the legend."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    width: float = 1.6
    opacity: float = 1.0
    dash: bool = False


def _path(x: np.ndarray, y: np.ndarray) -> str:
    steps, pen = [], "M"
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(py):
            steps.append(f"{pen}{px:.1f} {py:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(steps)


def drawing(
    lines: Sequence[SvgLine],
    *,
    x_title: str = "step",
    y_title: str = "",
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    width: int = 720,
    height: int = 320,
    paper: str = "",
) -> str:
    """Lines with axes and a legend above them, as an SVG element. y_range: what lies outside ends at the edge; None: all is inside.
    paper: background colour; empty: transparent."""
    with np.errstate(invalid="ignore", divide="ignore"):
        points = [(line, np.asarray(line.x, float), np.asarray(line.y, float)) for line in lines]
        drawn = [(line, x, np.log10(np.where(y > 0, y, np.nan)) if log_y else y) for line, x, y in points]
    xs = np.concatenate([np.empty(0), *(x[np.isfinite(y)] for _, x, y in drawn)])
    ys = np.concatenate([np.empty(0), *(y[np.isfinite(y)] for _, _, y in drawn)])
    if not len(xs):
        return '<p class="dim">no points yet</p>'
    x0, x1 = float(xs.min()), float(xs.max())
    x1 = x1 if x1 > x0 else x0 + 1
    y0, y1 = y_range or value_range(float(ys.min()), float(ys.max()), log_y)
    right, bottom = width - RIGHT, height - BOTTOM
    top = TOP + LEGEND * sum(bool(line.name) for line in lines)

    def across(x: Any) -> Any:
        return LEFT + (x - x0) / (x1 - x0) * (right - LEFT)

    def down(y: Any) -> Any:
        return bottom - (np.clip(y, y0, y1) - y0) / (y1 - y0) * (bottom - top)

    parts = [f'<rect width="{width}" height="{height}" fill="{paper}"/>'] if paper else []
    few = x_title != "step" and x1 - x0 < 8  # hours, between which there are more ticks
    for step, label in value_ticks(x0, x1, 8) if few else step_ticks(x0, x1, 8):
        parts.append(f'<text x="{across(step):.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for tick, label in value_ticks(y0, y1, 6, log_y):
        parts.append(f'<path class="grid" d="M{LEFT} {down(tick):.1f}H{right}" stroke="currentColor" opacity=".15"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<path class="axes" d="M{LEFT} {top}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".5"/>')
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">{escape(x_title)}</text>')
    middle = (top + bottom) / 2
    parts.append(f'<text x="14" y="{middle:.0f}" transform="rotate(-90 14 {middle:.0f})" text-anchor="middle">{escape(y_title)}</text>')
    legend = 0
    for line, x, y in drawn:
        dash = ' stroke-dasharray="4 3"' if line.dash else ""
        looks = f'fill="none" stroke="{line.colour}" stroke-width="{line.width}" opacity="{line.opacity}" stroke-linejoin="round"{dash}'
        parts.append(f'<path class="line" d="{_path(across(x), down(y))}" {looks}/>')
        if line.name:
            at = TOP + 8 + LEGEND * legend
            parts.append(f'<path d="M{LEFT} {at - 4}H{LEFT + 20}" {looks}/>')
            parts.append(f'<text x="{LEFT + 26}" y="{at}">{escape(line.name)}</text>')
            legend += 1
    # text has the page's colour, in a file black
    looks = 'font-size="12" font-family="DejaVu Sans, sans-serif" fill="currentColor"'
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {looks}>{"".join(parts)}</svg>'
