"""Pieces of HTML: what a widget shows, and what a static viewer gets in its place. All text is escaped here."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from console.runs.text import plain

SIDE = 480
"""Longest side of a shown picture, pixels."""
COLOURS = ("#3b7dd8", "#d9822b", "#2a9d61", "#b8479c", "#8a6fd1", "#c0483f", "#2a9aa8", "#8c8c2b")
STYLE = """<style>
.qwen3vl table { border-collapse: collapse; }
.qwen3vl th, .qwen3vl td { text-align: left; vertical-align: top; padding: 2px 10px 2px 0; }
.qwen3vl del { background: rgba(214, 69, 65, .22); }
.qwen3vl ins { background: rgba(42, 157, 97, .26); text-decoration: none; font-weight: 600; }
.qwen3vl mark { background: rgba(217, 130, 43, .30); color: inherit; }
.qwen3vl .dim { opacity: .65; }
.qwen3vl .bad { color: #c0483f; }
.qwen3vl .good { color: #2a9d61; }
.qwen3vl pre, .qwen3vl code { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; line-height: 1.35; margin: 0; }
.qwen3vl-lines select { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
</style>"""


def escape(value: object) -> str:
    """Any value as text in HTML, without control characters except line ends."""
    return "<br>".join(html.escape(plain(line)) for line in str(value).split("\n"))


def box(content: str) -> str:
    """HTML with this package's style."""
    return f'{STYLE}<div class="qwen3vl">{content}</div>'


def say(text: str, kind: str = "") -> str:
    """One line; kind: `bad`, `good`, `dim`. The mark before it tells them apart without colour."""
    mark = {"bad": "✗ ", "good": "✓ "}.get(kind, "")
    return box(f'<span class="{kind}">{mark}{escape(text)}</span>') if text else ""


def code(text: str) -> str:
    """A command or lines of a log."""
    return box(f"<pre>{html.escape(chr(10).join(plain(line) for line in text.splitlines()))}</pre>")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def read_picture(source: Path | bytes, side: int = SIDE) -> bytes:
    """A picture as JPEG, upright, at most `side` pixels wide and high. Raises ValueError with the reason."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.draft("RGB", (side, side))
            image = ImageOps.exif_transpose(opened)
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            if image.mode in ("RGBA", "LA", "P"):
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=85)
            return file.getvalue()
    except Exception as error:
        # Pillow raises what its decoders raise
        raise ValueError(f"{type(error).__name__}: {error}") from None


def picture(source: Path | bytes, side: int = 240) -> str:
    """A picture inside the page, or why it cannot be shown."""
    try:
        data = base64.b64encode(read_picture(source, side)).decode("ascii")
    except ValueError as error:
        return f'<span class="dim">{escape(error)}</span>'
    return f'<img src="data:image/jpeg;base64,{data}" style="max-width:{side}px">'


def curve(lines: Sequence[tuple[str, np.ndarray, np.ndarray]], width: int = 640, height: int = 240) -> str:
    """Lines (name, x [n], y [n]) as a plain SVG for viewers that run no script; NaN is a gap."""
    lines = [(name, np.asarray(x, float), np.asarray(y, float)) for name, x, y in lines]
    finite = [(x[np.isfinite(y)], y[np.isfinite(y)]) for _, x, y in lines]
    xs, ys = (np.concatenate([pair[i] for pair in finite]) if finite else np.empty(0) for i in (0, 1))
    if not len(xs):
        return '<p class="dim">no points yet</p>'
    x0, x1, y0, y1 = xs.min(), xs.max(), ys.min(), ys.max()
    left, bottom = 60, height - 24

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return left + (x - x0) / ((x1 - x0) or 1) * (width - left - 10), bottom - (y - y0) / ((y1 - y0) or 1) * (bottom - 10)

    parts = []
    for number, (name, x, y) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path, pen = [], "M"
        for px, py in zip(*place(x, y), strict=True):
            if math.isfinite(py):
                path.append(f"{pen}{px:.1f} {py:.1f}")
                pen = "L"
            else:
                pen = "M"
        parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{width - 10}" y="{22 + 15 * number}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
    ends = ((left - 6, 16, "end", y1), (left - 6, bottom, "end", y0), (left, height - 6, "start", x0), (width - 10, height - 6, "end", x1))
    labels = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor">{v:.4g}</text>' for x, y, anchor, v in ends)
    axes = f'<path d="M{left} 10V{bottom}H{width - 10}" fill="none" stroke="currentColor" opacity=".4"/>'
    looks = f'viewBox="0 0 {width} {height}" width="{width}" font-size="12" font-family="sans-serif"'
    return f"<svg {looks}>{axes}{''.join(parts)}{labels}</svg>"
