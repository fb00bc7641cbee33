"""Thinning a million points to two thousand: what is kept."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from console.curves.thinning import MOST_POINTS, Thinner, decimate, within

values = st.floats(-1e6, 1e6) | st.just(math.nan)
series = arrays.arrays(np.float64, st.integers(0, 400), elements=values)


@settings(deadline=None, max_examples=60)
@given(series, st.integers(8, 64))
def test_thinning_keeps_ends_extremes_and_order(y, most):
    x = np.arange(len(y))
    kept_x, kept_y = decimate(x, y, most)
    assert len(kept_x) == len(kept_y) <= max(most, 0)
    assert (np.diff(kept_x) > 0).all()
    np.testing.assert_array_equal(y[kept_x], kept_y)
    if len(y):
        assert kept_x[0] == 0 and kept_x[-1] == len(y) - 1
    finite = y[np.isfinite(y)]
    if len(finite):
        assert np.nanmin(kept_y) == finite.min() and np.nanmax(kept_y) == finite.max()
    assert np.isnan(kept_y).any() == np.isnan(y).any()


@settings(deadline=None, max_examples=40)
@given(series, st.lists(st.integers(0, 400), max_size=4), st.integers(8, 64))
def test_a_growing_series_is_drawn_like_a_complete_one(y, cuts, most):
    thinner, x = Thinner(most), np.arange(len(y))
    for end in [*sorted(min(cut, len(y)) for cut in cuts), len(y)]:
        np.testing.assert_array_equal(thinner(x[:end], y[:end]), decimate(x[:end], y[:end], most))


def test_a_spike_and_a_gap_among_a_million_points_are_kept():
    y = np.random.default_rng(0).normal(size=1_000_000)
    y[123_456], y[777_777] = 50.0, np.nan
    x, kept = decimate(np.arange(len(y)), y)
    assert len(x) <= MOST_POINTS
    assert 123_456 in x and 777_777 in x and np.isnan(kept[x == 777_777]).all()


def test_a_window_includes_one_more_point_on_each_side():
    x = np.arange(0, 100, 10)
    found, _ = within(x, x * 1.0, (25, 44))
    assert found.tolist() == [20, 30, 40, 50]
    assert within(x, x * 1.0, None)[0] is x
    assert within(x, x * 1.0, (1000, 2000))[0].tolist() == [90]
