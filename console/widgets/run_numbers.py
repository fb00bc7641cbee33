"""The numbers of a run, next to its curve or above its log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from textual.content import Content

from console.formatting import COLOURS, GLYPHS, one_line
from qwen3vl_core.cells import padded
from qwen3vl_core.formats import duration, number, span
from qwen3vl_core.language import tr
from qwen3vl_core.run_metrics import LOSS, METRICS, is_noisy, key_of, title_of
from qwen3vl_core.run_record import BAD_EVENTS, EVAL, STEP_EVENTS, TRAIN, finite

if TYPE_CHECKING:
    from console.readers.monitor import RunView
    from console.readers.run_rows import RunRow

BAR = 16
GAUGE = 8
ROOMY = 28
"""Width in columns from which the panel has room for a bar."""
EVENTS = 6
EXPLAINED = ("failed", "lost")
"""Statuses of which the monitor shows the cause above the log."""
LITTLE_SHARE, LARGE_SHARE = 0.02, 0.1
"""Fractions of a step: a data wait below the first is not shown, above the second it is a warning."""


def _bar(share: float) -> Content:
    full = round(share * BAR)
    return Content.assemble(("━" * full, "$text-primary"), ("━" * (BAR - full), "$faint"), f" {share:.0%}")


def _status(row: RunRow) -> Content:
    text = f"{GLYPHS.get(row.status, '?')} {tr(row.status)}"
    if row.exit_code and not row.alive:
        text += tr(", exit code {code}", code=row.exit_code)
    return Content(text).stylize(f"${COLOURS.get(row.status, 'muted')}")


def _text(key: str, latest: Mapping[str, Any], titled: bool = True) -> str:
    """A metric's value with its unit, unless its title stands before it and is the unit."""
    if key not in latest:
        return "–"
    metric, value = METRICS[key], finite(latest[key])
    if value is None:
        return "nan"
    shown = f"{value:{metric.format}}" if metric.format else number(value)
    blank = "" if metric.unit == "%" else " "
    return shown if not metric.unit or (titled and metric.unit == metric.title) else f"{shown}{blank}{tr(metric.unit)}"


def _share(value: float | None, of: Any) -> float | None:
    total = finite(of)
    return min(max(value / total, 0.0), 1.0) if value is not None and total else None


def _events(events: tuple[dict[str, Any], ...], width: int) -> list[Content]:
    """The latest events, newest first; consecutive events of a kind share a line."""
    lines: list[Content] = []
    for kind, group in groupby(reversed(events), key=lambda event: str(event.get("event", ""))):
        together = list(group)
        text = str(together[0].get("text") or kind)
        step = together[0].get("step")
        problem = kind in BAD_EVENTS
        step_text = f"{step:,} " if isinstance(step, int) and kind not in STEP_EVENTS else ""
        times = f" ×{len(together)}" if len(together) > 1 else ""
        line = one_line(f"{'⚠' if problem else '·'} {step_text}{text}", width - len(times)) + times
        lines.append(Content(line).stylize("$text-warning" if problem else "$muted"))
        if len(lines) == EVENTS:
            break
    return lines


def _elapsed(row: RunRow) -> float | None:
    """Seconds from the start to the end, or to now."""
    ended = row.ended if not row.alive else time.time()
    return None if row.started is None or ended is None else ended - row.started


def _extremes(view: RunView) -> list[tuple[str, tuple[int, float]]]:
    """(name, (step, value)) of the best evaluation and of the extreme values of the curve's metric; empty for a schedule."""
    if not is_noisy(view.metric) or view.extremes is None:
        return []
    if view.metric != LOSS:
        return [("lowest", view.extremes.lowest), ("highest", view.extremes.highest)]
    best = [("best val", view.evaluated.lowest)] if view.evaluated is not None else []
    return [*best, ("lowest", view.extremes.lowest)]


