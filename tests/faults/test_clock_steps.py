"""A clock that steps by days, forwards and back, neither stops, restarts nor loses a run: durations are measured by clocks that do not."""

from __future__ import annotations

import pytest

from console.runs import launch, run_text
from tests.console.runs.jobs import run_store, until
from tests.faults import injected
from tests.ranks import run_ranks
from tests.training import runs

pytestmark = pytest.mark.skipif(injected.compiler() is None, reason="the clock is replaced by a C library; install gcc")
DAY = 86_400


@pytest.mark.slow
def test_a_run_goes_on_while_the_clock_steps(tmp_path, monkeypatch):
    data = runs.scenes(tmp_path)
    small = run_ranks(1, runs.small_model, tmp_path / "small")[0]
    values = dict(load=str(small), train_iters=8, save_interval=3, micro_batch_size=4)
    runs.plan(tmp_path / "whole", data, **values)
    assert runs.train(tmp_path / "whole")[0] == 0, runs.log(tmp_path / "whole")
    clock = tmp_path / "clock"
    clock.write_text("0")
    monkeypatch.setenv("QWEN3VL_PROGRESS", "lines")
    options = runs.plan(tmp_path / "planned", data, nproc=1, stop_after="2h", max_restarts=1, **values)
    with run_store(tmp_path / "runs") as store:
        run = store.create("finetune", options)
        with monkeypatch.context() as context:
            context.setenv("LD_PRELOAD", str(injected.library(tmp_path)))
            context.setenv("INJECT_CLOCK", str(clock))
            launch.start(run)
        statuses = set()

        def reached(step):
            statuses.add(run.status)
            assert run_text.table([run])
            return any(row["step"] >= step for row in runs.rows(run.path)) or not run.alive

        for step, seconds in ((1, DAY), (3, -DAY), (5, 400 * DAY), (7, 0)):
            until(lambda step=step: reached(step), 300)
            clock.write_text(str(seconds))
        assert launch.wait(run, 300) == "done", run.log.read_text()[-3000:]
        assert statuses <= {"starting", "running", "done"}
        assert not run.state["restarts"] and not runs.events(run.path, "stop")
        assert "qwen3vl[stalled]" not in run.log.read_text()
        times = [row["time"] for row in runs.rows(run.path)]
        assert max(times) - min(times) > DAY / 2, "the clock did step"
        assert runs.losses(run.path) == runs.losses(tmp_path / "whole"), "bitwise"
