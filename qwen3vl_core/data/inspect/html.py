"""The summary of data as one self-contained HTML page. Imports no torch."""

from __future__ import annotations

import base64
import html

from qwen3vl_core.data.inspect.show import ShownSample, TextPiece, jpeg
from qwen3vl_core.data.inspect.survey import DataSurvey, summary_lines
from qwen3vl_core.formats import printable

SAMPLES = 24
"""A page shows at least this many samples, if there are as many."""
_STYLE = """\
:root { color-scheme: light dark; --ink: #1a1c20; --soft: #666d78; --paper: #fff; --edge: #d8dce2;
  --mark: #cdeccd; --bar: #4a7bd0; --out: #c9a0a0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #98a0ac; --paper: #16181c; --edge: #343a44; --mark: #1f4d2a; --bar: #6d9aeb; --out: #7a4a4a; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; margin: 0; }
mark { background: var(--mark); color: inherit; border-radius: 3px; }
.medium { color: var(--soft); border: 1px solid var(--edge); border-radius: 4px; padding: 0 .3em; }
section { border-top: 1px solid var(--edge); padding: 1rem 0; }
figure { display: inline-block; margin: 0 1rem 1rem 0; } figcaption { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; } td { padding: 1px .5rem; text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 40rem; } td.bar div { background: var(--bar); height: .9rem; } td.bar div.out { background: var(--out); }
.problem { color: #c03030; }
"""


def page(summary: DataSurvey, shown: list[ShownSample]) -> str:
    """The whole page; it loads no other file."""
    title = html.escape(printable(summary.path))
    facts = "\n".join(summary_lines(summary, histogram=False))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<pre>{html.escape(facts)}</pre>
{_histogram(summary)}
<p>Trained text is <mark>marked</mark>.</p>
{"".join(map(_sample, shown))}
</body></html>
"""


def _histogram(summary: DataSurvey) -> str:
    if not summary.histogram:
        return ""
    most = max(count for _, _, count in summary.histogram)
    lines = []
    for begin, end, count in summary.histogram:
        css_class = ' class="out"' if begin > summary.seq_length else ""
        bar = f'<div{css_class} style="width:{count / most:.2%}"></div>'
        lines.append(f'<tr><td>{begin:,}–{end - 1:,}</td><td class="bar">{bar}</td><td>{count:,}</td></tr>')
    return "<section><h2>Tokens of a sample</h2><table>" + "".join(lines) + "</table></section>"


def _sample(sample: ShownSample) -> str:
    figures = "".join(
        f'<figure><img alt="{html.escape(printable(name))}" src="data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode()}">'
        f"<figcaption>{html.escape(printable(name))}</figcaption></figure>"
        for name, image in sample.thumbnails
    )
    if sample.problem:
        body = f'<p class="problem">cannot be used: {html.escape(printable(sample.problem))}</p>'
    else:
        body = "<pre>" + "".join(map(_piece, sample.pieces)) + "</pre>"
    return f"<section><h2>{html.escape(sample.title)}</h2>{figures}{body}</section>\n"


def _piece(piece: TextPiece) -> str:
    text = html.escape(printable(piece.text))
    if piece.medium:
        return f'<span class="medium">{text}</span>'
    return f"<mark>{text}</mark>" if piece.trained else text
