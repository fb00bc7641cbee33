"""Screen 1: the table of runs."""

from __future__ import annotations

import json
import re

import pytest

from console.runs import launch
from console.widgets.run_list import RunList
from tests.console.app.driving import LARGE, LOOKS, SLEEPER, SMALL, checkpoint, driven, press, said, text_of, until


@pytest.mark.parametrize("size, theme", LOOKS)
def test_every_run_is_a_row_with_state_steps_loss_curve_and_age(store, size, theme):
    store.ended(store.finetune("short captions", 100, 100))
    store.ended(store.finetune("broken", 3, 100), "failed", 1, "ended by SIGKILL")
    store.finetune("live", 40, 100, SLEEPER)

    async def scene(pilot):
        await until(pilot, lambda: "▶" in text_of(pilot.app))
        text = text_of(pilot.app)
        table = [line[: pilot.app.screen.query_one(RunList).region.right] for line in text.splitlines()]  # without the preview beside it
        rows = {found[0]: line for line in reversed(table) if (found := re.search(r"\d{4}-[a-z-]+", line))}
        assert "40/100" in rows["0003-live"] and "▶" in rows["0003-live"]
        assert ("finetune" in rows["0003-live"]) == (size == SMALL), "beside the preview the kind gives way"
        assert "✓" in rows["0001-short-captions"] and "100/100" in rows["0001-short-captions"] and "1.02" in rows["0001-short-captions"]
        assert any(block in rows["0001-short-captions"] for block in "▁▂█")
        assert "✗" in rows["0002-broken"]
        assert "● 1 live" in text and "no checkpoint yet" in text
        assert ("failed 1" in text) == (size == LARGE)
        assert all(len(line.rstrip()) <= size[0] for line in text.splitlines())

    driven(scene, store.app(), size, theme)


@pytest.mark.parametrize(
    "loss, narrow, wide",
    [(0.0152436, "0.0152", "0.01524"), (1.23456e-7, "1.2e-7", "1.23e-7"), (123.4567, "123.5", "123.5")],
)
def test_a_loss_is_rounded_to_its_column_and_not_cut_off(store, loss, narrow, wide):
    run = store.finetune("one", 3)
    run.metrics.write_text(json.dumps({"v": 1, "kind": "train", "step": 3, "time": 1.0, "loss": loss}) + "\n")
    store.ended(run)

    for size, text in ((SMALL, narrow), (LARGE, wide)):

        async def scene(pilot, text=text):
            await until(pilot, lambda: f" {text} " in text_of(pilot.app), text)

        driven(scene, store.app(), size)


def test_an_empty_store_says_what_to_do_next(store):
    async def scene(pilot):
        text = text_of(pilot.app)
        # a long path goes over two lines
        assert "No run yet" in text and "2" in text and str(store.root)[-20:] in "".join(text.split())
        await press(pilot, "enter", "x", "c", "y", "R")
        assert "there is no run here" in said(pilot.app)
        await press(pilot, "2")
        assert pilot.app.current_mode == "launch"

    driven(scene, store.app())


def test_new_runs_and_new_steps_appear_and_the_cursor_stays_on_its_run(store):
    run = store.finetune("first", 10, 100, SLEEPER)
    store.ended(store.finetune("second"))

    async def scene(pilot):
        screen = pilot.app.screen
        await press(pilot, "down")
        assert screen.chosen_id == run.id
        store.metrics(run, 55, 100)
        await until(pilot, lambda: "55/100" in text_of(pilot.app))
        store.ended(store.finetune("third"))
        await until(pilot, lambda: "0003-third" in text_of(pilot.app))
        assert screen.chosen_id == run.id
        launch.stop(run)
        await until(pilot, lambda: "■" in text_of(pilot.app))
        assert "○ 0 live" in text_of(pilot.app)

    driven(scene, store.app())


def test_the_filter_narrows_the_list_accepts_slashes_and_is_cleared(store):
    store.ended(store.finetune("one"))
    store.ended(store.finetune("two"), "failed", 1)

    async def scene(pilot):
        screen = pilot.app.screen
        await press(pilot, "slash", *"failed")
        assert [row.id for row in screen.rows] == ["0002-two"]
        await press(pilot, "enter")
        assert screen.query_one(RunList).has_focus
        await press(pilot, "slash", *"/x1")
        assert screen.query_one("#filter").value == "failed/x1" and screen.rows == []
        assert "No run of 2 passes" in text_of(pilot.app)
        await press(pilot, "escape")
        assert len(screen.rows) == 2 and screen.query_one(RunList).has_focus

    driven(scene, store.app())


