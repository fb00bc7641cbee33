"""A finetune of several processes restarts after a rank is killed, with the losses of an uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from console.runs import launch, processes
from qwen3vl_core.options import FinetuneOptions
from tests.console.runs.jobs import run_store, until
from tests.ranks import run_ranks
from tests.training import runs

# the long form: QWEN3VL_KILLS=20 pytest -o faulthandler_timeout=0 tests/training/test_restarts.py
KILLS = int(os.environ.get("QWEN3VL_KILLS", 1))
STEPS = 6 * (KILLS + 1)


@pytest.fixture
def data(tmp_path_factory):
    return runs.scenes(tmp_path_factory.mktemp("scenes"))


def rank_of(run, rank: int, world: int) -> int | None:
    """The process of a rank of the live attempt."""
    for process in processes.descendants(run.state.get("supervisor_pid") or -1):
        with contextlib.suppress(OSError):
            entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in entries and f"LOCAL_WORLD_SIZE={world}".encode() in entries:
                return process.pid
    return None


@pytest.mark.parametrize("world", [2] if KILLS == 1 else [2, 4])
def test_a_killed_rank_is_named_and_the_restarted_run_has_the_same_losses(data, tmp_path, monkeypatch, world, record_property):
    monkeypatch.setenv("QWEN3VL_PROGRESS", "lines")
    monkeypatch.setenv("QWEN3VL_GRACE", "150")
    monkeypatch.setattr(runs, "DEADLINE_SECONDS", runs.DEADLINE_SECONDS * KILLS)
    small = run_ranks(1, runs.small_model, tmp_path / "small")[0]
    values = dict(load=str(small), train_iters=STEPS, save_interval=2, keep=2, nproc=world, micro_batch_size=1, global_batch_size=world)
    runs.plan(tmp_path / "whole", data, **values)
    assert runs.train(tmp_path / "whole", world=world)[0] == 0, runs.log(tmp_path / "whole")
    options = runs.plan(tmp_path / "planned", data, max_restarts=KILLS, restart_wait=0.0, **values)
    assert isinstance(options, FinetuneOptions)
    with run_store(tmp_path / "runs") as store:
        run = store.create("finetune", options)
        launch.start(run)
        for number in range(KILLS):
            before = 6 * number
            until(lambda before=before: any(row["step"] > before + 3 for row in runs.rows(run.path)), 300)
            port = run.command[run.command.index("--master-port") + 1]
            os.kill(until(lambda: rank_of(run, 1, world)), signal.SIGKILL)
            until(lambda number=number: len(runs.events(run.path, "restart")) == number + 1 or not run.alive, 300)
            until(lambda port=port: run.command[run.command.index("--master-port") + 1] != port or not run.alive)
        assert launch.wait(run, 600) == "done", run.log.read_text()[-4000:]
        assert run.state["restarts"] == KILLS
        said = runs.events(run.path, "restart")
        assert all(" after rank 1 (process " in event["text"] and "ended by SIGKILL" in event["text"] for event in said)
        resumed = runs.events(run.path, "resume")
        assert len(resumed) == KILLS and resumed[0]["step"] >= 2
        last = {row["step"]: row["loss"] for row in runs.rows(run.path)}
        assert last == {row["step"]: row["loss"] for row in runs.rows(tmp_path / "whole")}, "bitwise"
    record_property("cases", KILLS)


def _timeouts(minutes):
    """How long each group waits, in seconds."""
    from qwen3vl_core.model import process_groups

    import torch
    import torch.distributed as dist

    dist.destroy_process_group()
    process_groups.initialize(timeout_minutes=minutes, rank=0, world_size=1)
    groups = list(dist.distributed_c10d._world.pg_map)
    return len(groups), {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups}


def test_every_process_group_has_the_same_timeout():
    count, seconds = run_ranks(1, _timeouts, 2.5)[0]
    assert count > 10 and seconds == {150.0}


def test_stop_after_saves_and_stops_the_run(data, tmp_path):
    runs.plan(tmp_path, data, stop_after="0.001s")
    assert runs.train(tmp_path)[0] == 0
    assert runs.events(tmp_path, "stop")[0]["text"].startswith("stopped after step 1 of 6, as --stop-after 0.001s is over")
    assert runs.events(tmp_path, "save")[0]["step"] == 1
    # a later job has its own time; that of a restarted attempt is over at once
    runs.plan(tmp_path, data, stop_after="1h")
    assert runs.train(tmp_path, QWEN3VL_STARTED="-1e9")[0] == 0
    assert [e["step"] for e in runs.events(tmp_path, "stop")] == [1, 2]
    assert runs.train(tmp_path)[0] == 0 and runs.events(tmp_path, "done")
