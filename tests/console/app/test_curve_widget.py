"""The curve widget: what it draws, zoom, pan and crosshair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from textual.app import App

from console.curves.lines import CurveLine
from console.widgets.curve import NARROWEST, Curve
from tests.console.app.driving import LARGE, SMALL, driven, text_of, until

CSS = "Curve { width: 100%; height: 100%; } Curve > .curve--cross { color: red; background: blue; } " + " ".join(
    f"Curve > .curve--{name} {{ color: ansi_red; }}" for name in ("axis", "text", *(f"line-{i}" for i in range(6)))
)


class Bench(App):
    CSS = CSS

    def compose(self):
        yield Curve()

    @property
    def curve(self) -> Curve:
        return self.query_one(Curve)


def line(y, label="0001-run", start=1, slot=0, noisy=False) -> CurveLine:
    y = np.asarray(y, float)
    return CurveLine(label, np.arange(start, start + len(y)), y, noisy, slot)


def braille(text: str) -> int:
    return sum(0x2800 < ord(c) < 0x2900 for c in text)


def look(scene, size=SMALL):
    async def play(pilot):
        await scene(pilot, pilot.app.curve)

    return driven(play, Bench(), size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_axes_with_round_ticks_title_and_legend(size):
    async def scene(pilot, curve):
        curve.show([line(np.linspace(4, 1, 1000)), line(np.linspace(3, 1, 900), "0002-other", slot=1)], "loss", "reading")
        await pilot.pause()
        text = text_of(pilot.app)
        head, *rows, rule, labels = text.splitlines()
        assert "loss · reading" in head and "━━ 0001-run" in head and "━━ 0002-other" in head
        assert any(row.lstrip().startswith("2┤") or row.lstrip().startswith("2.0┤") for row in rows)
        assert "└" in rule and rule.count("┬") >= 3
        assert "200" in labels and "800" in labels
        assert braille(text) > size[0]
        assert all(len(row) == size[0] for row in text.splitlines())

    look(scene, size)


@pytest.mark.parametrize("y", [[], [math.nan], [math.nan] * 5])
def test_a_curve_without_data_says_so(y):
    async def scene(pilot, curve):
        curve.show([line(y)], "loss", "", "waiting for the first step")
        for key in ("zoom", "pan", "cross"):
            getattr(curve, f"action_{key}")(1)
        await pilot.pause()
        assert braille(text_of(pilot.app)) == 0
        assert "waiting for the first step" in text_of(pilot.app) or len(y)

    look(scene)


@pytest.mark.parametrize("y", [[2.0], [3.0] * 50, [0.0] * 3, [-1e-9, 1e9]])
def test_one_point_and_constant_series_are_drawn(y):
    async def scene(pilot, curve):
        curve.show([line(y)], "loss")
        await pilot.pause()
        assert braille(text_of(pilot.app)) > 0

    look(scene)


def test_zoom_pan_and_reset():
    async def scene(pilot, curve):
        curve.show([line(np.ones(1001), start=0)], "loss")
        curve.action_zoom(0.5)
        assert curve.view == pytest.approx((500, 1000))
        curve.action_pan(-0.5)
        assert curve.view == pytest.approx((250, 750))
        curve.action_pan(-9)
        assert curve.view == pytest.approx((0, 500))
        for _ in range(20):
            curve.action_zoom(0.5)
        assert curve.view[1] - curve.view[0] == pytest.approx(NARROWEST)
        for _ in range(20):
            curve.action_zoom(2.0)
        assert curve.view is None
        curve.action_zoom(0.5)
        curve.action_reset()
        assert curve.shown == (0, 1000)

    look(scene)


def test_a_view_at_the_newest_step_follows_it_and_others_stay():
    async def scene(pilot, curve):
        curve.show([line(np.ones(101), start=0)], "loss")
        curve.action_zoom(0.5)
        curve.show([line(np.ones(121), start=0)], "loss")
        assert curve.view == pytest.approx((70, 120))
        curve.action_pan(-0.5)
        before = curve.view
        curve.show([line(np.ones(141), start=0)], "loss")
        assert curve.view == before
        curve.show([line(np.ones(10), start=5000)], "loss")
        assert curve.view is None

    look(scene)


def test_the_crosshair_shows_the_values_of_every_line():
    async def scene(pilot, curve):
        y = np.linspace(4, 1, 101)
        curve.show([line(y, start=0, noisy=True), line(y * 2, "0002-other", start=0, slot=1)], "loss")
        curve.action_cross(-1)
        assert curve.crosshair == 100
        for _ in range(10):
            curve.action_cross(-1)
        await pilot.pause()
        head, *rows = text_of(pilot.app).splitlines()
        step = curve.values_at(curve.crosshair)[0][1]
        assert (
            f"step {step:,}" in head
            and f"{y[step]:.4g} (avg {curve.values_at(curve.crosshair)[0][3]:.4g})" in head
            and f"{2 * y[step]:.4g}" in head
        )
        columns = [row.index("┊") for row in rows if "┊" in row]
        assert len(columns) > 5 and len(set(columns)) == 1
        grounds = {s.style.bgcolor for y in range(1, 20) for s in curve.render_line(y) if braille(s.text) == len(s.text) == 1}
        assert len(grounds) >= 1 and any(ground != curve.rich_style.bgcolor for ground in grounds)
        assert curve.hide_crosshair() and not curve.hide_crosshair()
        await pilot.pause()
        assert "┊" not in text_of(pilot.app)

    look(scene)


def test_the_mouse_points_zooms_and_drags():
    async def scene(pilot, curve):
        curve.show([line(np.arange(1001.0), start=0)], "loss")
        await pilot.hover(Curve, offset=(40, 10))
        assert 350 < curve.crosshair < 650
        await pilot.mouse_down(Curve, offset=(40, 10))
        await pilot.hover(Curve, offset=(20, 10))
        await pilot.mouse_up(Curve, offset=(20, 10))
        assert curve.view is None  # all is in view: nothing to drag to
        curve.action_zoom(0.5, 500.0)
        begin = curve.view[0]
        await pilot.mouse_down(Curve, offset=(40, 10))
        await pilot.hover(Curve, offset=(20, 10))
        await pilot.mouse_up(Curve, offset=(20, 10))
        assert curve.view[0] > begin

    look(scene)


def test_a_logarithmic_axis_has_powers_of_ten():
    async def scene(pilot, curve):
        curve.log_wanted = True
        curve.show([line(10.0 ** -np.linspace(0, 6, 500))], "loss")
        await pilot.pause()
        text = text_of(pilot.app)
        assert "1e-5┤" in text and "0.01┤" in text

    look(scene)


def test_nonpositive_values_are_gaps_on_a_logarithmic_axis():
    async def scene(pilot, curve):
        curve.log_wanted = True
        curve.show([line([-1.0, 0.0, -2.0])], "loss")
        await pilot.pause()
        assert braille(text_of(pilot.app)) == 0

    look(scene)


def test_the_curve_adapts_to_any_terminal_size():
    async def scene(pilot, curve):
        curve.show([line(np.ones(100))], "loss")
        for size in ((40, 8), (20, 5), (10, 3), (1, 1), (200, 60)):
            await pilot.resize_terminal(*size)
            await until(pilot, lambda size=size: curve.size == size)
        await until(pilot, lambda: braille(text_of(pilot.app)) > 100)

    look(scene)


def colours_of(curve) -> set[str]:
    return {segment.style.color.name for strip in curve._strips for segment in strip if segment.style and braille(segment.text)}


def test_up_to_one_point_a_column_the_values_are_bold_then_they_fade_under_their_average():
    async def scene(pilot, curve):
        noise = np.random.default_rng(0).normal(5, 1, 2000)
        curve.show([line(noise[:60], noisy=True)], "loss")
        await pilot.pause()
        assert curve.size.width == 80 and len(colours_of(curve)) == 1 and "loss · raw" in text_of(pilot.app)
        curve.show([line(noise, noisy=True)], "loss")
        await pilot.pause()
        assert len(colours_of(curve)) == 2 and "loss · avg of 1" in text_of(pilot.app)
        curve._look_at(500, 50)
        await pilot.pause()
        assert len(colours_of(curve)) == 1 and "loss · raw" in text_of(pilot.app)
        curve.action_reset()
        curve.share = 0.0
        curve.rebuild()
        await pilot.pause()
        assert len(colours_of(curve)) == 1 and "loss · raw" in text_of(pilot.app)

    look(scene)


def test_the_axis_is_logarithmic_by_itself_when_the_span_asks_for_it():
    async def scene(pilot, curve):
        falling = 10 * np.exp(-np.arange(300) / 40) + 0.05
        curve.show([line(falling, noisy=True)], "loss")
        await pilot.pause()
        assert curve.log_y and "log-y" in text_of(pilot.app)
        curve._look_at(200, 50)
        await pilot.pause()
        assert not curve.log_y and "log-y" not in text_of(pilot.app), "what is in view decides"
        curve.action_reset()
        curve.log_wanted = False
        curve.rebuild()
        assert not curve.log_y, "until the user does"
        curve.log_wanted = None
        for y in (falling - 0.5, np.where(np.arange(300) == 30, 1e-6, 2.0), np.linspace(9, 1, 300)):
            curve.show([line(y, noisy=True)], "loss")
            assert not curve.log_y, "negative values, one very small value and a small span do not ask for it"
        curve.show([line(falling)], "lr")
        assert not curve.log_y, "nor does a schedule, which ends at nearly nothing"

    look(scene)


@pytest.mark.parametrize("log", [False, True])
def test_the_highest_and_the_lowest_value_label_the_top_and_the_bottom(log):
    async def scene(pilot, curve):
        curve.log_wanted = log
        y = np.linspace(1, 2, 400)
        y[100], y[300] = 7.77, 0.123
        curve.show([line(y)], "loss")
        await pilot.pause()
        _, *rows, _, _ = text_of(pilot.app).splitlines()
        assert rows[0].lstrip().startswith("7.77┤") and rows[-1].lstrip().startswith("0.123┤")
        assert sum("┤" in row for row in rows) > 3

    look(scene)


def test_a_million_points_are_drawn_in_milliseconds():
    async def scene(pilot, curve):
        import time

        y = np.random.default_rng(0).normal(0, 1, 1_000_000)
        lines = [line(y, noisy=True)]
        curve.show(lines, "loss")
        begin = time.process_time()
        for _ in range(5):
            curve.show(lines, "loss")
        assert (time.process_time() - begin) / 5 < 0.15

    look(scene, LARGE)