def finetune_panel(row: RunRow, view: RunView | None, width: int) -> Content:
    """Panel next to the curve, `width` columns wide."""
    latest = row.latest.get(TRAIN, {})
    lines: list[Content] = [Content(one_line(row.id, width)).stylize("bold"), _status(row)]
    if row.percent is not None and width < ROOMY:
        lines[-1] += Content(f"  {row.percent:.0%}")
    elif row.percent is not None:
        lines.append(_bar(row.percent))

    def add(name: str, value: str, note: str = "") -> None:
        note = f" {note}" if note and 11 + len(value) + len(note) <= width else ""
        lines.append(Content.assemble((padded(tr(name), 10), "$muted"), (value, "bold"), (note, "$muted")))

    def gauge(name: str, share: float, value: str, note: str = "", bad: bool = False) -> None:
        if width < ROOMY:
            add(name, value, note)
            return
        full = round(min(max(share, 0.0), 1.0) * GAUGE)
        note = f" {note}" if note and 11 + GAUGE + len(value) + len(note) <= width else ""
        lines.append(Content.assemble(
            (padded(tr(name), 10), "$muted"), ("━" * full, "$text-warning" if bad else "$text-primary"), ("━" * (GAUGE - full), "$faint"),
            (f" {value}", "bold"), (note, "$muted"),
        ))  # fmt: skip

    add("step", (f"{row.step:,}" if row.step is not None else "–") + (f"/{row.total:,}" if row.total else ""))
    for key, metric in METRICS.items():
        value = finite(latest.get(key))
        if metric.beside and metric.beside in latest:
            continue
        if metric.panel == "always" or (metric.panel == "measured" and value):
            notes_beside = [
                _text(other, latest, titled=False) for other, m in METRICS.items() if m.beside == key and latest.get(other) is not None
            ]
            note = tr(metric.note) or " ".join(notes_beside)
            if isinstance(metric.gauge, str):
                share = _share(value, latest.get(metric.gauge))
                if share is not None and share >= LITTLE_SHARE:
                    gauge(metric.title, share, f"{share:.0%}", tr("of a step"), bad=share > LARGE_SHARE)
            elif metric.gauge and value is not None:
                gauge(metric.title, value / metric.gauge, _text(key, latest), note)
            else:
                add(metric.title, _text(key, latest), note)
        if metric.evaluated and metric.panel and (evaluated := row.latest.get(EVAL)) is not None:
            step = evaluated.get("step")
            add(title_of(key_of(EVAL, key)), _text(key, evaluated), tr("at {step:,}", step=step) if isinstance(step, int) else "")
        if view is not None and key == view.metric:
            for name, at in _extremes(view):
                add(name, number(at[1], 3), tr("at {step:,}", step=at[0]))
    if row.alive:
        add("ETA", duration(row.eta) if row.eta is not None else "–")
    add("saved", row.saved)
    if (elapsed := _elapsed(row)) is not None:
        add("time", duration(elapsed))
    add("s/step", number(row.step_seconds, 3) if row.step_seconds is not None else "–")
    if row.error and row.status not in EXPLAINED:
        lines.append(Content("✗ " + one_line(row.error, width * 3)).stylize("$text-error"))
    events = view.events if view is not None else ()
    if events:
        lines.append(Content(""))
        lines += _events(events, width)
    return Content("\n").join(lines)


def plain_panel(row: RunRow, width: int) -> Content:
    """A few lines above the log of a run that has no curve."""
    since = tr("{time} so far" if row.alive else "{time} ago", time=span(row.age(time.time())))
    took = " · " + tr("took {time}", time=duration(row.ended - row.started)) if row.ended and row.started and not row.alive else ""
    head = Content.assemble((row.id, "bold"), "  ", _status(row), (f"  {row.kind} · {since}{took}", "$muted"))
    lines = [head, Content(one_line("$ " + row.command, width)).stylize("$muted")]
    if row.percent is not None:
        lines.append(_bar(row.percent))
    if row.error and row.status not in EXPLAINED:
        lines.append(Content(one_line("✗ " + row.error, width)).stylize("$text-error"))
    if row.kind == "compare":
        lines.append(Content.assemble(("4", "bold $text-primary"), (" " + tr("shows its captions"), "$muted")))
    return Content("\n").join(lines)
