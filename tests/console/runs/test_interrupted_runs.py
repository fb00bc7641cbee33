"""How runs end and restart: judged by the record, restarted by the supervisor, stopped with a grace period."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from console.runs import launch, processes
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions, to_arguments
from tests.console.runs.jobs import ROOT, job, until

# a training's record: `row(step)`, `event('stop', step)`
RECORD = """
import json
def write(**row):
    with open(here / 'metrics.jsonl', 'a') as file: file.write(json.dumps({'v': 1, 'time': time.time(), **row}) + '\\n')
def row(step): write(kind='train', step=step, loss=1.0)
def event(name, step): write(kind='event', step=step, event=name, text=name)
attempt = len(list(here.glob('attempt-*'))); note(f'attempt-{attempt}', os.getpid())
"""
STOPS = RECORD + "signal.signal(signal.SIGTERM, lambda *_: (event('stop', 2), sys.exit(0)))\nrow(1); note('up'); time.sleep(600)"


def finetune(store, program, **options):
    made = FinetuneOptions(load="base", train_data="data", train_iters=4, **{"restart_wait": 0.0, **options})
    run = store.create("finetune", made, job(program))
    launch.start(run)
    return run


def events(run, name):
    rows = map(json.loads, run.metrics.read_text().splitlines())
    return [row for row in rows if row.get("event") == name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_stopped_by_a_signal_is_stopped_and_not_done(store, number):
    program = STOPS + "\n"
    run = finetune(store, program.replace("SIGTERM", number.name), max_restarts=3)
    until((run.path / "up").exists)
    assert (run.path / "reserve").stat().st_size > 0  # bytes for the last state on a full disk
    os.kill(run.state["pid"], number)
    assert launch.wait(run, 150) == "stopped" and run.exit_code == 0 and not (run.path / "reserve").exists()
    launch.resume(run)  # a run that is done could not be
    until((run.path / "attempt-1").exists)


@pytest.mark.parametrize(
    ("program", "status", "error"),
    [
        ("row(3); sys.exit(0)", "failed", "after step 3 of 4, before its last step"),
        ("row(4); event('done', 4); sys.exit(0)", "done", None),
        ("row(4); event('done', 4); os.abort()", "done", None),
        ("row(2); event('stop', 2); os.abort()", "stopped", None),
        ("row(2); os.abort()", "failed", "ended by SIGABRT"),
        ("sys.exit(0)", "done", None),
    ],
)
def test_the_record_shows_how_a_finetune_ended(store, program, status, error):
    run = finetune(store, RECORD + program)
    assert launch.wait(run, 150) == status
    assert (error in run.error) if error else run.error is None


def test_the_record_of_an_earlier_attempt_does_not_count(store):
    run = finetune(store, RECORD + "event('done', 4) if attempt == 0 else row(2)\nsys.exit(attempt == 0 and 0)")
    assert launch.wait(run, 150) == "done"
    state = run.path / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"status": "stopped"}))
    launch.resume(run)
    assert launch.wait(run, 150) == "failed"


def test_a_failed_finetune_is_restarted_and_the_record_shows_it(store):
    program = RECORD + "row(attempt + 1)\nif attempt < 2: os.kill(os.getpid(), signal.SIGKILL)\nrow(4); event('done', 4)"
    run = finetune(store, program, max_restarts=2)
    assert launch.wait(run, 150) == "done" and run.exit_code == 0 and run.error is None
    assert run.state["restarts"] == 2
    assert [(e["step"], e["text"]) for e in events(run, "restart")] == [
        (1, "restart 1 of 2 after ended by SIGKILL"), (2, "restart 2 of 2 after ended by SIGKILL")
    ]  # fmt: skip
    assert run.log.read_text().count("from the newest complete checkpoint") == 2


def test_restarts_are_limited_and_a_refused_request_is_not_retried(store):
    run = finetune(store, RECORD + "sys.exit(3)", max_restarts=1)
    assert launch.wait(run, 150) == "failed" and run.state["restarts"] == 1 and (run.path / "attempt-1").exists()
    run = finetune(store, RECORD + "sys.exit(2)", max_restarts=1)
    assert launch.wait(run, 150) == "failed" and run.state["restarts"] == 0 and run.exit_code == 2


def test_a_run_can_be_stopped_while_it_waits_for_its_restart(store):
    run = finetune(store, RECORD + "sys.exit(3)", max_restarts=1, restart_wait=300.0)
    until(lambda: run.state.get("restarts") == 1)
    assert run.status == "starting"
    launch.stop(run)
    assert launch.wait(run, 150) == "stopped"
    assert not (run.path / "attempt-1").exists()


# SIGTERM: writes a checkpoint's folder until the test ends it
SLOW_SAVE = (
    RECORD
    + """