def test_stopping_asks_for_confirmation_naming_run_and_checkpoint(store):
    run = store.finetune("precious", 40, 100, SLEEPER)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("30")

    async def scene(pilot):
        await press(pilot, "x")
        text = text_of(pilot.app)
        assert "Stop 0001-precious?" in text and "checkpoint of step 30" in text and "step 40 of 100" in text
        await press(pilot, "enter")  # the safe answer has the focus
        assert run.alive and "Stop 0001" not in text_of(pilot.app)
        await press(pilot, "x", "escape")
        assert run.alive
        await press(pilot, "x", "y")
        await until(pilot, lambda: run.status == "stopped", "stopped")
        await until(pilot, lambda: "■" in text_of(pilot.app))
        await press(pilot, "x")
        assert "stopped already; nothing to stop" in said(pilot.app)

    driven(scene, store.app())


def test_a_stopped_run_is_resumed_and_a_done_one_is_refused_in_one_line(store):
    run = store.finetune("again", 5, 100, "import time; time.sleep(600)")
    launch.stop(run)
    launch.wait(run, 150)
    store.ended(store.finetune("done"))

    async def scene(pilot):
        await press(pilot, "R")
        await until(pilot, lambda: "nothing to resume" in said(pilot.app))
        await press(pilot, "down", "R")
        assert "Resume 0001-again?" in text_of(pilot.app) and not run.alive
        await press(pilot, "y")
        await until(pilot, lambda: run.status == "running")
        await until(pilot, lambda: "resumed" in said(pilot.app))

    driven(scene, store.app())


def test_copy_clone_and_open(store):
    store.ended(store.finetune("original", 10, 100, lr=3e-5))

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "y")
        assert app.clipboard.startswith("qwen3vl finetune --load ") and "--lr 3e-05" in app.clipboard
        await press(pilot, "c")
        await until(pilot, lambda: app.screen.form is not None and app.screen.plan is not None)
        assert app.current_mode == "launch" and app.screen.plan.command == app.clipboard
        await press(pilot, "escape", "1", "enter")
        assert app.current_mode == "monitor" and app.screen.run_id == "0001-original"

    driven(scene, store.app())


def test_a_run_whose_plan_is_damaged_cannot_be_cloned_and_is_shown(store):
    run = store.ended(store.finetune("odd"))
    (run.path / "plan.json").write_text("{}")

    async def scene(pilot):
        await press(pilot, "c")
        assert "cannot be cloned" in said(pilot.app)
        await press(pilot, "enter")
        assert pilot.app.current_mode == "monitor"

    driven(scene, store.app())


def test_resizing_changes_the_columns_and_keeps_the_cursor(store):
    for name in ("one", "two", "three"):
        store.ended(store.finetune(name))

    async def scene(pilot):
        await press(pilot, "down", "down")
        await pilot.resize_terminal(*LARGE)
        await until(pilot, lambda: "last line" in text_of(pilot.app))
        assert pilot.app.screen.chosen_id == "0001-one"
        await pilot.resize_terminal(40, 10)
        await until(pilot, lambda: "last line" not in text_of(pilot.app))

    driven(scene, store.app())


def test_the_files_of_a_run_are_checked_in_the_background_and_the_result_is_shown(store):
    run = store.ended(store.finetune("whole", 3))
    file = checkpoint(run)

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 1)
        await press(pilot, "v")
        await until(pilot, lambda: "every byte: 1 as written" in app.checks.get(run.id, ""))
        await until(pilot, lambda: "checked in the background" in text_of(app))
        assert "1 as written" in said(app) and app.subcommand.startswith("qwen3vl runs check 1 --read-data --background")
        file.write_bytes(b"x" + bytes(999))
        await press(pilot, "v")
        await until(pilot, lambda: "DAMAGED: iter_0000003: __0_0.distcp differs" in said(app))
        assert "DAMAGED" in text_of(app)

    driven(scene, store.app(), LARGE)
