"""Builds HTML for widgets and for static viewers, which cannot show widgets. All text is escaped here."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from console.runs.run_text import plain
from qwen3vl_core import limits
from qwen3vl_core.files import open_regular

SIDE = 480
"""Longest side of a shown picture, in pixels."""
COLOURS = ("#3b7dd8", "#d9822b", "#2a9d61", "#b8479c", "#8a6fd1", "#c0483f", "#2a9aa8", "#8c8c2b")
STYLE = """<style>
.qwen3vl { line-height: 1.5; }
.qwen3vl table { border-collapse: collapse; }
.qwen3vl th, .qwen3vl td { text-align: left !important; vertical-align: top; padding: 2px 10px 2px 0; }
.qwen3vl del { background: rgba(214, 69, 65, .22); }
.qwen3vl ins { background: rgba(42, 157, 97, .26); text-decoration: none; font-weight: 600; }
.qwen3vl mark { background: rgba(217, 130, 43, .30); color: inherit; }
.qwen3vl .caption mark { background: rgba(59, 125, 216, .30); font-weight: 600; }
.qwen3vl .dim { opacity: .65; }
.qwen3vl .caption { line-height: 1.5; margin: 4px 0 8px; }
.qwen3vl .bad { color: #c0483f; }
.qwen3vl .good { color: #2a9d61; }
.qwen3vl pre, .qwen3vl code { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; line-height: 1.35; margin: 0; }
.qwen3vl .memory { position: relative; display: flex; height: 14px; max-width: 720px; margin: 3px 0; background: rgba(128, 128, 128, .18); }
.qwen3vl .memory i { position: absolute; top: -3px; bottom: -3px; border-left: 2px solid currentColor; }
.qwen3vl-lines select { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
</style>"""


def escape(value: object) -> str:
    """Any value as text in HTML, without control characters except line ends."""
    return "<br>".join(html.escape(plain(line)) for line in str(value).split("\n"))


def box(content: str) -> str:
    """Wrap HTML in this package's style."""
    return f'{STYLE}<div class="qwen3vl">{content}</div>'


def say(text: str, kind: str = "") -> str:
    """A line of text. kind: `bad` or `good`, which also have a mark, for readers without colour; or `dim`."""
    mark = {"bad": "✗ ", "good": "✓ "}.get(kind, "")
    return box(f'<span class="{kind}">{mark}{escape(text)}</span>') if text else ""


def code(text: str) -> str:
    """A block of monospaced text: a command, or lines of a log."""
    return box(f"<pre>{html.escape(chr(10).join(plain(line) for line in text.splitlines()))}</pre>")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. rows: cells of HTML. head: text, which is escaped."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def read_picture(source: Path | bytes, side: int = SIDE) -> bytes:
    """A picture as JPEG, upright, at most `side` pixels wide and high. Raises ValueError with the reason."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source, links=True) as data, Image.open(data) as opened:
            if opened.width * opened.height > limits.PICTURE_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels")
            opened.draft("RGB", (side, side))
            image = ImageOps.exif_transpose(opened)
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            if image.mode in ("RGBA", "LA", "P"):
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=85)
            return file.getvalue()
    except Exception as error:
        # Pillow raises errors of many types
        raise ValueError(f"{type(error).__name__}: {error}") from None


def picture(source: Path | bytes, side: int = 240) -> str:
    """A picture embedded in the page, or the reason why it cannot be shown."""
    try:
        data = base64.b64encode(read_picture(source, side)).decode("ascii")
    except ValueError as error:
        return f'<span class="dim">{escape(error)}</span>'
    return f'<img src="data:image/jpeg;base64,{data}" style="max-width:{side}px">'
