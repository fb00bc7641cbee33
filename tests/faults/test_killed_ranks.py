"""A run of several ranks, one of which is killed every half minute, ends with the losses of a run that was never touched."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from console.runs import launch, processes
from tests.console.runs.jobs import run_store
from tests.training import runs

# the long form: QWEN3VL_MINUTES=10 pytest -o faulthandler_timeout=0 tests/faults/test_killed_ranks.py
MINUTES = float(os.environ.get("QWEN3VL_MINUTES", 0))
STEPS = int(os.environ.get("QWEN3VL_STEPS", 100 * MINUTES))
BETWEEN_SECONDS = 30.0


def ranks_of(run) -> list[int]:
    """The processes of all ranks of the live attempt."""
    pids = []
    for process in processes.descendants(run.state.get("supervisor_pid") or -1):
        with contextlib.suppress(OSError):
            entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            parent = Path(f"/proc/{process.parent}/cmdline").read_bytes()
            # the loaders' processes have the variables of their rank, too
            if any(entry.startswith(b"LOCAL_RANK=") for entry in entries) and b"torchrun" in parent:
                pids.append(process.pid)
    return pids


@pytest.mark.skipif(not MINUTES, reason="takes half an hour; QWEN3VL_MINUTES=10 runs it; test_restarts.py is the short form")
def test_a_rank_killed_every_half_minute_changes_no_loss(tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("QWEN3VL_PROGRESS", "lines")
    data = runs.scenes(tmp_path)
    values = dict(train_iters=STEPS, save_interval=5, keep=2, nproc=2, micro_batch_size=1, global_batch_size=2)
    options = runs.plan(tmp_path / "planned", data, max_restarts=100, restart_wait=0.0, **values)
    chance, kills = random.Random(1), []
    with run_store(tmp_path / "runs") as store:
        run = store.create("finetune", options)
        launch.start(run)
        end = time.monotonic() + 60 * MINUTES
        while time.monotonic() < end and run.alive:
            until = time.monotonic() + BETWEEN_SECONDS
            while time.monotonic() < until and run.alive:
                time.sleep(0.5)  # this is the interval of the kills
            if pids := ranks_of(run):
                pid = chance.choice(sorted(pids))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills.append(pid)
        in_time = run.alive
        assert launch.wait(run, 3600) == "done", run.log.read_text(errors="replace")[-4000:]
        assert in_time, "it was done before the kills were: set QWEN3VL_STEPS higher"
        restarts, resumed = runs.events(run.path, "restart"), runs.events(run.path, "resume")
        assert len(kills) >= MINUTES and run.state["restarts"] == len(restarts) >= len(kills) // 2
        killed = {row["step"]: row["loss"] for row in runs.rows(run.path)}
    runs.plan(tmp_path / "whole", data, **values)
    monkeypatch.setattr(runs, "DEADLINE_SECONDS", 3600)
    assert runs.train(tmp_path / "whole", world=2)[0] == 0, runs.log(tmp_path / "whole")
    whole = {row["step"]: row["loss"] for row in runs.rows(tmp_path / "whole")}
    assert len(whole) == STEPS and killed == whole, "bitwise"
    record_property("cases", len(kills))
    print(f"\n{len(kills)} kills in {MINUTES:g} minutes, {len(restarts)} restarts, {len(resumed)} resumes, {STEPS} steps: equal losses")
