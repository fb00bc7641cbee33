"""Curves of real runs: live, thinned, several, exported."""

from __future__ import annotations

import csv
import json
import re
import threading
from base64 import b64decode
from xml.etree import ElementTree

import cairosvg
import numpy as np
import pytest
from PIL import Image

from console.app import ConsoleApp
from console.curves import thinning
from console.curves.smoothing import average
from console.curves.thinning import MOST_POINTS
from console.notebook import RunMonitor, RunsTable, metrics
from console.notebook.figure import FigureState
from console.notebook.monitor import COLUMNS
from console.readers.monitor import MonitorFeed
from console.readers.store_watcher import StoreWatcher
from console.runs import launch
from qwen3vl_core.errors import RequestError
from qwen3vl_core.run_metrics import label_of
from qwen3vl_core.run_record import SAMPLES
from tests.console.app import driving
from tests.console.runs import jobs
from tests.console.runs.jobs import until
from tests.notebooks.conftest import finetune_options, recorded, write_metrics

PATIENCE = 240.0
"""Seconds that a real training, or a million rows, may take on a machine that is busy."""


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
    assert monitor.figure.layout.yaxis.title.text == "grad norm"


def test_a_run_that_the_console_starts_appears_its_points_arrive_and_it_is_stopped_here(store, dataset):
    """The console and the notebook's widgets in one process, on one store; the training is a real one."""
    monitor, table = RunMonitor(store=store), RunsTable(store)
    assert not monitor.figure.data and "no finetune" in monitor.status.value
    assert [note.text for note in monitor.figure.layout.annotations] == ["no points yet"]

    async def scene(pilot):
        await driving.press(pilot, "2")
        screen = pilot.app.screen
        await driving.until(pilot, lambda: screen.form is not None and screen.plan is not None)
        screen.form.fill(finetune_options(dataset, train_iters=100_000))
        await driving.until(pilot, lambda: screen.plan.options is not None)
        await driving.press(pilot, "ctrl+g", "y")
        await driving.until(pilot, store.list)

    driving.driven(scene, ConsoleApp(store.root))
    (run,) = store.list()
    until(lambda: monitor.runs == [run] and table.run == run)
    until(lambda: monitor.figure.data and len(monitor.figure.data[0].y) >= 3, PATIENCE)
    # the line below the curve follows it, within the same look
    until(lambda: "running" in monitor.status.value and "100000" in monitor.status.value)
    until(lambda: not monitor.stop_button.disabled)
    monitor.stop_button.click()
    assert not monitor.figure.layout.annotations
    assert monitor.wait(PATIENCE) == ["stopped"]
    assert "stopped" in monitor.status.value and monitor.stop_button.disabled
    assert len(monitor.figure.data[0].y) == len(metrics(run))
    until(lambda: "stopped" in table.detail.value)


def test_a_run_started_elsewhere_appears_and_the_selection_stays(store):
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
    assert len(lines(monitor)) == 3, "with few points the values themselves are the line"
    for n, run in enumerate(runs):
        write_metrics(run, [n + 3.0, None] * 300, begin=5)
    monitor.smoothing_slider.value = 0.0
    monitor._look()
    assert len(lines(monitor)) == 3 and len({data.line.color for data in monitor.figure.data}) == 3
    monitor.smoothing_slider.value = 0.5
    drawn = lines(monitor)
    assert len(drawn) == 6
    smoothed = np.array(drawn[runs[0].id, "smooth"], float)
    assert len(smoothed) == 300 and smoothed[100:200] == pytest.approx(3.0)
    monitor.log_box.value = True
    assert monitor.figure.layout.yaxis.type == "log"
    monitor.smoothing_slider.value = 0.0
    assert len(lines(monitor)) == 3


def test_unchanged_data_is_not_sent(trained, monkeypatch):
    monitor = RunMonitor(trained, store=trained.path.parent)
    sent = messages_of(monkeypatch)
    monitor._look()
    assert not sent
    monitor.metric_menu.value = "grad_norm"
    assert sum("data" in message for message in sent) == 1


