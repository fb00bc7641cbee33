"""Screen 3: one run, live."""

from __future__ import annotations

import json
import re

import pytest

from console.runs import launch
from console.widgets.curve import Curve
from console.widgets.log_pane import LogPane
from tests.console.app.driving import LARGE, LOOKS, SLEEPER, SMALL, driven, looked, loss, press, said, text_of, until


def braille(text: str) -> int:
    return sum(0x2800 < ord(c) < 0x2900 for c in text)


async def at_monitor(pilot):
    await press(pilot, "3")
    await until(pilot, lambda: pilot.app.screen.view is not None or pilot.app.screen.row is None)
    await looked(pilot)
    return pilot.app.screen


@pytest.mark.parametrize("size, theme", LOOKS)
def test_curve_numbers_and_log_of_a_live_run_are_shown(store, size, theme):
    run = store.finetune("live", 40, 100, SLEEPER)

    async def scene(pilot):
        screen = await at_monitor(pilot)
        text = text_of(pilot.app)
        assert braille(text) > 40 and "loss" in text and "┬" in text and "┤" in text
        assert "▶ running" in text and "40%" in text and "40/100" in text and "2:00" in text
        assert f"{loss(40):.4g}" in text and "1e-5" in text and "none yet" in text and "50" in text
        assert "● following" in text and "step 40/100" in text
        store.metrics(run, 60, 100)
        with open(run.log, "a") as file:
            file.write("\x1b[32mstep 60/100\x1b[0m\n")
        await until(pilot, lambda: "60/100" in text_of(pilot.app) and "step 60" in text_of(pilot.app))
        assert screen.view.lines[0].x[-1] == 60
        assert "\x1b" not in text_of(pilot.app)

    driven(scene, store.app(), size, theme)


def test_without_any_run_it_says_what_to_do(store):
    async def scene(pilot):
        await at_monitor(pilot)
        assert "No run to watch yet" in text_of(pilot.app)
        await press(pilot, "x", "o", "tab", "plus", "F", "n")
        assert "no run selected" in said(pilot.app)
        store.ended(store.finetune("first"))
        await until(pilot, lambda: "0001-first" in text_of(pilot.app))

    driven(scene, store.app())


def test_the_newest_live_run_is_shown_by_default(store):
    store.finetune("live", 5, 100, SLEEPER)
    store.ended(store.finetune("newer"))

    async def scene(pilot):
        screen = await at_monitor(pilot)
        assert screen.run_id == "0001-live"

    driven(scene, store.app())


def test_the_keys_of_the_curve(store):
    store.ended(store.finetune("long", 400, 400))

    async def scene(pilot):
        screen = await at_monitor(pilot)
        curve = screen.query_one(Curve)
        assert curve.has_focus
        await press(pilot, "plus")
        narrow = curve.view
        assert narrow is not None and narrow[1] == 400
        await press(pilot, "left")
        assert curve.view[1] < 400
        await press(pilot, "right", "minus")
        assert curve.view is None
        await press(pilot, "equals_sign", "r")
        assert curve.view is None
        await press(pilot, "l")
        assert curve.log_y and "log-y" in text_of(pilot.app)
        for share in (0.05, 0.1, 0.2, 0.0, 0.02):
            head = text_of(pilot.app).splitlines()[1]
            window = re.search(r"avg of (\d+) steps", head)
            assert ("· raw" in head) if not share else abs(int(window[1]) - share * 400) < 5
            await press(pilot, "m")
        await press(pilot, "shift+left", "shift+left")
        assert "┊" in text_of(pilot.app) and "step 39" in text_of(pilot.app)
        await press(pilot, "escape")
        assert "┊" not in text_of(pilot.app)
        for title in ("lr", "grad norm", "step time (s)", "tokens/s"):
            await press(pilot, "tab")
            await until(pilot, lambda title=title: f" {title}" in text_of(pilot.app).splitlines()[1])

    driven(scene, store.app(), LARGE)


def test_another_run_is_overlaid_and_removed(store):
    store.ended(store.finetune("one", 50))
    store.ended(store.finetune("two", 80))
    store.ended(store.finetune("three", 90))

    async def scene(pilot):
        screen = await at_monitor(pilot)
        assert screen.run_id == "0003-three"
        await press(pilot, "o")
        assert "Runs over this one" in text_of(pilot.app) and "0001-one" in text_of(pilot.app)
        await press(pilot, "down", "space", "enter")
        await until(pilot, lambda: len(screen.view.lines) == 2)
        assert "0001-one" in text_of(pilot.app) and screen.view.lines[1].label == "0001-one"
        await press(pilot, "o", "escape")
        assert screen.others == ["0001-one"]
        await press(pilot, "o", "down", "space", "enter")
        await until(pilot, lambda: len(screen.view.lines) == 1)

    driven(scene, store.app(), LARGE)


