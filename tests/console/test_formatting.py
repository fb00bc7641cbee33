"""Sparklines, statuses and untrusted text on a terminal."""

from __future__ import annotations

import math

import numpy as np

from console.formatting import GLYPHS, one_line, sparkline


def test_sparkline():
    assert sparkline(np.array([]), 8) == ""
    assert sparkline(np.array([math.nan, 1.0]), 8) == "▄"
    assert sparkline(np.arange(8), 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(np.random.default_rng(0).random(1000), 12)) == 12


def test_control_characters_never_reach_the_terminal():
    assert one_line("a\x1b[31m\nb\t\x07c\u2028d\x85") == "a␛[31m b ␇c d\ufffd"


def test_every_status_looks_different_without_colour():
    assert len(set(GLYPHS.values())) == len(GLYPHS) == 8
