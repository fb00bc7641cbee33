"""The progress line shows percentage, amount, rate and remaining time, and fits its width."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_line_has_percentage_amount_rate_and_time():
    progress = Progress("convert", 8_900_000_000, "B", io.StringIO())
    progress.started -= 10
    progress.done = 4_450_000_000
    line = progress.line()
    assert "convert" in line and " 50%" in line and "4.5 GB of 8.9 GB" in line
    assert "445 MB/s" in line and "ETA 0:10" in line


def test_a_terminal_redraws_one_line_and_a_log_gets_complete_lines(monkeypatch):
    monkeypatch.delenv("QWEN3VL_PROGRESS", raising=False)
    screen, log = Terminal(), io.StringIO()
    for stream in (screen, log):
        with Progress("prepare", 2, "samples", stream) as progress:
            progress.update()
            progress.update()
    assert screen.getvalue().startswith("\r") and screen.getvalue().endswith("\n")
    assert "\r" not in log.getvalue() and log.getvalue().count("\n") == 1


def test_work_that_stops_early_says_so(monkeypatch):
    monkeypatch.setenv("QWEN3VL_PROGRESS", "lines")
    log = io.StringIO()
    with pytest.raises(KeyError), Progress("prepare", 2, "samples", log):
        raise KeyError
    assert log.getvalue().endswith("(stopped)\n")


@given(done=st.floats(0, 1e13), total=st.floats(1, 1e13), width=st.integers(20, 200), unit=st.sampled_from(["B", "samples"]))
def test_the_progress_line_never_exceeds_its_width(done, total, width, unit):
    progress = Progress("convert", total, unit, io.StringIO())
    progress.done = min(done, total)
    assert len(progress.line(width)) <= width
