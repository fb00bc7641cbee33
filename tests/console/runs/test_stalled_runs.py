"""A run that makes no more steps is reported with the rank that the others wait for, and can restart automatically."""

from __future__ import annotations

import json
import os
import signal

import pytest

from console.readers.store_watcher import StoreWatcher
from console.runs import launch, run_json, run_text
from console.runs.diagnosis import diagnose
from console.runs.stall import StallWatch, least_seconds
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import AT_CHECKPOINT, AT_DATA, AT_STEP
from qwen3vl_core.training.rank_progress import RankProgress
from tests.console.runs.jobs import job, until

# two ranks in one process; each step is seen by the supervisor before the next: two signs of its life lie between
STEPS = """
import json
sys.path.insert(0, os.getcwd())
from qwen3vl_core.training.rank_progress import RankProgress
attempt = len(list(here.glob('attempt-*'))); note(f'attempt-{attempt}')
first, second = RankProgress(here, 0), RankProgress(here, 1)
def seen():
    for _ in range(2):
        before = (here / 'heartbeat').stat().st_mtime_ns
        while (here / 'heartbeat').stat().st_mtime_ns == before:
            os.kill(os.getppid(), signal.SIGCHLD); time.sleep(0.01)
def steps(begin, end):
    for step in range(begin, end):
        for rank in (first, second): rank.note(step, 'step')
        seen()
def event(name, step):
    with open(here / 'metrics.jsonl', 'a') as file:
        file.write(json.dumps({'v': 1, 'kind': 'event', 'time': 1.0, 'step': step, 'event': name, 'text': name}) + '\\n')
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv("QWEN3VL_STALL_SECONDS", "0.2")


def started(store, program, **options):
    made = FinetuneOptions(load="base", train_data="data", train_iters=20, restart_wait=0.0, **options)
    run = store.create("finetune", made, job(STEPS + program))
    launch.start(run)
    return run


def test_a_stalled_run_names_the_rank_that_is_behind_everywhere(store, quick):
    run = started(store, "steps(0, 7)\nfirst.note(7, 'step'); second.note(7, 'data'); until('go')\nsteps(8, 12); until('end')")
    line = until(lambda: run.state.get("stalled"))
    assert line.startswith("no step for ") and line.endswith("rank 1 is behind at step 8, waiting for data")
    assert "(the median is " in line
    assert f"qwen3vl[stalled]: {line}" in run.log.read_text()
    assert "running, stalled" in run_text.table([run], 200)[1] and any(line in shown for shown in run_text.describe(run))
    assert run_json.summarize(run).stalled == line
    assert StoreWatcher(store.root).look().rows[0].error == line
    # the stack of each rank is in the log: what it waits in
    until(lambda: "Current thread" in run.log.read_text() and "in until" in run.log.read_text())
    (run.path / "go").touch()
    until(lambda: run.state.get("stalled") is None)
    until(lambda: "steps come again" in run.log.read_text())
    (run.path / "end").touch()
    assert launch.wait(run, 150) == "done"


def test_a_stalled_run_restarts_if_allowed(store, quick):
    hangs = "signal.signal(signal.SIGTERM, signal.SIG_IGN); first.note(8, 'step'); second.note(8, 'step'); time.sleep(600)"
    run = started(store, f"steps(0, 7)\nif not attempt: {hangs}\nevent('done', 20)", restart_stalled=True, max_restarts=1)
    assert launch.wait(run, 150) == "done" and run.state["restarts"] == 1
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert rows[0]["text"].startswith("restart 1 of 1 after no step for ") and "all 2 ranks are at step 9" in rows[0]["text"]


def test_a_run_that_times_out_after_a_stall_is_explained_by_the_stall(store, quick):
    hangs = "until('go'); print('[rank0]:[E] Watchdog caught collective operation timeout'); sys.exit(1)"
    run = started(store, f"steps(0, 7)\nfirst.note(7, 'step'); second.note(6, 'step'); {hangs}")
    until(lambda: run.state.get("stalled"))
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "failed" and run.state["stalled"] is None
    assert diagnose(run).name == "stalled" and "rank 1 is behind at step 7" in diagnose(run).text


def rank(tmp_path, number, step, doing):
    progress = RankProgress(tmp_path, number)
    progress.note(step, doing)
    return progress


def moving(watch, ranks, steps=range(5)):
    for step in steps:
        for progress in ranks:
            progress.note(step, AT_STEP)
        watch.look()


def test_a_stopped_rank_is_distinguished_from_those_that_wait_for_it(tmp_path):
    watch = StallWatch(tmp_path, 1e-9)
    watched = os.fork()
    if not watched:
        signal.pause()
    try:
        ranks = [RankProgress(tmp_path, number) for number in (0, 1, 2)]
        ranks[2]._fixed["pid"] = watched
        moving(watch, ranks)
        os.kill(watched, signal.SIGSTOP)
        os.waitpid(watched, os.WUNTRACED)
        assert until(watch.stalled).endswith("rank 2 is behind at step 5, in forward, backward or the optimizer, stopped by a signal")
    finally:
        os.kill(watched, signal.SIGKILL)
        os.waitpid(watched, 0)
    assert watch.stalled().endswith("rank 2 is behind at step 5, in forward, backward or the optimizer, gone")


def test_checkpoints_and_first_steps_have_longer_limits_and_old_progress_files_are_ignored(tmp_path):
    ranks = [rank(tmp_path, number, 7, AT_DATA) for number in (0, 1)]
    watch = StallWatch(tmp_path, 1e-9)
    watch.look()
    assert not watch.ranks and not watch.stalled()
    for progress in ranks:
        progress.note(0, AT_STEP)
    watch.look()
    assert watch.ranks and not watch.stalled()  # no median yet
    moving(watch, ranks)
    assert until(watch.stalled)
    for progress in ranks:
        progress.note(5, AT_CHECKPOINT)
    watch.look()
    assert not watch.stalled()


def test_an_invalid_stall_time_is_refused(monkeypatch):
    monkeypatch.setenv("QWEN3VL_STALL_SECONDS", "soon")
    with pytest.raises(RequestError, match="QWEN3VL_STALL_SECONDS=soon: must be seconds above 0"):
        least_seconds()


def test_restarting_a_stalled_run_needs_restarts():
    with pytest.raises(RequestError, match="--restart-stalled: needs --max-restarts above 0"):
        FinetuneOptions(load="base", train_data="data", restart_stalled=True).check()
