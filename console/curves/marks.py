"""What happened at a step, as it is marked on the axis of a curve."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step, shown on the axis."""

    step: int
    kind: str
    """`save`, `nan`, `spike`, `resume`, `stop`, …"""
    text: str


MARKS = {
    "save": ("◆", "mark"), "nan": ("✗", "problem"), "spike": ("▲", "problem"), "resume": ("↻", "mark"), "damaged": ("✗", "problem"),
    "stop": ("■", "mark"), "note": ("·", "mark"),
}  # fmt: skip
"""Glyph and colour of what is marked; `start` and `done` are the ends of the curve and are not."""
