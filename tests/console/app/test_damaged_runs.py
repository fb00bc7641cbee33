"""Damaged run folders, and changes of a folder while it is shown: nothing crashes, and problems are reported."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from console.runs import launch
from console.runs.state import read_state, write_json
from console.widgets.curve import Curve
from console.widgets.log_pane import LogPane
from tests.console.app.driving import LARGE, SLEEPER, driven, looked, loss, press, said, text_of, until


async def watching(pilot, run):
    """The monitor on a run, with its files read."""
    pilot.app.watch_run(run.id)
    await until(pilot, lambda: pilot.app.current_mode == "monitor" and pilot.app.screen.view is not None)
    await looked(pilot)
    return pilot.app.screen


def test_escape_sequences_and_invalid_utf8_in_the_log_never_reach_the_terminal(store):
    run = store.ended(store.finetune("wild", 5))
    run.log.write_bytes(
        b"\x1b[2J\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]52;c;aGFjaw==\x07bell\x07 back\x08space\n"
        b"\x9b31mC1 \xff\xfe\xc3( bad\n\x1bP+q544e\x1b\\dcs \xe2\x80\xaereversed\nprogress 1%\rprogress 99%\n\x1b[unfinished"
    )

    async def scene(pilot):
        await watching(pilot, run)
        text = text_of(pilot.app)
        assert "red" in text and "bell" in text and "progress 99%" in text and "progress 1%" not in text and "\ufffd" in text
        assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066" for c in text.replace("\n", ""))
        assert "title" not in text and "aGFjaw" not in text

    driven(scene, store.app(), LARGE)


def test_a_line_of_fifty_megabytes_is_cut_and_the_next_lines_are_shown(store):
    run = store.ended(store.finetune("long line", 5))
    with open(run.log, "wb") as file:
        file.write(b"before\n")
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b"\nafter\n")

    async def scene(pilot):
        screen = await watching(pilot, run)
        assert "after" in text_of(pilot.app) and "xxxx" in text_of(pilot.app)
        assert max(map(len, screen.query_one(LogPane).lines)) <= 4000
        screen.query_one(LogPane).focus()
        await press(pilot, "home")
        await until(pilot, lambda: "before" in text_of(pilot.app))
        assert "all 3 lines" in text_of(pilot.app) or "before" in text_of(pilot.app)

    driven(scene, store.app())


def test_truncated_or_replaced_logs_and_metrics_are_read_from_the_start(store):
    run = store.finetune("again", 40, 100, SLEEPER)

    async def scene(pilot):
        screen = await watching(pilot, run)
        assert "step 40/100" in text_of(pilot.app)
        os.truncate(run.log, 0)
        store.metrics(run, 3, 100)
        await until(pilot, lambda: len(screen.view.lines[0].x) == 3 and "step 40/100" not in text_of(pilot.app))
        fresh = run.path / "fresh"
        fresh.write_text("another file now\n")
        os.replace(fresh, run.log)
        await until(pilot, lambda: "another file now" in text_of(pilot.app))
        assert "3/100" in text_of(pilot.app)

    driven(scene, store.app())


def test_half_written_rows_are_read_later_and_invalid_ones_skipped(store):
    run = store.finetune("half", 10, 100, SLEEPER)

    async def scene(pilot):
        screen = await watching(pilot, run)
        whole = json.dumps({"v": 1, "step": 11, "time": 1.0, "kind": "train", "loss": 7.125})
        with open(run.metrics, "a") as file:
            file.write('not json\n[1, 2]\n{"kind": "train", "step": "x", "loss": {}}\n{"kind": "event", "event": [], "step": {}}\n')
            file.write(whole[:25])
        await until(pilot, lambda: len(screen.view.events) > 1)
        assert len(screen.view.lines[0].x) == 10
        with open(run.metrics, "a") as file:
            file.write(whole[25:] + "\n")
        await until(pilot, lambda: len(screen.view.lines[0].x) == 11 and "7.125" in text_of(pilot.app))
        assert said(pilot.app) == ""

    driven(scene, store.app(), LARGE)


@pytest.mark.parametrize("plan", [
    '{"kind": "finetune", "options": {"load": "m", "train_data": "d", "warp_speed": 9, "lr": "fast", "tp": [1]}, "command": ["true"]}',
    '{"kind": "finetune", "options": 7, "command": 3, "created": "yesterday"}', '[]', '{"kind": "fine', "\x00\xff",
])  # fmt: skip
def test_a_damaged_plan_is_shown_and_refused_actions_say_why(store, plan):
    run = store.ended(store.finetune("odd", 5), "failed", 1)
    (run.path / "plan.json").write_text(plan)
    store.ended(store.finetune("fine", 5))

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: "0001-odd" in text_of(app))
        await press(pilot, "space", "end", "d")
        assert "Difference" in text_of(app)
        await press(pilot, "escape", "escape", "y", "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.run_id == "0001-odd")
        await press(pilot, "escape", "1", "c")
        await until(pilot, lambda: app.current_mode == "launch" or "cannot be cloned" in said(app))
        if app.current_mode == "launch":
            await until(pilot, lambda: app.screen.plan is not None)
            assert app.screen.form.texts()["load"] == ("m" if '"load"' in plan else "")

    driven(scene, store.app(), LARGE)


def test_a_folder_deleted_while_shown_is_reported(store):
    run = store.ended(store.finetune("doomed", 20))
    store.ended(store.finetune("other", 20))

    async def scene(pilot):
        app = pilot.app
        screen = await watching(pilot, run)
        shutil.rmtree(run.path)
        await until(pilot, lambda: "folder was deleted" in text_of(app))
        assert screen.run_id == run.id
        await press(pilot, "x", "y", "s", "R", "c", "tab", "E")
        await press(pilot, "1")
        await until(pilot, lambda: [row.id for row in app.screen.rows] == ["0002-other"])

    driven(scene, store.app(), LARGE)


def test_a_full_disk_is_a_one_line_error_everywhere(store, tmp_path, monkeypatch):
    live = store.finetune("live", 5, 100, SLEEPER)
    (tmp_path / "captions.json").write_text("[]")

    def full(*words, **more):
        raise OSError(28, "No space left on device")

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: "0001-live" in text_of(app))
        with monkeypatch.context() as disk:
            disk.setattr("pathlib.Path.touch", full)
            app.save_run(live.id)
            await until(pilot, lambda: "No space left on device" in said(app))
        monkeypatch.setattr("console.runs.store.write_json", full)
        await press(pilot, "2")
        await until(pilot, lambda: app.screen.form is not None and app.screen.plan is not None)
        app.screen.query_one("Tabs").active = "kind-prepare"
        await until(pilot, lambda: app.screen.kind == "prepare" and app.screen.form is not None)
        app.screen.form.fill({"source": str(tmp_path / "captions.json"), "to": str(tmp_path / "data")})
        await until(pilot, lambda: app.screen.checked is not None)
        await press(pilot, "ctrl+g", "y")
        await until(pilot, lambda: "the run was not created" in said(app))
        assert [run.id for run in store.store.list()] == [live.id]

    driven(scene, store.app(), LARGE)


def test_two_consoles_show_the_same_runs(store):
    run = store.finetune("shared", 20, 100, SLEEPER)
    other = store.app()

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "x", "y")
        await until(pilot, lambda: run.status == "stopped")
        mine, theirs = app.watcher.look().get(run.id), other.watcher.look().get(run.id)
        assert (mine.status, mine.step) == (theirs.status, theirs.step) == ("stopped", 20)
        assert mine.metrics == theirs.metrics == {"loss": pytest.approx(loss(20))}
        launch.resume(run)
        assert other.watcher.look().get(run.id).alive and app.watcher.look().get(run.id).alive

    driven(scene, store.app())


def test_a_run_without_its_supervisor_is_lost_and_can_be_ended(store):
    run = store.ended(store.finetune("orphan", 20))
    write_json(run.path / "state.json", read_state(run.path) | {"status": "running", "supervisor_pid": 999_999_99, "ended": None})

    async def scene(pilot):
        await until(pilot, lambda: "? 0001-orphan" in text_of(pilot.app))
        await press(pilot, "x")
        assert "End what is left of 0001-orphan?" in text_of(pilot.app)
        await press(pilot, "y")
        await until(pilot, lambda: run.status == "stopped")

    driven(scene, store.app(), LARGE)


def test_a_curve_of_gaps_and_extreme_values_is_drawn(store):
    run = store.ended(store.finetune("extreme", 0))
    rows = [None, 1e308, -1e308, 1e-320, None, 0.0, 5.0]
    run.metrics.write_text("".join(json.dumps({"kind": "train", "step": i, "loss": v}) + "\n" for i, v in enumerate(rows, 1)))

    async def scene(pilot):
        screen = await watching(pilot, run)
        for key in ("l", "m", "plus", "left", "shift+left", "e", "r", "l"):
            await press(pilot, key)
        assert screen.query_one(Curve).lines[0].y.shape == (7,) and said(pilot.app).count("cannot be read") == 0

    driven(scene, store.app(), LARGE)
