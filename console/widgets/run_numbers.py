"""The numbers of a run, beside its curve or above its log."""

from __future__ import annotations

import math
import time
from itertools import groupby
from typing import TYPE_CHECKING, Any

from textual.content import Content

from console.formatting import COLOURS, GLYPHS, one_line
from qwen3vl_core.formats import duration, number, span

if TYPE_CHECKING:
    from console.readers.monitor import RunView
    from console.readers.run_rows import RunRow

BAR = 16
GAUGE = 8
ROOMY = 28
"""Columns from which the panel has room for a bar."""
EVENTS = 6
PROBLEM_WORDS = ("nan", "warning", "failed", "error", "skip")


def _bar(share: float) -> Content:
    full = round(share * BAR)
    return Content.assemble(("━" * full, "$text-primary"), ("━" * (BAR - full), "$faint"), f" {share:.0%}")


def _status(row: RunRow) -> Content:
    text = f"{GLYPHS.get(row.status, '?')} {row.status}"
    if row.exit_code and not row.alive:
        text += f", exit code {row.exit_code}"
    return Content(text).stylize(f"${COLOURS.get(row.status, 'muted')}")


def _value(latest: dict[str, Any], key: str) -> str:
    value = latest.get(key)
    if value is None:
        return "nan" if key in latest else "–"
    return number(float(value)) if isinstance(value, int | float) and math.isfinite(value) else "nan"


def _events(events: tuple[dict[str, Any], ...], width: int) -> list[Content]:
    """The latest events, newest first; one line for several of a kind in a row."""
    lines: list[Content] = []
    for kind, group in groupby(reversed(events), key=lambda event: str(event.get("event", ""))):
        together = list(group)
        text = str(together[0].get("text") or kind)
        step = together[0].get("step")
        problem = any(word in kind.lower() for word in PROBLEM_WORDS)
        where = f"{step:,} " if isinstance(step, int) and not text.startswith("step ") else ""
        times = f" ×{len(together)}" if len(together) > 1 else ""
        line = one_line(f"{'⚠' if problem else '·'} {where}{text}", width - len(times)) + times
        lines.append(Content(line).stylize("$text-warning" if problem else "$muted"))
        if len(lines) == EVENTS:
            break
    return lines


def _elapsed(row: RunRow) -> float | None:
    """Seconds from the start to the end, or until now."""
    ended = row.ended if not row.alive else time.time()
    return None if row.started is None or ended is None else ended - row.started


def _idle(latest: dict[str, Any]) -> float | None:
    """Share of a step that was spent waiting for data."""
    waited, step = latest.get("data_seconds"), latest.get("step_seconds")
    good = all(isinstance(v, int | float) and math.isfinite(v) for v in (waited, step))
    return min(max(waited / step, 0.0), 1.0) if good and step > 0 else None


def finetune_panel(row: RunRow, view: RunView | None, width: int) -> Content:
    """Panel beside the curve, `width` columns."""
    latest = row.latest.get("train", {})
    lines: list[Content] = [Content(one_line(row.id, width)).stylize("bold"), _status(row)]
    if row.percent is not None and width < ROOMY:
        lines[-1] += Content(f"  {row.percent:.0%}")
    elif row.percent is not None:
        lines.append(_bar(row.percent))

    def add(name: str, value: str, note: str = "") -> None:
        note = f" {note}" if note and 11 + len(value) + len(note) <= width else ""
        lines.append(Content.assemble((f"{name:<10}", "$muted"), (value, "bold"), (note, "$muted")))

    def gauge(name: str, share: float, value: str, note: str = "", bad: bool = False) -> None:
        if width < ROOMY:
            add(name, value, note)
            return
        full = round(min(max(share, 0.0), 1.0) * GAUGE)
        note = f" {note}" if note and 11 + GAUGE + len(value) + len(note) <= width else ""
        lines.append(Content.assemble(
            (f"{name:<10}", "$muted"), ("━" * full, "$text-warning" if bad else "$text-primary"), ("━" * (GAUGE - full), "$faint"),
            (f" {value}", "bold"), (note, "$muted"),
        ))  # fmt: skip

    add("step", (f"{row.step:,}" if row.step is not None else "–") + (f"/{row.total:,}" if row.total else ""))
    average = None
    if view is not None and view.metric == "loss" and view.lines and view.lines[0].smooth is not None and len(view.lines[0].smooth):
        average = float(view.lines[0].smooth[-1])
    add("loss", _value(latest, "loss"), f"avg {number(average)}" if average is not None and math.isfinite(average) else "")
    if (evaluated := row.latest.get("eval")) is not None:
        add("eval", _value(evaluated, "loss"), f"at {evaluated['step']:,}" if isinstance(evaluated.get("step"), int) else "")
    add("lr", _value(latest, "lr"))
    add("grad", _value(latest, "grad_norm"))
    add("tokens/s", _value(latest, "tokens_per_second"))
    if latest.get("mfu") is not None or latest.get("tflops") is not None:
        share = latest.get("mfu")
        rate = f"{_value(latest, 'tflops')} TFLOP/s" if latest.get("tflops") is not None else ""
        if isinstance(share, int | float):
            gauge("MFU", share, f"{share:.1%}", rate)
        else:
            add("compute", rate)
    if isinstance(latest.get("gpu_utilisation"), int | float):
        watts = f"{_value(latest, 'gpu_watts')} W" if latest.get("gpu_watts") is not None else ""
        gauge("GPU", latest["gpu_utilisation"] / 100, f"{latest['gpu_utilisation']:.0f}%", watts)
    if isinstance(latest.get("memory_gib"), int | float) and latest["memory_gib"]:
        add("memory", f"{latest['memory_gib']:.1f} GiB", "at its fullest")
    if (idle := _idle(latest)) is not None and idle >= 0.02:
        gauge("data wait", idle, f"{idle:.0%}", "of a step", bad=idle > 0.1)
    if row.alive:
        add("ETA", duration(row.eta) if row.eta is not None else "–")
    saved = row.checkpoint.removeprefix("checkpoint ").removeprefix("of ")
    add("saved", "none yet" if saved.startswith("no ") else saved)
    if (elapsed := _elapsed(row)) is not None:
        add("time", duration(elapsed))
    add("s/step", number(row.step_seconds, 3) if row.step_seconds is not None else "–")
    if latest.get("skipped"):
        add("skipped", _value(latest, "skipped"), "samples")
    if row.error:
        lines.append(Content("✗ " + one_line(row.error, width * 3)).stylize("$text-error"))
    events = view.events if view is not None else ()
    if events:
        lines.append(Content(""))
        lines += _events(events, width)
    return Content("\n").join(lines)


def plain_panel(row: RunRow, width: int) -> Content:
    """A few lines above the log of a run that has no curve."""
    since = f"{span(row.age(time.time()))}{' so far' if row.alive else ' ago'}"
    took = f" · took {duration(row.ended - row.started)}" if row.ended and row.started and not row.alive else ""
    head = Content.assemble((row.id, "bold"), "  ", _status(row), (f"  {row.kind} · {since}{took}", "$muted"))
    lines = [head, Content(one_line("$ " + row.command, width)).stylize("$muted")]
    if row.percent is not None:
        lines.append(_bar(row.percent))
    if row.error:
        lines.append(Content(one_line("✗ " + row.error, width)).stylize("$text-error"))
    if row.kind == "compare":
        lines.append(Content.assemble(("4", "bold $text-primary"), (" shows its captions", "$muted")))
    return Content("\n").join(lines)
