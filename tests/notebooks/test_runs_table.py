"""Runs as a table and as data frames; stop and resume."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from console.notebook import RunsTable, events, metric_table, metrics, runs, wait
from console.runs import launch
from console.runs.series import MetricSeries
from qwen3vl_core.errors import RequestError, WorkError
from tests.console.runs import jobs
from tests.console.runs.jobs import until
from tests.notebooks.conftest import recorded, write_metrics


def test_runs_are_a_data_frame(trained):
    frame = runs(trained.path.parent, options=["lr"])
    row = frame.loc[1]
    assert (row["kind"], row["status"], row["step"], row["train_iters"], row["lr"]) == ("finetune", "done", 4, 4, 5e-4)
    assert row["exit_code"] == 0 and row["created"] <= row["started"] <= row["ended"] and str(row["started"].tz) == "UTC"
    assert row["loss"] == metrics(trained)["loss"].iloc[-1] and row["val_loss"] == metrics(trained, "eval")["loss"].iloc[-1]


def test_an_empty_store_is_an_empty_data_frame_with_the_same_columns(store, trained):
    empty = runs(store)
    assert len(empty) == 0 and list(empty) == list(runs(trained.path.parent))


def test_metrics_have_one_row_per_step(trained):
    frame = metrics(trained)
    assert frame.index.tolist() == [1, 2, 3, 4] and {"loss", "lr", "grad_norm", "tokens_per_second"} <= set(frame)
    assert metrics(trained.path).equals(frame) and metrics("tiny", store=trained.path.parent).equals(frame)
    assert metrics(trained, "eval").index.tolist() == [2, 4]
    happened = events(trained)
    assert happened["event"].tolist()[0] == "start" and "save" in happened["event"].tolist()


def test_a_repeated_step_is_included_once_and_a_gap_is_nan(store):
    run = recorded(store)
    write_metrics(run, [5.0, None, 3.0, 2.0])
    write_metrics(run, [2.5], begin=3)
    frame = metrics(run)
    assert frame.index.tolist() == [1, 2, 3] and frame["loss"][3] == 2.5 and math.isnan(frame["loss"][2])
    assert metrics(run, "eval").empty and metrics(recorded(store)).empty


def test_a_frame_holds_what_the_curves_hold_whatever_the_file_holds(store, monkeypatch):
    """Rows of two attempts, of all kinds, with gaps, and lines that are no rows, in blocks of a few lines."""
    run = recorded(store)
    rows = [{"v": 1, "step": n, "time": 10.0 + n, "kind": "train", "loss": 1 / n, **({"lr": n} if n % 3 else {})} for n in range(1, 40)]
    rows[7]["loss"] = None
    rows[20:20] = [{"v": 1, "step": 9, "time": 1.0, "kind": "event", "event": "save", "path": "/x", "train_iters": 9}]
    rows += [{**row, "loss": 5.0, "later": True} for row in rows[30:]] + [{"v": 1, "step": 30, "time": 5.0, "kind": "eval", "loss": 3}]
    text = [json.dumps(row) for row in rows]
    for place, line in enumerate(("no row", "[]", "{}", '{"kind": "train", "step": 1.5}', '{"kind": "train", "step": 3, "loss": NaN}')):
        text.insert(9 * place, line)
    run.metrics.write_text("\n".join(text) + '\n{"kind": "train", "step": 99, "lo')
    series = MetricSeries(run.metrics)
    series.update()
    for size in (metric_table.BLOCK, 700):
        monkeypatch.setattr(metric_table, "BLOCK", size)
        frame = metrics(run)
        assert set(frame) == {"time", "loss", "lr", "later"} and set(metrics(run, "eval")) == {"time", "loss"}
        for key in ("loss", "lr", "later"):
            steps, values = series.xy(key)
            np.testing.assert_array_equal(frame[key].reindex(steps).to_numpy(), values)
        assert frame["time"][30].timestamp() == 40.0 and frame.index.is_monotonic_increasing and frame.index.is_unique


@pytest.mark.slow
def test_a_million_rows_are_a_frame_in_five_seconds_of_cpu_and_400_mb(store):
    run = recorded(store)
    values = {"loss": 2.0, "grad_norm": 1.5, "lr": 1e-5, "tokens_per_second": 1000.0, "step_seconds": 0.5, "tokens": 4096}
    with open(run.metrics, "w") as file:
        for n in range(1, 1_000_001):
            file.write(json.dumps({"v": 1, "step": n, "time": 1e9 + n, "kind": "train", **values}) + "\n")
    program = (
        "import sys, time; from console.notebook import metrics; began = time.process_time(); frame = metrics(sys.argv[1] + '/');"
        # not getrusage: its peak is that of the process that started this one, where that was larger
        "peak = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(len(frame), time.process_time() - began, peak / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run.path)], capture_output=True, text=True, check=True)
    rows, seconds, megabytes = map(float, done.stdout.split())
    assert rows == 1e6 and seconds < 5 and megabytes < 400


def test_an_unknown_run_is_refused(store, tmp_path):
    for wanted in (3, "none", tmp_path / "none", "some/where"):
        with pytest.raises(RequestError, match=r"not a run|no such run"):
            metrics(wanted, store=store)


def test_the_table_lists_chooses_stops_and_resumes(store):
    done, live = recorded(store, name="done"), recorded(store, program=jobs.SLEEPS, name="live")
    for run in (done, live):
        launch.start(run)
    launch.wait(done, 240)
    until((live.path / "up").exists)
    table = RunsTable(store)
    assert [id for _, id in table.select.options] == [live.id, done.id]
    table.choose(done)
    assert table.stop_button.disabled and table.resume_button.disabled
    assert str(done.path) in table.detail.value
    table.choose(live.number)
    assert not table.stop_button.disabled
    table.stop_button.click()
    assert "asked to stop" in table.message.value
    launch.wait(live, 240)
    until(lambda: not table.resume_button.disabled)
    (live.path / "up").unlink()
    table.resume_button.click()
    assert "resumed" in table.message.value
    until((live.path / "up").exists)
    table.stop(live)
    assert launch.wait(live, 240) == "stopped"


def test_the_log_of_the_chosen_run_is_shown_as_it_grows(store):
    run = recorded(store, program="print('<first>', flush=True);" + jobs.UNTIL_GO)
    launch.start(run)
    table = RunsTable(store)
    table.log_box.value = True
    until(lambda: "&lt;first&gt;" in table.detail.value)
    (run.path / "go").touch()
    until(lambda: "gone on" in table.detail.value)


def test_a_log_is_shown_without_the_tags_of_our_own_lines(store):
    run = recorded(store)
    run.log.write_text("step 1\nqwen3vl[stop]: asked to stop\n")
    table = RunsTable(store)
    table.log_box.value = True
    until(lambda: "step 1" in table.detail.value)
    assert "qwen3vl: asked to stop" in table.detail.value and "[stop]" not in table.detail.value


def test_a_later_run_is_listed_and_the_selection_stays(store):
    table = RunsTable(store)
    assert "no runs" in table.head.value and table.run is None
    first = recorded(store, name="first")
    until(lambda: table.run == first)
    recorded(store, name="second")
    until(lambda: len(table.select.options) == 2)
    assert table.run == first and isinstance(table.frame(), pd.DataFrame) and "0002-second" in table._repr_html_()


def test_a_refusal_is_shown_in_the_table(store):
    run = recorded(store)
    table = RunsTable(store)
    launch.start(run)
    launch.wait(run, 240)
    table._act(launch.resume, "resumed")
    assert "✗" in table.message.value and "done" in table.message.value


def test_waiting_shows_the_log_and_raises_what_failed(store, capsys):
    good, bad = recorded(store, program="print('all well')"), recorded(store, program=jobs.EXITS_3)
    for run in (good, bad):
        launch.start(run)
    assert wait(good) == "done"
    assert "done" in capsys.readouterr().out
    assert launch.wait(bad, 240) == "failed"
    with open(bad.log, "a") as log:
        log.write("qwen3vl[work]: the disk is full\n")
    with pytest.raises(WorkError, match=rf"^run {bad.id}: failed, exit code 3; its log is {bad.log}$") as failed:
        wait(bad, show=False)
    first, *end = failed.value._render_traceback_()
    assert first == f"✗ {failed.value}" and sorted(end) == ["no luck", "qwen3vl: the disk is full"]
    live = recorded(store, program=jobs.SLEEPS)
    launch.start(live)
    until(lambda: live.status == "running")
    assert wait(live, timeout=0.1, show=False) == "running"
