"""Smoothing: one rule for the terminal and the notebook."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.curves.lines import GrowingLine
from console.curves.smoothing import Smoother


def as_tensorboard_smooths(values, weight: float) -> list[float]:
    """The recurrence of TensorBoard's line chart: a value that is not finite is shown as it is and not counted."""
    last, counted, smoothed = 0.0, 0, []
    for value in values:
        if math.isfinite(value):
            last, counted = last * weight + (1 - weight) * value, counted + 1
            smoothed.append(last / (1 - weight**counted))
        else:
            smoothed.append(math.nan)
    return smoothed


@pytest.mark.parametrize("weight", [0.0, 0.6, 0.9, 0.99])
def test_the_average_equals_tensorboards_even_over_nan_and_in_pieces(weight):
    random = np.random.default_rng(3)
    y = random.normal(2, 1, 5000)
    y[random.random(5000) < 0.02] = np.nan
    expected = as_tensorboard_smooths(y, weight)
    pieces = Smoother(weight)
    for part in np.split(y, [1, 2, 700, 701, 4000]):
        pieces.extend(part)
    np.testing.assert_allclose(Smoother(weight)(y), expected, rtol=1e-9)
    np.testing.assert_allclose(pieces.values, expected, rtol=1e-9)


def test_a_nan_step_does_not_make_the_steps_before_it_count_less():
    with_gap, without = Smoother(0.9)(np.array([4.0, math.nan, math.nan, 2.0])), Smoother(0.9)(np.array([4.0, 2.0]))
    assert with_gap[[0, 3]].tolist() == without.tolist() and np.isnan(with_gap[1:3]).all()
    assert with_gap[3] == pytest.approx((0.9 * 4 + 2) / 1.9)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=400), st.lists(st.integers(0, 400), max_size=4), st.floats(0.0, 0.99),
)  # fmt: skip
def test_a_growing_series_has_the_average_of_the_whole(y, cuts, weight):
    y, average = np.array(y), Smoother(weight)
    for end in [*sorted(min(cut, len(y)) for cut in cuts), len(y)]:
        np.testing.assert_allclose(average(y[:end]), Smoother(weight)(y[:end]), rtol=1e-9, atol=1e-3)


def test_a_returned_average_is_immutable():
    average = Smoother(0.5)
    early = average(np.arange(3.0))
    kept = early.copy()
    average(np.arange(3000.0))
    assert early.tolist() == kept.tolist()
    with pytest.raises(ValueError, match="read-only"):
        early[0] = 9.0


def test_the_average_begins_at_the_first_value_without_bias():
    average = Smoother(0.99)
    average.extend(np.array([4.0, 4.0, 4.0]))
    assert average.values == pytest.approx([4.0, 4.0, 4.0])


@pytest.mark.parametrize("weight", [-0.1, 1.0, math.nan])
def test_a_weight_of_one_is_refused(weight):
    with pytest.raises(ValueError, match="below 1"):
        Smoother(weight)


def test_a_line_without_smoothing_is_the_series_itself():
    x, y = np.arange(3), np.array([1.0, math.nan, 2.0])
    assert GrowingLine(0, 0.0)(x, y) == (x, y)
