"""Curves of real runs: live, thinned, several, exported."""

from __future__ import annotations

import csv
import json
import threading
import time

import numpy as np
import pytest

from console.notebook import Launcher, RunMonitor, metrics
from console.notebook.curves import MOST_POINTS
from console.runs import launch
from qwen3vl_core.errors import RequestError
from tests.console.runs import jobs
from tests.console.runs.jobs import until
from tests.notebooks.conftest import finetune_options, recorded, write_metrics


def lines(monitor: RunMonitor) -> dict[tuple[str, str], list[float]]:
    return {tuple(data.meta): list(data.y) for data in monitor.figure.data}


def test_a_real_run_is_drawn_with_its_evaluations(trained):
    monitor = RunMonitor(trained, store=trained.path.parent)
    frame = metrics(trained)
    drawn = lines(monitor)
    assert drawn[trained.id, "raw"] == pytest.approx(frame["loss"].tolist())
    assert drawn[trained.id, "eval"] == pytest.approx(metrics(trained, "eval")["loss"].tolist()) and len(drawn) == 2
    assert list(monitor.figure.data[0].x) == [1, 2, 3, 4] and list(monitor.figure.data[1].x) == [2, 4]
    assert "4/4" in monitor.status.value and "done" in monitor.status.value
    assert monitor.figure.layout.uirevision == "keep"
    monitor.metric_menu.value = "grad_norm"
    assert lines(monitor) == {(trained.id, "raw"): pytest.approx(frame["grad_norm"].tolist())}
    assert monitor.figure.layout.yaxis.title.text == "gradient norm"


def test_points_arrive_while_a_training_that_was_started_by_a_click_runs(store, dataset):
    launcher = Launcher("finetune", finetune_options(dataset, train_iters=2000), store=store)
    monitor = RunMonitor(launcher)
    assert not monitor.figure.data and "no finetune" in monitor.status.value
    launcher.start_button.click()
    until(lambda: monitor.figure.data and len(monitor.figure.data[0].y) >= 3, 60)
    assert monitor.runs == [launcher.run] and "running" in monitor.status.value
    until(lambda: not monitor.stop_button.disabled)
    monitor.stop_button.click()
    assert monitor.wait(60) == ["stopped"]
    assert "stopped" in monitor.status.value and monitor.stop_button.disabled
    assert len(monitor.figure.data[0].y) == len(metrics(launcher.run))


def test_a_run_started_elsewhere_appears_and_a_choice_stays(store):
    first = recorded(store, name="first")
    write_metrics(first, [3.0, 2.0])
    monitor = RunMonitor(store=store)
    assert monitor.runs == [first]
    second = recorded(store, name="second")
    write_metrics(second, [5.0])
    until(lambda: monitor.runs == [second])
    monitor.run_select.value = (first.id,)
    recorded(store, name="third")
    until(lambda: len(monitor.run_select.options) == 3)
    assert monitor.runs == [first] and list(lines(monitor)) == [(first.id, "raw")]


def test_several_runs_smoothing_and_a_logarithmic_axis(store):
    runs = [recorded(store, name=f"run {n}") for n in range(3)]
    for n, run in enumerate(runs):
        write_metrics(run, [n + 4.0, n + 1.0, None, n + 2.0])
    monitor = RunMonitor(*runs, store=store)
    assert len(lines(monitor)) == 3 and len({data.line.color for data in monitor.figure.data}) == 3
    monitor.smoothing_slider.value = 0.5
    drawn = lines(monitor)
    assert len(drawn) == 6
    smoothed = drawn[runs[0].id, "smooth"]
    # 4; (4 / 2 + 1) / 1.5; a gap that has no weight but lets the others fade; (4 / 8 + 1 / 4 + 2) / 1.375
    assert smoothed == pytest.approx([4.0, 2.0, np.nan, 2.0], nan_ok=True)
    monitor.log_box.value = True
    assert monitor.figure.layout.yaxis.type == "log"
    monitor.smoothing_slider.value = 0.0
    assert len(lines(monitor)) == 3