building = here / 'checkpoints' / 'iter_0000002.1-1.tmp'
def save(*_):
    building.mkdir(parents=True); note('saving'); until('go')
    os.rename(building, building.with_name('iter_0000002')); event('stop', 2); sys.exit(0)
signal.signal(signal.SIGTERM, save)
row(1); note('up'); time.sleep(600)
"""
)


def test_a_stop_waits_for_the_checkpoint_that_is_being_written(store, monkeypatch):
    monkeypatch.delenv("QWEN3VL_GRACE")
    run = finetune(store, SLOW_SAVE, grace=0.4)
    until((run.path / "up").exists)
    launch.stop(run)
    until((run.path / "saving").exists)
    until(lambda: "while a checkpoint is being written; it is waited for" in run.log.read_text())
    # longer than the grace period, which the heartbeat shows to be over
    first = (run.path / "heartbeat").stat().st_mtime
    until(lambda: (run.path / "heartbeat").stat().st_mtime > first + 1)
    assert run.status == "stopping"
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "stopped" and run.exit_code == 0
    assert (run.path / "checkpoints" / "iter_0000002").is_dir()


def test_a_second_stop_without_grace_ends_even_a_checkpoint(store):
    run = finetune(store, SLOW_SAVE)
    until((run.path / "up").exists)
    launch.stop(run, 3600)
    until((run.path / "saving").exists)
    assert "3600 s to end" in run.log.read_text()
    launch.stop(run, 0)
    assert launch.wait(run, 150) == "stopped" and run.exit_code == 137


def test_an_unfinished_folder_of_an_earlier_attempt_is_not_waited_for(store):
    program = RECORD + "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('up'); time.sleep(600)"
    run = store.create("finetune", FinetuneOptions(load="base", train_data="data"), job(program))
    (run.path / "checkpoints" / "iter_0000001.9-9.tmp").mkdir(parents=True)
    launch.start(run)
    until((run.path / "up").exists)
    launch.stop(run)
    assert launch.wait(run, 150) == "stopped" and run.exit_code == 137


@pytest.mark.parametrize("warning", ["USR1", "USR2"])
def test_the_warning_of_a_scheduler_saves_and_ends_nothing(store, warning):
    program = STOPS + "\n"
    program = program.replace("row(1);", "signal.signal(signal.SIGUSR1, lambda *_: note('saved'))\nrow(1);")
    run = finetune(store, program, save_before_signal=warning)
    until((run.path / "up").exists)
    other = {"USR1": signal.SIGUSR2, "USR2": signal.SIGUSR1}[warning]
    os.kill(run.state["supervisor_pid"], other)
    if other == signal.SIGUSR2:
        os.kill(run.state["pid"], other)  # without a handler, as torchrun is
    os.kill(run.state["supervisor_pid"], getattr(signal, f"SIG{warning}"))
    until((run.path / "saved").exists)
    assert run.status == "running"
    launch.stop(run)
    assert launch.wait(run, 150) == "stopped"


def test_sigterm_to_the_foreground_asks_the_run_to_stop_and_waits_for_it(store, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "150")
    saves = "signal.signal(signal.SIGTERM, lambda *_: (note('asked'), until('go'), event('stop', 2), print('saved'), sys.exit(0)))\n"
    run = finetune(store, RECORD + saves + "note('up') if attempt else sys.exit(3)\ntime.sleep(600)")
    assert launch.wait(run, 150) == "failed"
    words = ["-c", "from console import commands; import sys; sys.exit(commands.runs(sys.argv[1:]))", "resume", "1", "--foreground"]
    front = subprocess.Popen(
        [sys.executable, *words, "--runs", str(store.root)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until((run.path / "up").exists)
    until(lambda: processes.catches(front.pid, signal.SIGTERM))
    for _ in range(2):  # a second one does not abandon the run
        front.terminate()
    until((run.path / "asked").exists)
    assert front.poll() is None
    (run.path / "go").touch()
    out, err = front.communicate(timeout=150)
    assert out.splitlines()[-1] == "saved" and f"run {run.id}: stopped" in err and front.returncode == 130
    assert run.status == "stopped"


def test_a_time_limit_is_a_time():
    options = FinetuneOptions(load="base", train_data="data", stop_after="soon")
    with pytest.raises(RequestError, match="--stop-after soon: must be a time above 0"):
        options.check()
    options.stop_after = "11h30m"
    options.check()
    assert "--stop-after" in to_arguments(options)
