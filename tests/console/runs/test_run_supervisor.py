"""A run outlives the screen, ends with all its processes, and is never reported alive when it is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from console.runs import launch, processes
from console.runs.state import STALE_SECONDS, write_json
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.layout.torchrun_command import free_port
from tests.console.runs.jobs import (
    EXITS_3,
    IGNORES_TERM,
    ROOT,
    SLEEPS,
    UNTIL_GO,
    is_running,
    job,
    pid_noted,
    run_store,
    spawning,
    until,
)


def started(store, program, name="job"):
    run = store.create(name, {}, job(program))
    launch.start(run)
    return run


def read(run, name):
    until((run.path / name).exists)
    return (run.path / name).read_text()


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGKILL])
def test_a_job_outlives_the_screen_that_started_it(store, how):
    screen = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom console.runs import launch, store\n"
         "run = store.RunStore(sys.argv[1]).create('job', {}, sys.argv[2:])\n"
         "launch.start(run)\nprint('started', flush=True)\nsys.stdin.read()",
         str(store.root), *job(UNTIL_GO)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert screen.stdout.readline() == b"started\n"
    os.killpg(screen.pid, how)
    screen.communicate()
    run = store.get(1)
    read(run, "up")
    assert run.status == "running" and is_running(run.state["pid"])
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "done" and run.exit_code == 0
    assert run.log.read_text() == "gone on\n"


def test_a_job_outlives_a_screen_that_is_killed_while_it_starts_it(store):
    run = store.create("job", {}, job(UNTIL_GO))
    starter = subprocess.Popen([sys.executable, "-m", "console.runs.supervisor", str(run.path)], cwd=ROOT,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    # frozen as soon as it has forked, killed before it can read the answer
    until(lambda: processes.descendants(starter.pid) or starter.poll() is not None)
    starter.send_signal(signal.SIGSTOP)
    starter.kill()
    starter.wait()
    read(run, "up")
    until(lambda: run.status == "running")
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "done"


def test_stop_ends_every_descendant_in_every_session_even_those_that_ignore_it(store):
    orphan = "if os.fork(): os._exit(0)\nos.setsid()\n" + IGNORES_TERM.replace("'up'", "'orphan'")
    program = spawning(IGNORES_TERM.replace("'up'", "'worker'"), spawning(orphan, IGNORES_TERM))
    run = started(store, program)
    pids = [pid_noted(run, name) for name in ("up", "worker", "orphan")]
    assert len({os.getsid(pid) for pid in pids}) == 3
    asked = time.monotonic()
    launch.stop(run)
    assert launch.wait(run, 150) == "stopped"
    assert time.monotonic() - asked >= 0.4  # the grace period
    assert not any(map(is_running, pids))
    assert run.exit_code == 128 + signal.SIGKILL
    assert "asked to stop" in run.log.read_text() and "3 processes did not end in time" in run.log.read_text()


def test_a_worker_may_finish_its_checkpoint_after_its_launcher_has_gone(store, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "150")
    saves = "def save(*_):\n until('launcher-gone'); note('saved'); sys.exit(0)\nsignal.signal(signal.SIGTERM, save)\n"
    worker = saves + "note('worker'); time.sleep(600)"
    run = started(store, spawning(worker, SLEEPS))
    read(run, "worker")
    read(run, "up")
    launcher = run.state["pid"]
    launch.stop(run)
    until(lambda: not is_running(launcher))
    assert run.status == "stopping"
    (run.path / "launcher-gone").touch()
    assert launch.wait(run, 150) == "stopped"
    assert (run.path / "saved").exists()


def test_the_workers_of_torchrun_get_the_signal_once_and_have_the_grace_period(store, tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "150")
    (tmp_path / "worker.py").write_text(
        "import os, signal, sys, time\n"
        "def end(*_):\n    global asked\n    asked = True\n    os.write(1, b'asked\\n')\n"
        "asked = False\nsignal.signal(signal.SIGTERM, end)\nos.write(1, b'up\\n')\n"
        "while not (asked and os.path.exists('go')): time.sleep(0.01)\nos.write(1, b'saved\\n')\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    run = store.create("job", {}, [sys.executable, "-m", "torch.distributed.run", *options, "worker.py"])
    launch.start(run)
    until(lambda: run.log.read_text().count("up\n") == 2, 150)
    launch.stop(run)
    until(lambda: run.log.read_text().count("asked\n") == 2)
    (tmp_path / "go").touch()
    assert launch.wait(run, 150) == "stopped" and run.exit_code == 0
    log = run.log.read_text()
    assert [log.count(f"{word}\n") for word in ("up", "asked", "saved")] == [2, 2, 2] and "Traceback" not in log


def test_a_run_that_saves_and_ends_well_when_asked_to_stop_is_stopped_not_done(store, monkeypatch):
    # long enough for a busy machine; the test waits for the end of the run
    monkeypatch.setenv("QWEN3VL_GRACE", "150")
    run = started(store, "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n" + SLEEPS)
    read(run, "up")
    launch.stop(run)
    assert launch.wait(run, 150) == "stopped" and run.exit_code == 0
    assert run.log.read_text().endswith("saved\n")


def test_leftover_processes_of_a_command_are_ended(store):
    run = started(store, spawning(IGNORES_TERM.replace("'up'", "'left'"), "until('left'); print('ready')"))
    left = pid_noted(run, "left")
    assert launch.wait(run, 150) == "done" and run.exit_code == 0
    assert not is_running(left)


def test_a_dead_supervisor_makes_a_run_lost_and_stop_ends_its_processes(store):
    run = started(store, spawning(IGNORES_TERM.replace("'up'", "'worker'"), UNTIL_GO))
    pids = [run.state["pid"], pid_noted(run, "worker")]
    read(run, "up")
    os.kill(run.state["supervisor_pid"], signal.SIGKILL)
    until(lambda: run.status == "lost")
    assert json.loads((run.path / "state.json").read_text())["status"] == "running"
    assert all(map(is_running, pids)) and not run.alive
    assert {p.pid for p in processes.strays(run.path)} == set(pids)
    with pytest.raises(RequestError, match=f"processes of it are still there .*{pids[0]}.*runs stop"):
        launch.resume(run)
    launch.stop(run)
    assert not any(map(is_running, pids))
    assert run.status == "stopped"
    (run.path / "go").touch()
    launch.resume(run)
    assert launch.wait(run, 150) == "done"


def test_a_lost_run_without_leftovers_can_be_resumed_at_once(store):
    run = started(store, UNTIL_GO)
    read(run, "up")
    os.kill(run.state["supervisor_pid"], signal.SIGKILL)
    os.kill(run.state["pid"], signal.SIGKILL)
    until(lambda: run.status == "lost" and not processes.strays(run.path))
    (run.path / "go").touch()
    launch.resume(run)
    assert launch.wait(run, 150) == "done"
    assert "resumed" in run.log.read_text() and run.log.read_text().endswith("gone on\n")


def test_exit_codes_and_signals_are_kept(store):
    run = started(store, EXITS_3)
    assert launch.wait(run, 150) == "failed"
    assert (run.exit_code, run.error) == (3, None)
    assert run.started <= run.ended <= time.time()
    run = started(store, "os.kill(os.getpid(), signal.SIGKILL)")
    assert launch.wait(run, 150) == "failed"
    assert (run.exit_code, run.error) == (137, "ended by SIGKILL")


@pytest.mark.parametrize(("word", "code"), [("no/such/program", 127), ("not-executable", 126)])
def test_a_command_that_cannot_be_executed_is_reported_in_log_and_state(store, tmp_path, word, code):
    (tmp_path / "not-executable").touch()
    run = store.create("job", {}, [str(tmp_path / word)])
    with pytest.raises(WorkError, match=f"could not be started: .*{word}"):
        launch.start(run)
    assert (run.status, run.exit_code) == ("failed", code)
    assert word in run.error and word in run.log.read_text()


def test_the_state_file_is_never_partial(store):
    run = store.create("job", {}, job(EXITS_3))
    over, seen, broken = threading.Event(), set(), []

    def read_on():
        while not over.is_set():
            try:
                state = json.loads((run.path / "state.json").read_bytes())
                seen.add(state["status"])
                assert state["host"] and "exit_code" in state
            except Exception as error:
                broken.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        launch.start(run)
        launch.wait(run, 150)
        for _ in range(3):
            launch.resume(run)
            launch.wait(run, 150)
        whole = run.state
        for size in range(60):
            write_json(run.path / "state.json", {**whole, "padding": "x" * 150 * size})
    finally:
        over.set()
        reader.join()
    assert not broken
    assert "failed" in seen


def test_one_of_two_starts_is_refused(store):
    run = store.create("job", {}, job(UNTIL_GO))
    outcomes = []

    def start():
        try:
            launch.start(run)
            outcomes.append("started")
        except RequestError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("started") == 1
    assert all("is running already" in o for o in outcomes if o != "started")
    with pytest.raises(RequestError, match="is running already"):
        launch.resume(run)
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "done"
    assert run.log.read_text() == "gone on\n"
    with pytest.raises(RequestError, match=r"was started before \(done\)"):
        launch.start(run)
    with pytest.raises(RequestError, match="is done; nothing to resume"):
        launch.resume(run)


def test_a_run_on_another_machine_is_judged_by_its_heartbeat(store):
    run = store.create("job", {}, job(SLEEPS))
    state = json.loads((run.path / "state.json").read_text())
    write_json(run.path / "state.json", state | {"status": "running", "host": "elsewhere", "boot_id": "b", "supervisor_pid": os.getpid()})
    (run.path / "heartbeat").touch()
    assert run.status == "running"
    with pytest.raises(RequestError, match="it ran on elsewhere"):
        launch.resume(run)
    launch.stop(run)  # asked by a file: the number of a process there means nothing here
    assert (run.path / "stop").exists()
    old = time.time() - STALE_SECONDS - 1
    for name in ("heartbeat", "state.json"):
        os.utime(run.path / name, (old, old))
    assert run.status == "lost"
    with pytest.raises(RequestError, match="lost on elsewhere, and only that machine"):
        launch.stop(run)
    launch.resume(run)
    assert run.status == "running" and not (run.path / "stop").exists()


def test_a_file_in_the_folder_stops_a_run_from_another_machine(store):
    run = started(store, SLEEPS)
    read(run, "up")
    (run.path / "stop").touch()
    assert launch.wait(run, 150) == "stopped"
    assert not (run.path / "stop").exists()


def test_the_heartbeat_is_updated_while_the_run_is_alive(store):
    run = started(store, SLEEPS)
    first = (run.path / "heartbeat").stat().st_mtime_ns
    until(lambda: (run.path / "heartbeat").stat().st_mtime_ns > first)


def test_a_state_that_cannot_be_written_now_is_written_later(store):
    run = started(store, UNTIL_GO)
    pid = run.state["pid"]
    (run.path / "state.json.tmp").mkdir()  # where the new state would be written first
    (run.path / "go").touch()
    until(lambda: not is_running(pid))
    assert run.status == "running"
    (run.path / "state.json.tmp").rmdir()
    assert launch.wait(run, 150) == "done"


def test_the_command_gets_a_clean_environment(store, monkeypatch):
    monkeypatch.setenv("QWEN3VL_RUN_DIR", "of another run")
    monkeypatch.setenv("QWEN3VL_PROGRESS", "none")
    run = started(
        store,
        "print(os.environ['QWEN3VL_RUN_DIR'], os.environ['QWEN3VL_PROGRESS'], os.environ['PYTHONUNBUFFERED'])\n"
        "print(os.getcwd(), os.getsid(0) == os.getpid(), sys.stdin.read() == '')\n"
        "print([signal.getsignal(s) == signal.SIG_DFL for s in (signal.SIGTERM, signal.SIGHUP)])\n"
        "print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)\n"
        "print(sorted(os.path.basename(os.readlink(f'/proc/self/fd/{n}')) for n in (0, 1, 2)), len(os.listdir('/proc/self/fd')))",
    )
    assert launch.wait(run, 150) == "done"
    # three standard files, and the listing's own
    assert run.log.read_text().splitlines() == [
        f"{run.path} lines 1", f"{os.getcwd()} True True", "[True, True]", "True", "['null', 'output.log', 'output.log'] 4",
    ]  # fmt: skip


def test_a_run_that_was_never_started_can_be_stopped(store):
    run = store.create("job", {}, job(SLEEPS))
    assert run.status == "starting"
    launch.stop(run)
    assert run.status == "stopped"
    with pytest.raises(RequestError, match="stopped already; nothing to stop"):
        launch.stop(run)


def test_an_invalid_grace_period_is_refused(store, monkeypatch):
    run = store.create("job", {}, job(SLEEPS))
    monkeypatch.setenv("QWEN3VL_GRACE", "soon")
    with pytest.raises(RequestError, match="QWEN3VL_GRACE=soon: must be seconds"):
        launch.start(run)


def test_the_store_of_the_tests_leaves_no_process(tmp_path):
    with run_store(tmp_path / "runs") as store:
        pid = started(store, SLEEPS).state["pid"]
        assert is_running(pid)
    assert not is_running(pid)