def test_what_is_not_new_is_not_sent(trained, monkeypatch):
    monitor = RunMonitor(trained, store=trained.path.parent)
    sent = []
    monkeypatch.setattr(monitor.figure, "_send_restyle_msg", lambda *a, **k: sent.append(a))
    monkeypatch.setattr(monitor.figure, "_send_update_msg", lambda *a, **k: sent.append(a))
    monitor._look()
    assert not sent


def test_a_million_points_are_sent_as_two_thousand_and_the_widget_answers(store):
    run = recorded(store)
    losses = np.random.default_rng(1).normal(3.0, 0.1, 1_000_000)
    losses[654_321] = 40.0
    with open(run.metrics, "w") as file:
        for begin in range(0, len(losses), 100_000):
            part = losses[begin : begin + 100_000].tolist()
            file.write("".join(f'{{"kind":"train","step":{begin + i},"loss":{v:.4f}}}\n' for i, v in enumerate(part)))
    begun = time.perf_counter()
    monitor = RunMonitor(run, store=store, smoothing=0.9)
    assert time.perf_counter() - begun < 5.0  # it is there before all is read; a tenth of that on an idle machine
    until(lambda: monitor.figure.data[0].x[-1] == 999_999, 120)
    for data in monitor.figure.data:
        assert len(data.x) <= MOST_POINTS
    assert max(monitor.figure.data[0].y) == 40.0
    write_metrics(run, [80.0], begin=1_000_000)
    begun = time.perf_counter()
    monitor._look()
    took = time.perf_counter() - begun
    assert max(monitor.figure.data[0].y) == 80.0
    assert took < 3.0  # a tenth of that on an idle machine
    # a zoom gets points of its own
    monitor.figure.layout.xaxis.range = (654_000, 655_000)
    monitor._look()
    assert monitor.window == (654_000, 655_000)
    raw = monitor.figure.data[0]
    assert raw.x[0] == 653_999 and raw.x[-1] == 655_001 and len(raw.x) == 1003 and max(raw.y) == 40.0
    monitor.figure.layout.xaxis.autorange = True
    monitor._look()
    assert monitor.figure.data[0].x[-1] == 1_000_000


def test_csv_holds_every_point_of_the_runs_on_screen(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = RunMonitor(trained, store=trained.path.parent)
    monitor.csv_button.click()
    (file,) = tmp_path.glob("*.csv")
    assert str(file) in monitor.message.value and not list(tmp_path.glob("*.tmp"))
    rows = list(csv.DictReader(file.open()))
    recorded_rows = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    losses = [r["loss"] for r in recorded_rows if r["kind"] == "train"]
    assert [float(r["loss"]) for r in rows] == losses and rows[0]["run"] == trained.id and rows[-1]["step"] == "4"
    with pytest.raises(RequestError, match=r"none/x\.csv: .*; give another place"):
        monitor.to_csv(tmp_path / "none" / "x.csv")


def test_a_static_viewer_gets_a_drawing(trained):
    page = RunMonitor(trained, store=trained.path.parent)._repr_html_()
    assert "<svg" in page and page.count("<path") == 3 and trained.id in page and "script" not in page


def test_closing_the_monitor_leaves_the_run_alive(store):
    run = recorded(store, program=jobs.SLEEPS)
    launch.start(run)
    monitor = RunMonitor(run, store=store)
    until((run.path / "up").exists)
    monitor.close()
    assert run.alive and not [t for t in threading.enumerate() if t.name == "qwen3vl-notebook"]


def test_a_wrong_request_is_refused(store):
    with pytest.raises(RequestError, match="no such run"):
        RunMonitor(9, store=store)
    with pytest.raises(RequestError, match="below 1"):
        RunMonitor(store=store, smoothing=1.0)
