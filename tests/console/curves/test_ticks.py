"""Round values on an axis, and their labels."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from console.curves.ticks import log_ticks, step_ticks, ticks, value_range, value_ticks


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(1, 20))
def test_ticks_are_round_inside_and_not_too_many(low, width, count):
    assume(width > 1e-9 * abs(low))  # otherwise neighbouring ticks would be the same float
    found = ticks(low, low + width, count)
    assert len(found) <= 2 * count + 2
    assert all(low - width * 1e-6 <= v <= low + width * (1 + 1e-6) for v in found)
    if len(found) > 1:
        step = found[1] - found[0]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-2


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(-6.0, -4.0, 5) == pytest.approx([1e-6, 1e-5, 1e-4])
    assert log_ticks(0.0, 1.0, 4) == pytest.approx([1, 2, 5, 10])
    assert len(log_ticks(0.0, 0.01, 4)) >= 2
    assert ticks(1.0, 1.0, 4) == [1.0]


def test_labels_have_enough_digits_for_their_distance():
    assert [label for _, label in value_ticks(0.0, 1.0, 4)] == ["0", "0.5", "1.0"]
    assert value_ticks(-2.0, 0.0, 4, log=True) == [(-2.0, "0.01"), (-1.0, "0.1"), (0.0, "1")]


def test_an_axis_of_steps_has_whole_steps_only():
    assert step_ticks(0, 2, 8) == [(0, "0"), (1, "1"), (2, "2")]
    assert step_ticks(0, 1_000_000, 2)[-1] == (1_000_000, "1,000,000")


@pytest.mark.parametrize(("low", "high", "log"), [(1.0, 2.0, False), (3.0, 3.0, False), (0.0, 0.0, False), (-2.0, -2.0, True)])
def test_the_axis_has_room_beside_its_values(low, high, log):
    bottom, top = value_range(low, high, log)
    assert bottom < low <= high < top
