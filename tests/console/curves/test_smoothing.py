"""Smoothing: the mean of a centred window that is a share of what is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.curves.columns import BLOCK, Bounds
from console.curves.lines import Extremes, extremes
from console.curves.smoothing import SHARE, SHARES, average


def steps(y) -> np.ndarray:
    return np.arange(1, len(y) + 1)


def mean_around(x, y, center: float, half: float) -> float:
    """The mean of the finite values within half a window of a step."""
    near = y[(np.abs(x - center) <= half) & np.isfinite(y)]
    return float(near.mean()) if len(near) else math.nan


@pytest.mark.parametrize("count", [1, 40, 79, 80])
def test_up_to_one_point_a_column_the_values_are_the_line(count):
    y = np.linspace(4, 1, count)
    assert average(steps(y), y, (1, count), 80) is None


def test_no_average_is_drawn_where_none_is_wanted():
    y = np.ones(1000)
    assert average(steps(y), y, (1, 1000), 80, 0.0) is None and SHARES[0] == SHARE and 0.0 in SHARES


def test_what_is_seen_decides_not_the_length_of_the_run():
    y = np.random.default_rng(0).normal(2, 1, 10_000)
    assert average(steps(y), y, (1, 10_000), 80) is not None
    assert average(steps(y), y, (5000, 5060), 80) is None


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_it_is_the_mean_of_a_centred_window_of_that_share(share):
    y = np.random.default_rng(3).normal(2, 1, 20_000)
    x = steps(y)
    found = average(x, y, (1, 20_000), 100, share)
    assert found.window == pytest.approx(share * 20_000, rel=0.3) and found.window >= share * 19_999
    inner = (found.x > found.window) & (found.x < 20_000 - found.window)
    for at in np.flatnonzero(inner)[::17]:
        # the window consists of whole columns of dots
        assert found.y[at] == pytest.approx(mean_around(x, y, found.x[at], found.window / 2), abs=0.01)


def test_a_straight_line_is_its_own_average_up_to_both_ends():
    y = np.linspace(9, 1, 3000)
    found = average(steps(y), y, (1, 3000), 80)
    np.testing.assert_allclose(found.y, np.interp(found.x, steps(y), y), atol=0.02)
    assert found.x[0] < 12 and found.x[-1] > 2988


def test_a_steep_beginning_is_not_held_up_as_by_a_trailing_average():
    x = np.arange(1, 401)
    y = 0.3 + 9 * np.exp(-x / 20)
    found = average(x, y, (1, 400), 60)
    late = found.at(120)
    assert late == pytest.approx(y[119], rel=0.05)
    trailing = 0.0
    for value in y[:120]:
        trailing = 0.97 * trailing + 0.03 * value
    assert abs(trailing - y[119]) > 20 * abs(late - y[119])


def test_nan_steps_count_for_nothing_and_a_window_of_them_is_a_gap():
    y = np.full(2000, 3.0)
    y[700:1100] = np.nan
    y[1500:1502] = np.nan
    found = average(steps(y), y, (1, 2000), 60)
    hole = (found.x > 770) & (found.x < 1030)
    assert np.isnan(found.y[hole]).all() and found.y[~hole & (np.abs(found.x - 900) > 250)] == pytest.approx(3.0)


def test_a_spike_stays_within_its_window():
    y = np.ones(5000)
    y[2500] = 1e30
    found = average(steps(y), y, (1, 5000), 80)
    assert (found.y[np.abs(found.x - 2500) > found.window] == 1.0).all() and found.y.max() > 1e25


def test_panning_does_not_change_the_average():
    y = np.random.default_rng(5).normal(0, 1, 10_000)
    x = steps(y)
    one, two = average(x, y, (3000, 5000), 100), average(x, y, (3500, 5500), 100)
    both = np.intersect1d(np.round(one.x, 3), np.round(two.x, 3))
    assert len(both) > 100
    for step in both[::20]:
        assert one.at(step) == pytest.approx(two.at(step), abs=1e-9)


def test_steps_without_rows_are_bridged():
    x = np.concatenate([np.arange(1, 1000), np.arange(3000, 4000)])
    found = average(x, np.ones(len(x)), (1, 3999), 60)
    assert not np.isnan(found.y).any() and not ((found.x > 1200) & (found.x < 2800)).any()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=41, max_size=400), st.integers(4, 40), st.sampled_from(SHARES),
)  # fmt: skip
def test_every_average_is_between_the_smallest_and_the_largest_value(y, columns, share):
    y = np.array(y)
    found = average(steps(y), y, (1, len(y)), columns, share)
    assert (found is None) == (share == 0 or len(y) <= columns)
    if found is not None and np.isfinite(y).any():
        means = found.y[np.isfinite(found.y)]
        room = 1e-9 * np.nanmax(np.abs(y)) + 1e-9
        assert (means >= np.nanmin(y) - room).all() and (means <= np.nanmax(y) + room).all()
        assert (np.diff(found.x) > 0).all()


def test_sums_of_blocks_give_the_same_average_as_the_points():
    y = np.random.default_rng(2).normal(2, 1, 600 * 8 * BLOCK)
    x, bounds = steps(y), Bounds()
    for end in (BLOCK // 2, 70_001, len(y)):
        bounds.update(y[:end])
    exact, quick = (average(x, y, (1, len(y)), 100, bounds=b) for b in (None, bounds))
    assert quick.window == exact.window
    np.testing.assert_allclose(quick.y, exact.y, atol=0.01)
    np.testing.assert_allclose(bounds.sum[:-1], y[: len(y) // BLOCK * BLOCK].reshape(-1, BLOCK).sum(axis=1)[: len(bounds.sum) - 1])


def test_the_window_is_named_in_steps():
    y = np.ones(1000)
    assert average(steps(y), y, (1, 1000), 100).name == "avg of 55 steps"


def test_the_smallest_and_largest_value_are_found_over_nan():
    x = np.array([10, 20, 30, 40])
    assert extremes(x, np.array([3.0, math.nan, 1.0, 5.0])) == Extremes((30, 1.0), (40, 5.0))
    assert extremes(x[:1], np.array([math.nan])) is None and extremes(x[:0], np.empty(0)) is None
