"""Numbers, times and sizes as text."""

from __future__ import annotations

import math

from qwen3vl_core.formats import duration, number, parameter_count, printable, quantity, span, tick


def test_numbers_have_four_digits_and_a_letter_for_thousands():
    assert [number(v) for v in (1.2144, 0.01234, 1e-5, 41234.5, 6310.0, 9999.7, 0.0, 0, 3)] == [
        "1.214", "0.01234", "1e-5", "41.2k", "6310", "10000", "0", "0", "3",
    ]  # fmt: skip
    assert [number(v, 3) for v in (4123.4, 0.5, 1.23e-5, 2.5e9)] == ["4123", "0.5", "1.2e-5", "2.5G"]
    assert number(1e-5, 2) == "1e-5" and number(1.0004e-10) == "1e-10"


def test_missing_numbers_are_a_dash_and_nan_and_infinity_are_named():
    assert [number(v) for v in (None, True, "12", [1], math.nan, math.inf, -math.inf)] == ["–", "–", "–", "–", "nan", "inf", "-inf"]


def test_times_and_sizes_have_common_notations():
    assert [duration(s) for s in (0, 75.2, 3700)] == ["0:00", "1:15", "1:01:40"]
    assert [span(s) for s in (-1, 3, 119, 7300, 200000, None, math.inf)] == ["0s", "3s", "1m", "2h", "2d", "–", "–"]
    assert [quantity(v, "B") for v in (12, 1500, 2.5e9)] == ["12 B", "1.5 kB", "2.5 GB"]
    assert quantity(1234, "samples") == "1,234 samples"
    assert [parameter_count(c) for c in (8_767_123_824, 310_000)] == ["8.77 billion", "0.3 million"]


def test_a_tick_has_enough_digits_for_its_distance():
    assert [tick(v, 0.5) for v in (0, 0.5, 1.0)] == ["0", "0.5", "1.0"]


def test_printable_text_has_no_control_sequences():
    assert printable("x\x1b]0;title\x07\r\ny\tz") == "x␛]0;title␇\ny   z"
    assert printable("a\u202eb\u2066c\u2028d\x9be\ud800") == "a\ufffdb\ufffdc d\ufffde\ufffd"
    assert printable("👩\u200d🚀 نمی\u200cخواهم 狗") == "👩\u200d🚀 نمی\u200cخواهم 狗"
