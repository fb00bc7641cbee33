"""The queue in the console: GPUs against time, the order by keys and mouse, the place in Runs; real supervisors wait."""

from __future__ import annotations

import math
import os
import signal
import stat
import sys

import pytest

from console.readers import gpu_queue
from console.readers.gpu_queue import LIVE, OTHER, PAST, WAITING, TimeBar
from console.runs import launch, queue
from console.screens.queue import GpuQueue
from console.widgets.gpu_timeline import drawn, legend
from qwen3vl_core import language
from qwen3vl_core.layout.gpus import uses
from qwen3vl_core.options import FinetuneOptions
from tests.console.app.driving import LARGE, SLEEPER, SMALL, driven, looked, press, said, text_of, until

TOOL = """
import sys
what, fields = sys.argv[1].removeprefix("--query-").split("=")
for index in range(4 if what == "gpu" else 0):
    used = 30000 if index == 3 else 400
    row = {"index": index, "uuid": f"GPU-{index}", "name": "NVIDIA H100", "memory.total": 81920, "memory.used": used}
    print(", ".join(str(row.get(field, "")) for field in fields.split(",")))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four GPUs, of which another process uses the last."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!{sys.executable} -S{TOOL}")
    (folder / "nvidia-smi").chmod(0o700 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def order(store):
    return [(entry.run.name, entry.held) for entry in queue.look(store.root).entries]


@pytest.mark.parametrize(("size", "theme"), [((60, 18), "textual-dark"), (SMALL, "textual-light"), (LARGE, "textual-dark")])
def test_the_queue_is_shown_and_changed_by_keys_and_mouse(machine, store, size, theme):
    first = store.finetune("first", 10, 100, SLEEPER, gpu_ids="0,1")
    a, b = (store.finetune(name, 0, 100, SLEEPER, gpu_ids="0,1") for name in ("aaa", "bbb"))
    assert a.status == b.status == "queued"
    # one of them has lost its supervisor, as after a reboot: opening the console lets it go on
    pid = a.state["supervisor_pid"]
    os.kill(pid, signal.SIGKILL)

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: a.state["supervisor_pid"] != pid)
        await until(pilot, lambda: "queue" in text_of(app).split("aaa")[1])
        assert "◷ 0002-aaa" in text_of(app) and "● 1 live" in text_of(app)
        await press(pilot, "G")
        await until(pilot, lambda: isinstance(app.screen, GpuQueue) and app.screen.times is not None and len(app.screen.times.waiting) == 2)
        await looked(pilot)
        shown = text_of(app)
        assert "GPU 0-1" in shown and "GPU 2" in shown and "now" in shown and "xxx" in shown and "in about 3:00" in shown, shown
        assert "esc leaves" in shown and "1 ◷ 0002-aaa" in shown and "2 ◷ 0003-bbb" in shown
        if size != SMALL:
            await press(pilot, "escape")
            assert not isinstance(app.screen, GpuQueue)
            return
        await press(pilot, "J")
        await until(pilot, lambda: order(store) == [("bbb", False), ("aaa", False)])
        await press(pilot, "h")
        await until(pilot, lambda: order(store) == [("bbb", False), ("aaa", True)])
        await until(pilot, lambda: "‖ 0002-aaa  held back; h lets it start" in text_of(app))
        hints = next(y for y, line in enumerate(text_of(app).splitlines()) if "f first" in line)
        await pilot.click(offset=(text_of(app).splitlines()[hints].index("f first"), hints))
        await until(pilot, lambda: order(store) == [("aaa", True), ("bbb", False)])
        assert app.subcommand.startswith("qwen3vl runs queue 2 --first")
        await press(pilot, "x", "y")
        await until(pilot, lambda: a.status == "stopped")
        await until(pilot, lambda: isinstance(app.screen, GpuQueue) and "0002-aaa" not in text_of(app))
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.run_id == b.id)
        await until(pilot, lambda: "it waits for GPUs" in text_of(app))

    driven(scene, store.app(), size, theme)
    for run in (a, b, first):
        if run.alive:
            launch.stop(run)


def test_starting_on_gpus_in_use_says_for_what_it_waits(machine, store):
    store.finetune("first", 10, 100, SLEEPER, gpu_ids="2")
    options = FinetuneOptions(load="base", train_data="data", gpu_ids="2", name="second")

    async def scene(pilot):
        pilot.app.start_run("finetune", options, "launch")
        await until(pilot, lambda: "is queued: GPU 2 is free in about 3:00, when 0001 ends" in said(pilot.app))

    driven(scene, store.app())


def test_times_of_gpus_are_those_of_the_records(machine, store):
    ended = store.ended(store.finetune("ended", 10))
    live = store.finetune("live", 10, 100, SLEEPER, gpu_ids="0")
    queued = store.finetune("queued", 0, 50, SLEEPER, gpu_ids="0")
    times = gpu_queue.seen_now(queue.look(store.root), store.store.list(), uses(), live.started + 60)
    rows = dict(times.rows)
    assert [(bar.kind, bar.run_id) for bar in rows["0"]] == [(LIVE, live.id), (WAITING, queued.id)]
    assert (rows["0"][0].begin, rows["0"][0].end) == (-60.0, 180.0), "90 steps of 2 s are left"
    assert (rows["0"][1].begin, rows["0"][1].end) == (180.0, 280.0), "50 steps as long as those of the run like it"
    assert [bar.kind for bar in rows["3"]] == [OTHER] and rows["2"] == () and ended.id not in str(times.rows), "it had no GPU"


def test_the_picture_keeps_its_width_and_merges_neighbours_that_do_the_same():
    both = (TimeBar(PAST, -900.0, -700.0, "0003-a"), TimeBar(LIVE, -600.0, 1200.0, "0007-b"), TimeBar(WAITING, 1200.0, math.inf, "0012-c"))
    rows = [("0", both), ("1", both), ("2", ()), ("3", (TimeBar(OTHER, 0.0, math.inf),))]
    for width in (40, 56, 150):
        lines = [line.plain for line in drawn(rows, width)]
        assert [line[:9].rstrip() for line in lines] == ["GPU 0-1", "GPU 2", "GPU 3", ""] and {len(line) for line in lines} == {width}
        assert " 7 " in lines[0] and "█" in lines[0] and "▓" in lines[0] and lines[0].endswith("?") and "▒" in lines[0], (
            "a number leaves the bar to be seen"
        )
        assert lines[1].count("│") == 1 and lines[2].count("x") > 5 and "now" in lines[3]
    language.use("zh")
    try:
        said = language.phrase(language.filled("{} is free in about {}, when {} ends", "GPU 0", "3:00", "0001"))
        assert said == "GPU 0 大约 3:00 后空闲（0001 结束时）" and "已结束" in legend().plain
    finally:
        language.use("en")
    assert drawn(rows, 56, 2)[1].plain == "… and 2 more"
