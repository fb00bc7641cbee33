"""GPUs against time as lines of characters: what they did, do, and will do. Told apart without colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from textual.content import Content

from console.readers.gpu_queue import LIVE, OTHER, PAST, WAITING, TimeBar
from qwen3vl_core.formats import span
from qwen3vl_core.language import tr

FILLS = {PAST: "░", LIVE: "█", WAITING: "▒", OTHER: "x"}
COLOURS = {PAST: "$muted", LIVE: "$text-primary", WAITING: "$text-accent", OTHER: "$text-warning"}
AHEAD = "▓"
"""A run that works, from now to its expected end."""
LABEL = 9
"""Cells before the picture."""
LEAST_SECONDS = 600.0
PAST_SHARE = 0.35
"""Of the width; the rest is to come."""

Rows = Sequence[tuple[str, Sequence[TimeBar]]]


def drawn(rows: Rows, width: int, most: int = 99) -> list[Content]:
    """The lines: one for neighbours that do the same, at most `most` of them, then the time."""
    cells = max(width - LABEL, 12)
    now = max(round(cells * PAST_SHARE), 4)
    groups = _groups(rows)
    every = [bar for _, bars in groups for bar in bars]
    before = max([LEAST_SECONDS, *(-bar.begin for bar in every if bar.kind == LIVE and math.isfinite(bar.begin))])
    after = max([LEAST_SECONDS, *(bar.end for bar in every if math.isfinite(bar.end)), *(bar.begin * 1.3 for bar in every)])
    lines = []
    for label, bars in groups[:most]:
        glyphs, styles = ["·"] * cells, ["$muted"] * cells

        def place(seconds: float) -> int:
            """The cell of a time."""
            at = now + seconds / before * now if seconds < 0 else now + seconds / after * (cells - now)
            return min(max(math.floor(at), 0), cells) if math.isfinite(at) else cells

        for bar in sorted(bars, key=lambda bar: bar.begin):
            if bar.end < -before:
                continue
            begin, end = place(bar.begin), max(place(bar.end), place(bar.begin) + 1)
            for cell in range(begin, min(end, cells)):
                glyphs[cell] = AHEAD if bar.kind == LIVE and cell >= now else FILLS[bar.kind]
                styles[cell] = COLOURS[bar.kind]
            if not math.isfinite(bar.end):
                glyphs[cells - 1] = "?"
            number = str(int(bar.run_id.partition("-")[0])) if bar.run_id else ""
            if number and min(end, cells) - begin >= len(number) + 4:
                middle = begin + (min(end, cells) - begin - len(number)) // 2
                for offset, sign in enumerate(f" {number} ", -1):
                    glyphs[middle + offset], styles[middle + offset] = sign, COLOURS[bar.kind] + " bold"
        if glyphs[now] == "·":
            glyphs[now] = "│"
        lines.append(Content.assemble((f"{label:<{LABEL - 1}.{LABEL - 1}} ", "bold"), *zip(glyphs, styles, strict=True)))
    if len(groups) > most:
        lines[-1:] = [Content(f"… and {len(groups) - most + 1} more").stylize("$muted")]
    left, right = f"-{span(before)}", f"+{span(after)}"
    axis = left.ljust(now - 1) + "now" + right.rjust(cells - now - 2)
    lines.append(Content(" " * LABEL + axis[:cells]).stylize("$muted"))
    return lines


def legend() -> Content:
    """What the characters mean."""
    parts = ((PAST, "ended"), (LIVE, "running"), (WAITING, "queued"), (OTHER, "another process"))
    return Content("  ").join(Content.assemble((FILLS[kind], COLOURS[kind]), (f" {tr(text)}", "$muted")) for kind, text in parts)


def _groups(rows: Rows) -> list[tuple[str, Sequence[TimeBar]]]:
    """(`GPU 0-3`, bars) of neighbours that do the same."""
    groups: list[tuple[list[str], Sequence[TimeBar]]] = []
    for name, bars in rows:
        if groups and groups[-1][1] == bars:
            groups[-1][0].append(name)
        else:
            groups.append(([name], bars))
    return [(f"GPU {names[0]}" + (f"-{names[-1]}" if len(names) > 1 else ""), bars) for names, bars in groups]