def test_search_follow_and_matches(store):
    run = store.ended(store.finetune("talks", 40))
    run.log.write_text("".join(f"line {i}{' NaN here' if i in (100, 200) else ''}\n" for i in range(400)))

    async def scene(pilot):
        screen = await at_monitor(pilot)
        pane = screen.query_one(LogPane)
        await press(pilot, "slash", *"nan")
        assert screen.query_one("#find").value == "nan"
        await press(pilot, "enter")
        text = text_of(pilot.app)
        assert "“nan” 2 of 2  enter" in text and "line 200 NaN" in text and "F follows" in text
        await press(pilot, "enter")
        assert "“nan” 1 of 2" in text_of(pilot.app) and "line 100 NaN" in text_of(pilot.app)
        await press(pilot, "escape", "n")
        assert pane.has_focus and "“nan” 2 of 2  n N" in text_of(pilot.app)
        await press(pilot, "N", "F")
        assert "line 399" in text_of(pilot.app) and "● following" in text_of(pilot.app)
        await press(pilot, "up")
        assert not pane.follow
        await press(pilot, "slash", *"/q", "enter")
        assert "nowhere" in text_of(pilot.app)

    driven(scene, store.app())


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_run_without_a_curve_shows_only_the_log(store, size):
    run = store.other("prepare", "print('\\n'.join(f'picture {i}' for i in range(90)))\nraise SystemExit(2)")
    launch.wait(run, 150)

    async def scene(pilot):
        screen = await at_monitor(pilot)
        assert screen.query_one(LogPane).has_focus and not screen.query_one(Curve).display
        text = text_of(pilot.app)
        assert "✗ failed, exit code 2" in text and "$ qwen3vl prepare" in text
        shown = [line for line in text.splitlines() if line.startswith(" picture ")]
        assert len(shown) >= size[1] - 9 and "picture 89" in shown[-1]
        await press(pilot, "o")
        assert "no other finetune" not in said(pilot.app)

    driven(scene, store.app(), size)


def test_nan_skipped_steps_and_failures_are_shown(store):
    run = store.finetune("sick", 30)
    with open(run.metrics, "a") as file:
        for step in (31, 32):
            file.write(json.dumps({"kind": "train", "step": step, "time": 1.0, "loss": None, "lr": None}) + "\n")
            file.write(json.dumps({"kind": "event", "step": step, "time": 1.0, "event": "nan", "text": f"step {step}: loss nan"}) + "\n")
    store.ended(run, "failed", 1, "ended by SIGKILL")

    async def scene(pilot):
        await at_monitor(pilot)
        text = text_of(pilot.app)
        assert "⚠ step 32: loss nan ×2" in text and "ended by SIGKILL" in text and "nan" in text

    driven(scene, store.app(), LARGE)


def test_switching_runs_clears_the_previous_run(store):
    store.ended(store.finetune("one", 50))
    two = store.finetune("two", 0)
    two.log.write_text("")
    two.metrics.unlink()
    store.ended(two, "failed", 1)

    async def scene(pilot):
        app = pilot.app
        app.watch_run("0001-one")
        await until(pilot, lambda: app.current_mode == "monitor" and braille(text_of(app)) > 20)
        app.watch_run("0002-two")
        await until(pilot, lambda: app.screen.view is not None and app.screen.view.run_id == "0002-two")
        await looked(pilot)
        text = text_of(app)
        assert braille(text) == 0 and "no metrics: the log says why" in text and "nothing printed yet" in text and "step 50" not in text

    driven(scene, store.app())


def test_stopping_from_the_monitor(store):
    run = store.finetune("live", 5, 100, SLEEPER)

    async def scene(pilot):
        await at_monitor(pilot)
        await press(pilot, "x", "y")
        await until(pilot, lambda: run.status == "stopped")
        await until(pilot, lambda: "■ stopped" in text_of(pilot.app))
        await press(pilot, "y")
        assert pilot.app.clipboard.startswith("qwen3vl finetune")

    driven(scene, store.app())


def test_resizing_keeps_the_curve_and_the_end_of_the_log(store):
    store.ended(store.finetune("long", 300, 300))

    async def scene(pilot):
        await at_monitor(pilot)
        for size in (LARGE, (60, 16), (120, 30), SMALL):
            await pilot.resize_terminal(*size)
            await until(pilot, lambda size=size: pilot.app.screen.size == size)
            await until(pilot, lambda: braille(text_of(pilot.app)) > 10 and "step 300/300" in text_of(pilot.app), str(size))

    driven(scene, store.app())
