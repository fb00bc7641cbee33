"""Marks of events on the x axis of a curve."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_core.run_record import BAD_EVENTS, DAMAGED, NAN, NOTE, RESTART, RESUME, SAVED, SPIKE, STOPPED


@dataclass(frozen=True)
class Mark:
    """An event at a step, shown on the axis."""

    step: int
    kind: str
    """`save`, `nan`, `spike`, `resume`, `stop`, …"""
    text: str


_GLYPHS = {SAVED: "◆", NAN: "✗", SPIKE: "▲", RESUME: "↻", DAMAGED: "✗", RESTART: "↺", STOPPED: "■", NOTE: "·"}
MARKS = {event: (glyph, "problem" if event in BAD_EVENTS else "mark") for event, glyph in _GLYPHS.items()}
"""Glyph and colour of each event; `start` and `done` are not marked, as they are the ends of the curve."""
