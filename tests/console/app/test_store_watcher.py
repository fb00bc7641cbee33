"""What the screens read from the store."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from console.readers import store_watcher
from console.readers.monitor import MonitorFeed
from console.readers.store_watcher import StoreWatcher
from console.runs import diagnosis, launch
from console.runs.filters import matches
from console.runs.state import read_state, write_json
from tests.console.app.driving import SLEEPER, loss


def test_a_row_shows_a_run_and_its_progress(store):
    run = store.ended(store.finetune(steps=40, total=100), "stopped", 143)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("30\n")
    row = StoreWatcher(store.root).look().get(run.id)
    assert (row.kind, row.status, row.exit_code, row.step, row.total) == ("finetune", "stopped", 143, 40, 100)
    assert row.metrics["loss"] == pytest.approx(loss(40)) and row.percent == 0.4 and len(row.spark) == store_watcher.SPARK_CELLS
    assert (row.checkpoint, row.saved, row.checkpoint_text) == ("30", "step 30", "checkpoint of step 30") and row.last_line.startswith(
        "step 40/100"
    )
    assert row.command.startswith("qwen3vl finetune --load ") and "--train-iters 100" not in row.command
    assert row.eta is None and 0 < row.age(row.ended + 50) <= 50


def test_a_live_run_has_a_step_time_and_an_eta(store):
    run = store.finetune(steps=40, total=100, code=SLEEPER)
    row = StoreWatcher(store.root).look().get(run.id)
    assert row.alive and row.step_seconds == pytest.approx(2.0) and row.eta == pytest.approx(120.0)


def test_the_step_time_is_that_of_the_last_attempt(store):
    run = store.ended(store.finetune(steps=10))
    with open(run.metrics, "a") as file:
        for step in range(5, 9):
            file.write(json.dumps({"kind": "train", "step": step, "time": 9000.0 + 4 * step, "loss": 1.0}) + "\n")
    assert StoreWatcher(store.root).look().rows[0].step_seconds == pytest.approx(4.0)


def test_an_evaluation_far_back_is_found(store):
    run = store.ended(store.finetune(steps=3))
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"kind": "eval", "step": 3, "loss": 1.5}) + "\n")
        for step in range(4, 2000):
            file.write(json.dumps({"kind": "train", "step": step, "time": 1.0 * step, "loss": 1.0}) + "\n")
    row = StoreWatcher(store.root).look().rows[0]
    assert row.latest["eval"]["loss"] == 1.5 and row.latest["train"]["step"] == row.step == 1999


def test_only_changed_files_are_read_again_and_deleted_runs_forgotten(store):
    first, second = store.ended(store.finetune("one")), store.ended(store.finetune("two"))
    watcher = StoreWatcher(store.root)
    before = watcher.look()
    assert watcher.look().get(first.id) is before.get(first.id)
    store.metrics(first, 50, 100)
    assert watcher.look().get(first.id).step == 50
    shutil.rmtree(second.path)
    assert [row.id for row in watcher.look().rows] == [first.id]


def test_many_runs_are_read_over_several_looks_newest_first(store, monkeypatch):
    for name in ("one", "two", "three"):
        store.ended(store.finetune(name, steps=5))
    monkeypatch.setattr(store_watcher, "LOOK_SECONDS", -1.0)
    watcher = StoreWatcher(store.root)
    for count in (1, 2, 3):
        snapshot = watcher.look()
        assert [row.id for row in snapshot.rows] == ["0003-three", "0002-two", "0001-one"][:count] and snapshot.unread == 3 - count


def test_ended_runs_are_checked_in_turn_and_a_resumed_one_is_seen_at_once(store, monkeypatch):
    monkeypatch.setattr(store_watcher, "FEW", 2)
    runs = [store.ended(store.finetune(f"run {i}", steps=3)) for i in range(8)]
    watcher = StoreWatcher(store.root)
    looked = []
    monkeypatch.setattr(watcher, "_row", lambda run, real=watcher._row: looked.append(run.id) or real(run))
    watcher.look()
    assert len(looked) == 8
    looked.clear()
    for _ in range(4):
        watcher.look()
    assert set(looked) == {run.id for run in runs} and len(looked) < 4 * 8
    write_json(runs[0].path / "state.json", read_state(runs[0].path) | {"status": "failed", "exit_code": 1})
    assert watcher.look().get(runs[0].id).status == "failed"


def test_the_sparkline_of_a_long_run_is_sampled_from_its_file(store):
    run = store.ended(store.finetune(steps=5000, total=5000))
    assert run.metrics.stat().st_size > 600_000
    row = StoreWatcher(store.root).look().get(run.id)
    assert len(row.spark) == store_watcher.SPARK_CELLS and row.spark[0] == "█" and row.spark[-1] == "▁" and row.step == 5000


def test_a_failed_run_shows_the_reason_from_its_log(store):
    run = store.finetune("greedy", steps=3)
    run.log.write_text("step 3\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nChildFailedError\n")
    store.ended(run, "failed", 1)
    assert StoreWatcher(store.root).look().rows[0].error.startswith("out of GPU memory: torch.OutOfMemoryError: CUDA out of memory")


def test_the_growing_log_of_a_lost_run_is_not_searched_at_each_look(store, monkeypatch):
    """Processes left behind by a killed supervisor may write for hours."""
    run = store.ended(store.finetune(steps=3), "lost", None)
    why, searches = StoreWatcher._why, []
    monkeypatch.setattr(StoreWatcher, "_why", staticmethod(lambda run, code: searches.append(run.id) or why(run, code)))
    watcher, feed = StoreWatcher(store.root), MonitorFeed(StoreWatcher(store.root))
    assert watcher.look().get(run.id).error == "" and feed.read(run, [], "loss").diagnosis is None
    searched, looked_at = diagnosis.explain, []
    monkeypatch.setattr(diagnosis, "explain", lambda lines, code: looked_at.append(list(lines)) or searched(lines, code))
    for line in ("step 4", "torch.OutOfMemoryError: CUDA out of memory"):
        with open(run.log, "a") as file:
            file.write(line + "\n")
        watcher.look()
        found = feed.read(run, [], "loss").diagnosis
    assert searches == [run.id] and looked_at == [["step 4"], ["torch.OutOfMemoryError: CUDA out of memory"]]
    assert found.name == "gpu_memory"
    monkeypatch.setattr(store_watcher, "WHY_SECONDS", 0.0)
    assert "out of GPU memory" in watcher.look().get(run.id).error, "a later look finds it"
    assert len(searches) == 2 and watcher.look() and len(searches) == 2, "and what does not change is not searched again"


def test_memory_for_the_planned_steps_of_a_live_run_is_preallocated(store):
    live, ended = store.finetune("live", steps=5, total=900, code=SLEEPER), store.ended(store.finetune("ended", steps=5, total=900))
    feed = MonitorFeed(StoreWatcher(store.root))
    (line,), (done,) = feed.read(live, [], "loss").lines, feed.read(ended, [], "loss").lines
    assert all(len(array) == 5 for array in (line.x, line.y))
    assert [len(array.base) for array in (line.x, line.y)] == [900, 900]
    assert len(done.y) == 5 and len(done.y.base) < 900


def test_a_damaged_run_is_listed_without_a_crash(store):
    good = store.ended(store.finetune())
    bad = store.root / "0002-bad"
    bad.mkdir()
    (bad / "plan.json").write_text('{"kind": 7, "options": [], "command": "x"}')
    (bad / "metrics.jsonl").write_text('nonsense\n{"kind": "train", "step": "x", "loss": [1]}\n{"kind": []}\n')
    (bad / "output.log").write_bytes(b"\x1b[31mred\x1b[0m\r\n\xff\xfe")
    snapshot = StoreWatcher(store.root).look()
    assert [row.id for row in snapshot.rows] == ["0002-bad", good.id]
    assert snapshot.rows[0].kind == "unknown" and snapshot.rows[0].status == "lost" and "\x1b" not in snapshot.rows[0].last_line


def test_a_missing_store_is_empty_and_a_file_is_an_error(tmp_path):
    assert StoreWatcher(tmp_path / "none").look().rows == ()
    (tmp_path / "file").write_text("")
    assert "is a file" in StoreWatcher(tmp_path / "file").look().error


def test_percent_of_other_runs_comes_from_their_progress_line(store):
    run = store.other("prepare", "import time; print('prepare ━━━── 42%  12 of 30', flush=True); time.sleep(600)")
    watcher = StoreWatcher(store.root)
    while (row := watcher.look().get(run.id)).percent is None:
        assert row.alive
    assert row.percent == 0.42 and row.step is None


def test_filter_words(store):
    store.ended(store.finetune("Long Captions"), "failed", 1)
    row = StoreWatcher(store.root).look().rows[0]
    for query, passes in {
        "": True, "long": True, "LONG failed": True, "status:fail": True, "status:done": False, "kind:fine": True, "kind:long": False,
        "name:captions kind:finetune": True, "0001": True, "nothing": False, "lr:1e-5": True, "lr:0.1": False, "tp:1": True,
        "packing:no": True, "size:8B": False, "train-iters:100": True, "nonsense:1": False,
    }.items():  # fmt: skip
        assert matches(row, query) is passes, query


# the monitor's feed


def test_the_feed_returns_lines_averages_metrics_events_and_the_log(store):
    run, other = store.ended(store.finetune("one", 40)), store.ended(store.finetune("two", 60))
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"kind": "eval", "step": 40, "loss": 1.5}) + "\n")
    feed = MonitorFeed(StoreWatcher(store.root))
    view = feed.read(run, [other], "loss")
    assert [line.label for line in view.lines] == [run.id, other.id, "val loss"]
    np.testing.assert_allclose(view.lines[0].y, [loss(i) for i in range(1, 41)])
    assert [line.noisy for line in view.lines] == [True, True, False]
    assert view.extremes.lowest == (40, pytest.approx(loss(40))) and view.extremes.highest == (1, pytest.approx(loss(1)))
    assert view.evaluated.lowest == (40, 1.5)
    assert view.metrics[:3] == ("loss", "lr", "grad_norm") and "eval/loss" not in view.metrics
    assert view.log.lines[-1].startswith("step 40") and view.events[0]["event"] == "start"
    assert not feed.read(run, [], "lr").lines[0].noisy


def test_the_extreme_values_follow_new_steps_and_a_resume(store):
    run = store.ended(store.finetune(steps=30))
    feed = MonitorFeed(StoreWatcher(store.root))
    assert feed.read(run, [], "loss").extremes.lowest[0] == 30
    with open(run.metrics, "a") as file:
        for step in range(31, 36):
            file.write(json.dumps({"kind": "train", "step": step, "loss": loss(step)}) + "\n")
    assert feed.read(run, [], "loss").extremes.lowest[0] == 35
    with open(run.metrics, "a") as file:
        file.write(json.dumps({"kind": "train", "step": 10, "loss": 9.0}) + "\n")
    back = feed.read(run, [], "loss")
    assert len(back.lines[0].x) == 10 and back.extremes.lowest[0] == 9 and back.extremes.highest == (10, 9.0)


def test_the_log_counts_the_lines_that_it_dropped(store, monkeypatch):
    monkeypatch.setattr("console.readers.monitor.LOG_LINES", 10)
    run = store.ended(store.finetune(steps=5))
    feed = MonitorFeed(StoreWatcher(store.root))
    assert feed.read(run, [], "loss").log.dropped == 0
    with open(run.log, "a") as file:
        file.write("".join(f"more {i}\n" for i in range(8)))
    view = feed.read(run, [], "loss").log
    assert len(view.lines) == 10 and view.dropped == 3
    run.log.write_text("new\n")
    view = feed.read(run, [], "loss").log
    assert view.lines == ("new",) and view.dropped == 0 and view.resets == 1


def test_the_end_of_a_run_is_noticed(store):
    run = store.other("convert", "print('verified')")
    watcher = StoreWatcher(store.root)
    launch.wait(run, 150)
    row = watcher.look().get(run.id)
    assert row.status == "done" and row.last_line == "verified" and row.exit_code == 0