def test_a_million_points_are_sent_as_two_thousand_while_the_widget_answers(store, monkeypatch):
    run = recorded(store)
    losses = np.random.default_rng(1).normal(3.0, 0.1, 1_000_000)
    losses[654_321] = 40.0
    with open(run.metrics, "w") as file:
        for begin in range(0, len(losses), 100_000):
            part = losses[begin : begin + 100_000].tolist()
            file.write("".join(f'{{"kind":"train","step":{begin + i},"loss":{v:.4f}}}\n' for i, v in enumerate(part)))
    sent = messages_of(monkeypatch)
    monitor = RunMonitor(run, store=store)
    # it is there before all is read, and a control acts meanwhile
    assert 0 < monitor.figure.data[0].x[-1] < 999_999
    monitor.log_box.value = True
    assert monitor.figure.layout.yaxis.type == "log" and monitor.figure.data[0].x[-1] < 999_999
    until(lambda: monitor.figure.data[0].x[-1] == 999_999, PATIENCE)
    monitor.log_box.value = False
    lengths = [points_in(trace[axis]) for message in sent for trace in message.get("data", ()) for axis in "xy"]
    assert len(lengths) > 8 and MOST_POINTS // 2 < max(lengths) <= MOST_POINTS
    for data in monitor.figure.data:
        assert len(data.x) <= MOST_POINTS
    assert max(monitor.figure.data[0].y) == 40.0
    # one point more: only what is new is computed
    looked_at = []
    monkeypatch.setattr(thinning, "_extremes", lambda y, width, gaps: looked_at.append(len(y)) or np.array([0, len(y) - 1]))
    write_metrics(run, [80.0], begin=1_000_000)
    until(lambda: monitor.figure.data[0].x[-1] == 1_000_000, PATIENCE)
    assert looked_at and max(looked_at) < 5_000
    monkeypatch.undo()
    # a zoom gets points of its own
    monitor.figure.shown.window = [654_000, 655_000]
    monitor._look()
    assert monitor.window == (654_000, 655_000)
    raw = monitor.figure.data[0]
    assert raw.x[0] == 653_999 and raw.x[-1] == 655_001 and len(raw.x) == 1003 and max(raw.y) == 40.0
    monitor.figure.shown.window = None
    monitor._look()
    assert monitor.figure.data[0].x[-1] == 1_000_000


def messages_of(monkeypatch) -> list[dict]:
    """The state that figures send from now on, message by message."""
    sent = []
    send = FigureState._send
    monkeypatch.setattr(
        FigureState, "_send", lambda self, msg, buffers=None: (sent.append(msg.get("state", {})), send(self, msg, buffers))[1]
    )
    return sent


def points_in(values) -> int:
    """How many numbers a message holds as an array: a list, or text of bytes."""
    return len(b64decode(values["bdata"])) // np.dtype(values["dtype"]).itemsize if isinstance(values, dict) else len(values)


def test_csv_contains_every_point_of_the_shown_runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = RunMonitor(trained, store=trained.path.parent)
    monitor.csv_button.click()
    (file,) = tmp_path.glob("*.csv")
    assert str(file) in monitor.message.value and not list(tmp_path.glob("*.tmp"))
    rows = list(csv.DictReader(file.open()))
    recorded_rows = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    losses = [r["loss"] for r in recorded_rows if r["kind"] == "train"]
    evaluated = [r["loss"] for r in recorded_rows if r["kind"] == "eval"]
    assert [float(r["val_loss"]) for r in rows if r["val_loss"]] == evaluated and len(evaluated) == 2 and rows[0]["time"] > "2000"
    assert [float(r["loss"]) for r in rows] == losses and rows[0]["run"] == trained.id and rows[-1]["step"] == "4"
    with pytest.raises(RequestError, match=r"none/x\.csv: .*; choose another path"):
        monitor.to_csv(tmp_path / "none" / "x.csv")


