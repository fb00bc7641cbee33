"""From numbers to dots: no value is lost."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.curves.columns import Points, reduce, search
from console.widgets.braille import DOTS, rasterize

WIDTH, HEIGHT = 30, 8


def dots(bits: np.ndarray) -> np.ndarray:
    """[4 h, 2 w] booleans of braille bits [h, w]."""
    height, width = bits.shape
    return ((bits[:, None, :, None] & DOTS[None, :, None, :]) > 0).reshape(height * 4, width * 2)


def drawn(x, y, *, view=None, span_y=None, log=False, width=WIDTH, height=HEIGHT):
    """(dots, columns) of a series over its whole length."""
    points = Points.of(np.asarray(x), np.asarray(y, float), log)
    x0, x1 = view or (float(x[0]), float(x[-1]))
    columns = reduce(points, x0, x1, 2 * width)
    y0, y1 = span_y or columns.span or (0.0, 1.0)
    return dots(rasterize(columns, width, height, y0, y1 if y1 > y0 else y0 + 1)), columns


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 4000), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6), st.integers(0, 99))
def test_every_spike_is_kept_at_any_length(length, at, seed):
    y = np.random.default_rng(seed).normal(1.0, 0.01, length)
    spikes = sorted({int(place * length) for place in at})
    y[spikes] = 9.0
    x = np.arange(length)
    picture, _ = drawn(x, y, span_y=(0.0, 9.0))
    top = picture[0]
    for spike in spikes:
        column = min(int(spike / (length - 1) * 2 * WIDTH), 2 * WIDTH - 1)
        assert top[max(column - 1, 0) : column + 2].any()


@given(
    st.lists(st.integers(0, 10**6), max_size=60).map(sorted),
    st.lists(st.floats(-10.0, 1.1e6) | st.integers(0, 10**6).map(float), min_size=1, max_size=20), st.sampled_from(["left", "right"]),
)  # fmt: skip
def test_integer_steps_are_reduced_like_real_numbers(steps, at, side):
    expected = np.searchsorted(np.array(steps, np.float64), at, side=side)
    assert np.array_equal(search(np.array(steps, np.int64), np.array(at), side), expected)
    assert search(np.array(steps, np.int64), at[0], side) == expected[0]


def test_a_million_points_keep_one_low_and_one_high():
    y = np.ones(1_000_000)
    y[123_456], y[777_777] = 0.0, 2.0
    picture, columns = drawn(np.arange(len(y)), y)
    assert columns.span == (0.0, 2.0)
    assert picture[-1].sum() == 1 and picture[0].sum() == 1


def test_nan_is_a_gap():
    y = np.concatenate([np.full(100, 1.0), np.full(100, np.nan), np.full(100, 1.0)])
    picture, _ = drawn(np.arange(300), y, span_y=(0.0, 2.0))
    filled = picture.any(axis=0)
    assert not filled[21:40].any()
    assert filled[:19].all() and filled[41:].all()


def test_a_single_missing_value_between_two_far_points_breaks_the_line():
    joined, _ = drawn([0, 1, 2], [1.0, 1.0, 1.0], span_y=(0.0, 2.0))
    broken, _ = drawn([0, 1, 2], [1.0, math.nan, 1.0], span_y=(0.0, 2.0))
    assert joined.any(axis=0).all()
    assert broken.any(axis=0).sum() == 2


def test_a_column_of_a_nan_and_a_number_shows_the_number():
    y = np.ones(1000)
    y[::2] = np.nan
    picture, _ = drawn(np.arange(1000), y, span_y=(0.0, 2.0))
    assert picture.any(axis=0).all()


def test_few_points_are_connected_by_a_line_without_gaps():
    picture, _ = drawn([0, 10], [0.0, 5.0])
    assert picture.any(axis=0).all()
    rows = [np.flatnonzero(column) for column in picture.T]
    assert rows[0].max() == HEIGHT * 4 - 1 and rows[-1].min() == 0
    for left, right in pairwise(rows):
        assert right.min() <= left.max() + 1 and left.min() <= right.max() + 1


def test_a_steep_step_has_no_gap():
    picture, _ = drawn(np.arange(60), np.r_[np.zeros(30), np.full(30, 7.0)])
    assert picture.any(axis=1).all()


def test_a_line_that_only_crosses_the_view_is_drawn():
    picture, columns = drawn([0, 100], [0.0, 10.0], view=(40.0, 60.0))
    assert picture.any(axis=0).all()
    assert columns.span == pytest.approx((4.0, 6.0))


def test_a_view_shows_the_lines_that_enter_and_leave_it():
    x = np.arange(0, 101, 10)
    picture, _ = drawn(x, np.ones(11), view=(35.0, 65.0), span_y=(0.0, 2.0))
    assert picture.any(axis=0).all()


def test_one_point_is_one_dot():
    points = Points.of(np.array([5]), np.array([2.0]))
    picture = dots(rasterize(reduce(points, 4.0, 6.0, 2 * WIDTH), WIDTH, HEIGHT, 1.0, 3.0))
    assert picture.sum() == 1


@pytest.mark.parametrize("y", [[], [math.nan], [math.nan, math.nan]])
def test_no_data_draws_nothing(y):
    points = Points.of(np.arange(len(y)), np.array(y, float))
    columns = reduce(points, 0.0, 1.0, 2 * WIDTH)
    assert columns.span is None
    assert not rasterize(columns, WIDTH, HEIGHT, 0.0, 1.0).any()


def test_a_constant_series_is_a_level_line():
    picture, _ = drawn(np.arange(500), np.full(500, 3.0), span_y=(2.0, 4.0))
    assert picture.any(axis=1).sum() == 1 and picture.any(axis=0).all()


def test_the_logarithmic_axis_makes_a_decay_straight_and_drops_what_is_not_positive():
    x = np.arange(200)
    y = 10.0 ** (-x / 50)
    points = Points.of(x, y, log=True)
    assert points.y == pytest.approx(-x / 50)
    y[50:60] = 0.0
    y[60] = -1.0
    assert len(Points.of(x, y, log=True).y) == 189
    assert Points.of(x, y, log=True).segment[-1] == 11
