"""Curves as a plain SVG: for viewers that run no script, and as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from console.notebook.html import escape

LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 44
"""Margins of the drawing, pixels."""


@dataclass(frozen=True)
class SvgLine:
    """One line: x [n] and y [n], NaN is a gap; without a name it is not in the legend."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    width: float = 1.6
    opacity: float = 1.0
    dash: bool = False


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most about `most`."""
    rough = (high - low) / most
    if not (math.isfinite(rough) and rough > 0):
        return [low]
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, both exponents; within one or two, other round numbers."""
    if high - low > 1.5:
        every = max(math.ceil((high - low) / 8), 1)
        return [float(n) for n in range(math.ceil(low), math.floor(high) + 1, every)]
    return [math.log10(t) for t in round_ticks(10**low, 10**high) if t > 0]


def _range(values: np.ndarray, room: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    edge = (high - low) * room or abs(high) * room or room
    return (low - edge, high + edge) if room else (low, high if high > low else low + 1)


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
    lines: Sequence[SvgLine], *, y_title: str = "", log_y: bool = False, width: int = 720, height: int = 320, paper: str = ""
) -> str:
    """Lines over the step, with axes and a legend, as an SVG element. paper: colour of the ground; none is what is behind it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = [(line, np.asarray(line.x, float), np.asarray(line.y, float)) for line in lines]
        drawn = [(line, x, np.log10(np.where(y > 0, y, np.nan)) if log_y else y) for line, x, y in drawn]
    xs, ys = (np.concatenate([np.empty(0), *(v[i][np.isfinite(v[2])] for v in drawn)]) for i in (1, 2))
    if not len(xs):
        return '<p class="dim">no points yet</p>'
    (x0, x1), (y0, y1) = _range(xs, 0), _range(ys, 0.04)
    right, bottom = width - RIGHT, height - BOTTOM

    def across(x):
        return LEFT + (x - x0) / (x1 - x0) * (right - LEFT)

    def down(y):
        return bottom - (y - y0) / (y1 - y0) * (bottom - TOP)

    parts = [f'<rect width="{width}" height="{height}" fill="{paper}"/>'] if paper else []
    for tick in round_ticks(x0, x1, 8):
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in _log_ticks(y0, y1) if log_y else round_ticks(y0, y1):
        parts.append(f'<path class="grid" d="M{LEFT} {down(tick):.1f}H{right}" stroke="currentColor" opacity=".15"/>')
        label = f"{10**tick:.4g}" if log_y else f"{tick:.6g}"
        parts.append(f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<path class="axes" d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".5"/>')
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">step</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="14" y="{middle:.0f}" transform="rotate(-90 14 {middle:.0f})" text-anchor="middle">{escape(y_title)}</text>')
    legend = 0
    for line, x, y in drawn:
        dash = ' stroke-dasharray="4 3"' if line.dash else ""
        looks = f'fill="none" stroke="{line.colour}" stroke-width="{line.width}" opacity="{line.opacity}" stroke-linejoin="round"{dash}'
        parts.append(f'<path class="line" d="{_path(across(x), down(y))}" {looks}/>')
        if line.name:
            at = TOP + 14 + 16 * legend
            parts.append(f'<path d="M{right - 26} {at - 4}H{right - 6}" {looks}/>')
            parts.append(f'<text x="{right - 32}" y="{at}" text-anchor="end">{escape(line.name)}</text>')
            legend += 1
    # the colour of the text is the page's, and black where it is a file
    looks = 'font-size="12" font-family="DejaVu Sans, sans-serif" fill="currentColor"'
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {looks}>{"".join(parts)}</svg>'