def test_the_curves_are_exported_as_a_valid_svg(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = RunMonitor(trained, store=trained.path.parent)
    monitor.image_button.click()
    (file,) = tmp_path.iterdir()
    assert str(file) in monitor.message.value and file.suffix == ".svg"
    root = ElementTree.parse(file).getroot()
    drawn = [e for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("class") == "line"]
    assert [e.get("d").count("L") for e in drawn] == [3, 1]
    assert {"step", "loss", trained.id, f"{trained.id} val"} <= {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    cairosvg.svg2png(url=str(file), write_to=str(tmp_path / "curve.png"))
    picture = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB"))
    assert picture.shape[1] == 960 and (picture == (0x3B, 0x7D, 0xD8)).all(axis=2).sum() > 100
    with pytest.raises(RequestError, match=r"none/x\.svg: .*; choose another path"):
        monitor.to_svg(tmp_path / "none" / "x.svg")


def test_a_static_viewer_shows_the_curve_as_a_picture(trained):
    page = RunMonitor(trained, store=trained.path.parent)._repr_html_()
    (data,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert b64decode(data).count(b'<path class="line"') == 2 and trained.id in page and "<script" not in page and "<svg" not in page


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
    with pytest.raises(RequestError, match=r"from 0 to 0\.5"):
        RunMonitor(store=store, smoothing=0.9)


def test_the_notebook_and_the_terminal_draw_the_same_average(store):
    run = recorded(store)
    write_metrics(run, [4.0 / (1 + step / 50) if step % 7 else None for step in range(900)])
    monitor = RunMonitor(run, store=store)
    drawn = next(data for data in monitor.figure.data if tuple(data.meta) == (run.id, "smooth"))
    line = MonitorFeed(StoreWatcher(store.root)).read(run, [], "loss").lines[0]
    in_terminal = average(line.x, line.y, (float(line.x[0]), float(line.x[-1])), COLUMNS)
    assert line.noisy and len(drawn.x) > 200
    np.testing.assert_array_equal(np.array(drawn.x, float), in_terminal.x)
    np.testing.assert_array_equal(np.array(drawn.y, float), in_terminal.y)


def test_what_the_user_adds_to_the_figure_stays(store):
    run = recorded(store)
    write_metrics(run, [3.0, 2.0])
    monitor = RunMonitor(run, store=store)
    monitor.figure.add_scatter(x=[1, 2], y=[2.5, 2.5], name="the paper's")
    monitor.figure.add_vline(x=1)
    monitor.figure.update_layout(title="mine", yaxis_title="loss of mine")
    write_metrics(run, [1.0], begin=3)
    other = recorded(store, name="other")
    write_metrics(other, [9.0])
    until(lambda: len(monitor.figure.data[0].y) == 3)
    monitor.show(run, other)
    assert [data.name for data in monitor.figure.data] == [other.id, run.id, "the paper's"] and not monitor.message.value
    layout = monitor.figure.layout
    assert layout.title.text == "mine" and layout.yaxis.title.text == "loss of mine" and len(layout.shapes) == 1
    # one of ours that the user removes comes back, theirs does not
    monitor.figure.data = ()
    write_metrics(run, [0.5], begin=4)
    until(lambda: len(monitor.figure.data) == 2)


def test_a_run_keeps_its_colour_whatever_is_shown_with_it(store):
    runs = [recorded(store, name=f"r{n}") for n in range(10)]
    for run in runs:
        write_metrics(run, [1.0, 2.0])

    def colours(monitor) -> dict[str, str]:
        return {data.meta[0]: data.line.color for data in monitor.figure.data}

    monitor = RunMonitor(runs[0], runs[1], store=store)
    both = colours(monitor)
    monitor.show(runs[1])
    assert colours(monitor) == {runs[1].id: both[runs[1].id]} and both[runs[1].id] in monitor.status.value
    assert colours(RunMonitor(runs[1], store=store)) == colours(monitor)
    # two numbers that share one, beside each other
    assert len(set(colours(RunMonitor(runs[0], runs[8], store=store)).values())) == 2


def test_a_spike_does_not_flatten_the_curve(store):
    run = recorded(store)
    losses = [2.0 + 0.01 * (n % 5) for n in range(300)]
    losses[150] = 900.0
    write_metrics(run, losses)
    monitor = RunMonitor(run, store=store)
    low, high = monitor.figure.layout.yaxis.range
    assert 1.9 < low < 2.0 and 2.04 < high < 2.1 and "far from all others" in monitor.status.value
    assert max(monitor.figure.data[0].y) == 900.0, "it is there, and runs out at the top"
    assert ">900" not in monitor.drawing()
    monitor.spike_box.value = False
    assert monitor.figure.layout.yaxis.autorange and "far from" not in monitor.status.value and ">800<" in monitor.drawing()
    # the steep beginning of a training is none
    steep = recorded(store)
    write_metrics(steep, [2.0 + 9.0 / (1 + n) for n in range(300)])
    assert RunMonitor(steep, store=store).figure.layout.yaxis.autorange


def test_x_is_steps_tokens_or_time(store):
    run, bare = recorded(store), recorded(store)
    with open(run.metrics, "w") as file:
        for n in range(1, 5):
            row = {"kind": "train", "step": n, "time": 7000.0 + 1800 * n, "loss": 1.0 / n, "tokens": 100 * n}
            file.write(json.dumps(row) + "\n")
        file.write(json.dumps({"kind": "eval", "step": 2, "time": 10700.0, "loss": 3.0}) + "\n")
    bare.metrics.write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    monitor = RunMonitor(run, store=store, over="tokens")
    assert monitor.figure.layout.xaxis.title.text == "trained tokens"
    assert [list(data.x) for data in monitor.figure.data] == [[100, 300, 600, 1000], [300]]
    monitor.figure.shown.window = [250, 700]
    monitor._look()
    assert list(monitor.figure.data[0].x) == [100, 300, 600, 1000], "one more at each side"
    monitor.x_menu.value = "hours"
    assert monitor.window is None and list(monitor.figure.data[0].x) == [0.0, 0.5, 1.0, 1.5]
    assert "hours since the first step" in monitor.drawing()
    monitor.show(run, bare)
    assert f"nothing is recorded to count time: {bare.id}" in monitor.status.value
    with pytest.raises(RequestError, match="over epochs: must be one of step, tokens, hours"):
        RunMonitor(run, store=store, over="epochs")


def test_the_legend_is_above_the_axes_and_hovering_shows_whole_names(trained):
    layout = RunMonitor(trained, store=trained.path.parent).figure.layout
    assert layout.legend.y > 1 and layout.legend.yanchor == "bottom" and layout.hoverlabel.namelength == -1


def test_a_run_that_is_given_by_its_folder_is_shown_in_its_own_store(store):
    run = recorded(store)
    write_metrics(run, [2.0, 1.0])
    monitor = RunMonitor(str(run.path))
    monitor._look()
    assert monitor.runs == [run] and len(monitor.figure.data) == 1 and monitor.store.root == store.root


def test_captions_at_a_step_and_small_curves_of_all_metrics_are_beside_the_curve(store, tmp_path):
    run = recorded(store)
    rows = [{"v": 1, "step": n, "time": 0.0, "kind": "train", "loss": 5 - n / 10, "lr": 1e-3 / n, "grad_norm": 2.0} for n in range(1, 30)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monitor = RunMonitor(run)
    assert monitor.captions.layout.display == "none" and monitor.grid.value == ""
    Image.new("RGB", (64, 48), (200, 40, 40)).save(tmp_path / "ball.png")
    for step, text in ((10, "a thing"), (20, "a red thing"), (30, "")):
        with open(run.path / SAMPLES, "a") as file:
            file.write(json.dumps({"v": 1, "step": step, "image": str(tmp_path / "ball.png"), "prompt": "What?", "text": text}) + "\n")
        monitor.look()
        assert monitor.captions.slider.value == step  # it follows
    assert "(nothing)" in monitor.captions.page.value and monitor.captions.layout.display == ""
    monitor.captions.slider.value = 20
    assert "a <ins>red</ins> thing" in monitor.captions.page.value and "data:image/jpeg" in monitor.captions.page.value
    with open(run.path / SAMPLES, "a") as file:
        file.write(json.dumps({"v": 1, "step": 40, "image": str(tmp_path / "ball.png"), "prompt": "What?", "text": "a ball"}) + "\n")
    monitor.look()
    assert monitor.captions.slider.value == 20 and monitor.captions.steps == [10, 20, 30, 40]  # it stays where it was put
    monitor.grid_box.value = True
    assert monitor.grid.value.count("<svg") == 3 and all(label_of(name) in monitor.grid.value for name in ("loss", "lr", "grad_norm"))
    stored = monitor._repr_html_()
    assert stored.count("<svg xmlns") == 3 and "a <ins>red</ins> thing" in stored
    before = monitor.grid.value
    monitor.look()
    assert monitor.grid.value is before
    monitor.grid_box.value = False
    assert monitor.grid.value == ""
