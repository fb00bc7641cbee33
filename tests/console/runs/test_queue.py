"""Runs wait for GPUs: real supervisors, with a stand-in for nvidia-smi. Never two of them on one GPU, never one lost."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from console import commands
from console.runs import forecast, launch, queue
from console.runs.state import read_state, write_json
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import FinetuneOptions
from tests.console.runs.jobs import ROOT, UNTIL_GO, is_running, job, until

TOOL = """
import json, os, sys
what, fields = sys.argv[1].removeprefix("--query-").split("=")
for row in json.load(open(os.path.join(os.path.dirname(__file__), "gpus.json")))[what]:
    print(", ".join(row[field] for field in fields.split(",")))
"""
NOTES_GPUS = "note('gpus', os.environ.get('CUDA_VISIBLE_DEVICES')); "


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two GPUs of 80 GiB, of which a test says what others use."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!{sys.executable} -S{TOOL}")
    (folder / "nvidia-smi").chmod(0o700 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def use(**used):
        """gpu0=(GiB, pid): what a process holds."""
        gpus, apps = [], []
        for index in range(2):
            gib, pid = used.get(f"gpu{index}", (0.4, None))
            gpus.append({"index": str(index), "uuid": f"GPU-{index}", "name": "NVIDIA H100", "memory.total": "81920",
                         "memory.used": str(int(gib * 1024))})  # fmt: skip
            apps += [{"gpu_uuid": f"GPU-{index}", "pid": str(pid)}] if pid else []
        (folder / "new.json").write_text(json.dumps({"gpu": gpus, "compute-apps": apps}))
        os.replace(folder / "new.json", folder / "gpus.json")

    use()
    return use


def finetune(store, name="job", program=UNTIL_GO, **options):
    """A finetune, started; by default of GPU 0, until it may end."""
    declared = FinetuneOptions(load="base", train_data="data", name=name, **{"gpu_ids": "0", **options})
    run = store.create("finetune", declared, job(NOTES_GPUS + program))
    launch.start(run)
    return run


def gone_on(run):
    """Let a run end, and wait until it has."""
    until((run.path / "up").exists)
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "done"


def runs_now(*runs):
    for run in runs:
        until((run.path / "up").exists)
        assert run.status == "running"


def ids(store):
    return [entry.run.name for entry in queue.look(store.root).entries]


def supervisor_of(run):
    return run.state["supervisor_pid"]


def kill_supervisor(run):
    pid = supervisor_of(run)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_running(pid))


def test_the_second_run_of_a_gpu_starts_when_the_first_ends_and_another_gpu_is_free_at_once(store, machine):
    first, second, other = finetune(store, "first"), finetune(store, "second"), finetune(store, "other", gpu_ids="1")
    runs_now(first, other)
    assert second.status == "queued" and second.state["gpus"] == ["0"] and not (second.path / "gpus").exists()
    assert "GPU 0 is free when 0001 ends" in second.log.read_text()
    gone_on(first)
    runs_now(second)
    assert (second.path / "gpus").read_text() == "0" and second.state["queued"] < second.started
    assert second.started >= first.ended, "by the supervisor that ended, and after it"
    assert queue.look(store.root).entries == () and queue.look(store.root).held_gpus == {"0": second, "1": other}


def test_who_starts_a_run_is_told_for_what_it_waits(store, machine, capsys):
    options = FinetuneOptions(load="base", train_data="data", gpu_ids="0,1")
    assert forecast.before_start(store.root, options) == "", "it would start at once"
    finetune(store, "first")
    words = "GPUs 0 and 1 are free when 0001 ends"
    assert forecast.before_start(store.root, options) == words
    assert (
        forecast.before_start(store.root, replace(options, queue="never"))
        == ""
        == forecast.before_start(store.root, replace(options, gpu_ids="free", nproc=1))
    )
    assert commands.launch("finetune", options, runs=store.root, foreground=False) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"run 0002-finetune queued: {words}\n") and "qwen3vl runs queue" in told and "qwen3vl runs stop 2" in told
    assert commands.launch("finetune", options, runs=store.root, foreground=False, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "queued"
    assert commands.runs(["show", "2", "--runs", str(store.root)]) == 0
    assert f"{words}; qwen3vl runs queue shows the order" in capsys.readouterr().out
    machine(gpu1=(70.0, 1))
    assert forecast.before_start(store.root, options) == "GPUs 0 and 1 are in use, GPU 1 by another process (1)"


def test_a_run_of_all_gpus_is_not_passed_over_by_runs_of_one(store, machine):
    one = finetune(store, "one")
    both, late = finetune(store, "both", gpu_ids=None), finetune(store, "late", gpu_ids="1")
    assert [both.status, late.status] == ["queued", "queued"], "GPU 1 is free, but kept for the run before"
    machine(gpu0=(70.0, 1))
    gone_on(one)
    runs_now(late)
    assert both.status == "queued", "of a process outside of the store nobody knows when it ends: nothing is kept meanwhile"
    machine()
    gone_on(late)
    runs_now(both)
    assert (both.path / "gpus").read_text() == "0,1"


def test_a_run_waits_for_free_gpus_of_any_number_and_records_which_it_got(store, machine):
    machine(gpu0=(70.0, 1), gpu1=(70.0, 1))
    run = finetune(store, "any", gpu_ids="free", nproc=1)
    assert run.status == "queued" and run.state["any_gpus"] == 1 and "GPU 0 by another process (1)" in run.log.read_text()
    assert "export CUDA_VISIBLE_DEVICES" not in (run.path / "command.sh").read_text()
    machine(gpu0=(70.0, 1))
    runs_now(run)
    assert run.options["gpu_ids"] == "1" and (run.path / "gpus").read_text() == "1" and run.state["gpus"] == ["1"]
    second = finetune(store, "more", gpu_ids="free", nproc=1)
    assert second.status == "queued", "GPU 1 is held, though no memory of it is used yet"
    with pytest.raises(RequestError, match="0 of the 1 GPUs that it needs are free"):
        finetune(store, "never", gpu_ids="free", nproc=1, queue="never")


def test_what_does_not_wait(store, machine):
    first = finetune(store, "first")
    at_once = finetune(store, "never", queue="never")
    looked_at = store.create("finetune", FinetuneOptions(load="base", train_data="data", gpu_ids="0"), job(UNTIL_GO))
    launch.start(looked_at, foreground=True)
    patient = store.create("finetune", FinetuneOptions(load="base", train_data="data", gpu_ids="0", queue="always"), job(UNTIL_GO))
    launch.start(patient, foreground=True)
    prepared = store.create("prepare", {}, job(UNTIL_GO))
    launch.start(prepared)
    runs_now(first, at_once, looked_at, prepared)
    assert patient.status == "queued"


def test_the_order_is_changed_and_entries_are_held_released_and_cancelled(store, machine, capsys):
    first, a, b, c = (finetune(store, name) for name in ("first", "a", "b", "c"))
    words = ["queue", "--runs", str(store.root)]

    def command(*more):
        assert commands.runs([*words, *more]) == 0
        return capsys.readouterr().out

    shown = command()
    assert (
        ids(store) == ["a", "b", "c"]
        and "0002-a  GPU 0" in shown
        and "GPU 0 is free when 0001 ends" in shown
        and "GPU 0 is free when 0003 ends" in shown
    )
    command("4", "--first")
    command("2", "--last")
    assert ids(store) == ["c", "b", "a"]
    command("c", "--down")
    command("a", "--up")
    assert ids(store) == ["b", "a", "c"]
    assert "held back" in command("b", "--hold")
    listed = json.loads(command("--json"))
    assert [(row["id"], row["held"], row["place"]) for row in listed["queue"]] == [
        ("0003-b", True, 1),
        ("0002-a", False, 2),
        ("0004-c", False, 3),
    ]
    assert listed["holders"] == {"0": "0001-first"}
    command("a", "--cancel")
    assert a.status == "stopped" and not (a.path / "up").exists() and ids(store) == ["b", "c"]
    with pytest.raises(RequestError, match=r"run 0002-a: stopped; only queued runs have a place in the queue"):
        commands.runs([*words, "a", "--first"])
    gone_on(first)
    runs_now(c)
    assert b.status == "queued", "held back"
    command("b", "--release")
    gone_on(c)
    gone_on(b)
    launch.resume(a)
    gone_on(a)


def test_a_killed_supervisor_loses_no_entry_and_a_reboot_neither(store, machine, capsys):
    first, second, third = (finetune(store, name) for name in ("first", "second", "third"))
    before = supervisor_of(second)
    kill_supervisor(second)
    assert ids(store) == ["second", "third"] and second.status == "queued"
    assert [entry.attended for entry in queue.look(store.root).entries] == [False, True]
    assert commands.runs(["queue", "--runs", str(store.root), "--resume"]) == 0
    assert capsys.readouterr().out == "run 0002-second: waits for its GPUs again\n"
    assert supervisor_of(second) != before and queue.go_on(store.root) == []
    # killed when it had just taken the GPU, before there was a process of the run
    kill_supervisor(second)
    write_json(second.path / "state.json", {**read_state(second.path), "status": "starting", "started": time.time()})
    assert second.status == "lost" and ids(store) == ["second", "third"]
    assert queue.go_on(store.root) == [second] and second.status == "queued"
    # as at a shutdown: SIGTERM to all, then another boot
    for run in (second, third):
        pid = supervisor_of(run)
        os.kill(pid, signal.SIGTERM)
        until(lambda pid=pid: not is_running(pid))
        write_json(run.path / "state.json", {**read_state(run.path), "boot_id": "the boot before"})
    assert [second.status, third.status] == ["queued", "queued"] and ids(store) == ["second", "third"]
    with pytest.raises(RequestError, match="is queued already; qwen3vl runs queue shows when it starts"):
        launch.resume(second)
    ended = supervisor_of(third)
    gone_on(first)  # who ends lets the others go on
    runs_now(second)
    until(lambda: supervisor_of(third) != ended)
    assert third.status == "queued"
    kill_supervisor(third)
    launch.stop(third)
    assert third.status == "stopped", "nobody waited for it, and it can be taken out all the same"


def test_a_starter_that_is_killed_leaves_the_run_in_the_queue(store, machine):
    first = finetune(store, "first")
    run = store.create("finetune", FinetuneOptions(load="base", train_data="data", gpu_ids="0"), job(NOTES_GPUS + UNTIL_GO))
    starter = subprocess.Popen([sys.executable, "-m", "console.runs.supervisor", str(run.path)], cwd=ROOT, start_new_session=True)
    until(lambda: read_state(run.path).get("supervisor_pid"))
    starter.kill()
    starter.wait()
    until(lambda: run.status == "queued" and "GPU 0 is free when" in run.log.read_text())
    gone_on(first)
    gone_on(run)


def test_commands_at_once_start_one_run_on_a_gpu_and_queue_the_others(store, machine):
    made = [
        store.create("finetune", FinetuneOptions(load="base", train_data="data", gpu_ids="0"), job(NOTES_GPUS + UNTIL_GO)) for _ in range(4)
    ]
    starters = [subprocess.Popen([sys.executable, "-m", "console.runs.supervisor", str(run.path)], cwd=ROOT) for run in made]
    assert [starter.wait() for starter in starters] == [0] * 4
    held = queue.look(store.root).held_gpus
    assert sorted(run.status for run in made).count("queued") == 3 and set(held) == {"0"}
    # and two processes change the order at once
    last = queue.look(store.root).entries[-1].run
    code = "import sys\nfrom console.commands import runs\nsys.exit(runs(['queue', '--runs', *sys.argv[1:]]))"
    movers = [subprocess.Popen([sys.executable, "-c", code, str(store.root), str(last.number), what], cwd=ROOT, stdout=subprocess.DEVNULL)
              for what in ("--up", "--first")]  # fmt: skip
    assert [mover.wait() for mover in movers] == [0, 0]
    entries = queue.look(store.root).entries
    assert len(entries) == 3 and entries[0].run == last
    gone_on(held["0"])
    runs_now(last)


def test_a_gpu_of_a_lost_run_is_not_given_away_while_its_processes_are_there(store, machine):
    lost, waiting = finetune(store, "lost"), finetune(store, "waiting")
    until((lost.path / "up").exists)
    kill_supervisor(lost)
    assert lost.status == "lost" and queue.look(store.root).held_gpus == {"0": lost}
    launch.stop(lost)
    runs_now(waiting)
