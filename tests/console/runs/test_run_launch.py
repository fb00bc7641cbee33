"""Following a run shows all of it, and Ctrl-C asks it to stop."""

from __future__ import annotations

import io
import signal
import subprocess
import sys

import pytest

from console.runs import launch
from tests.console.runs.jobs import ROOT, UNTIL_GO, job, until

FOLLOW = "import sys\nfrom console.runs import launch, store\nsys.exit(launch.follow(store.RunStore(sys.argv[1]).get(1), sys.stdout))"
SAVES = "def end(*_):\n print('saved'); sys.exit(7)\nsignal.signal(signal.SIGTERM, end)\nprint('up'); time.sleep(600)"


def follower(store):
    return subprocess.Popen([sys.executable, "-c", FOLLOW, str(store.root)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_following_copies_every_byte(store):
    program = """
out = sys.stdout.buffer
for i in range(400):
    out.write(os.urandom(6000) + b'\\n')
    out.flush()
out.write(b'no end of line')
sys.exit(5)"""
    run = store.create("job", {}, job(program))
    launch.start(run)
    copy = io.BytesIO()
    assert launch.follow(run, copy) == 5
    assert copy.getvalue() == run.log.read_bytes()
    assert len(copy.getvalue()) == 400 * 6001 + 14


def test_a_text_stream_gets_whole_characters(store):
    program = "for b in 'zwölf ▶ 猫\\n'.encode() * 20: os.write(1, bytes([b]))"
    run = store.create("job", {}, job(program))
    launch.start(run)
    copy = io.StringIO()
    assert launch.follow(run, copy) == 0
    assert copy.getvalue() == "zwölf ▶ 猫\n" * 20


def test_following_begins_at_the_given_offset(store):
    run = store.create("job", {}, job("print('again' if (here / 'ok').exists() else 'first'); sys.exit((here / 'ok').exists() - 1)"))
    launch.start(run)
    assert launch.wait(run, 150) == "failed"
    size = run.log.stat().st_size
    (run.path / "ok").touch()
    launch.resume(run)
    copy = io.StringIO()
    assert launch.follow(run, copy, offset=size) == 0
    assert copy.getvalue().startswith("qwen3vl: resumed ") and copy.getvalue().endswith("\nagain\n")
    assert run.log.read_text().startswith("first\n")


def test_ctrl_c_asks_the_run_to_stop_and_shows_its_end(store, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "150")
    run = store.create("job", {}, job(SAVES))
    launch.start(run)
    screen = follower(store)
    assert screen.stdout.readline() == b"up\n"
    screen.send_signal(signal.SIGINT)
    out, err = screen.communicate(timeout=150)
    assert screen.returncode == 7 and err == b""
    assert out.splitlines() == [b"qwen3vl: asked to stop; 150 s to end", b"saved"]
    assert run.status == "stopped"


def test_a_second_ctrl_c_leaves_the_run_to_stop_by_itself(store, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "150")
    run = store.create("job", {}, job("signal.signal(signal.SIGTERM, lambda *_: print('busy'))\nprint('up')\n" + UNTIL_GO))
    launch.start(run)
    screen = follower(store)
    screen.stdout.readline()
    screen.send_signal(signal.SIGINT)
    while screen.stdout.readline() != b"busy\n":
        pass
    screen.send_signal(signal.SIGINT)
    assert screen.wait(150) and b"KeyboardInterrupt" in screen.stderr.read()
    assert run.status == "stopping"
    (run.path / "go").touch()
    assert launch.wait(run, 150) == "stopped"


def test_a_closed_reader_does_not_affect_the_run(store):
    run = store.create("job", {}, job("print('x' * 100)\n" + UNTIL_GO))
    launch.start(run)
    with io.BytesIO() as closed:
        pass
    until(lambda: run.log.stat().st_size > 0)
    with pytest.raises(ValueError, match="closed"):
        launch.follow(run, closed)
    assert run.status == "running"


def test_waiting_has_a_timeout(store):
    run = store.create("job", {}, job(UNTIL_GO))
    launch.start(run)
    assert launch.wait(run, 0.05) == "running"
    (run.path / "go").touch()
    assert launch.wait(run) == "done"
