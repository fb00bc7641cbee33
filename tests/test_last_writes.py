"""What is written last is whole and durable, one process at a time writes it, and a folder of another user is no trap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from console.runs import launch, run_text
from console.runs.store import RunStore
from console.runs.tail import LogTail, last_rows
from qwen3vl_core import files
from qwen3vl_core.data.prepare.shard_writer import dataset_made_whole
from qwen3vl_core.errors import RequestError

ROOT = Path(__file__).parent.parent
# kills itself at the n-th call that opens, renames or removes something beside the target
REPLACES = """
import os, signal, sys
from pathlib import Path
from qwen3vl_core import files
from qwen3vl_core.data.prepare.shard_writer import dataset_made_whole
target, moment, exchange, way = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == 'exchange', sys.argv[4]
if not exchange: files._exchange = lambda first, second: False
seen = 0
def watch(event, arguments):
    global seen
    changes = ('open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree')
    if event in changes and str(arguments[0]).startswith(str(target.parent)):
        seen += 1
        if seen == moment: os.kill(os.getpid(), signal.SIGKILL)
with files.atomic_folder(target, what='test') if way == 'atomic' else dataset_made_whole(target) as building:
    (building / 'content').write_text('new')
    (building / 'more').write_text('new')
    sys.addaudithook(watch)
print(seen)
"""


def replace(target: Path, moment: int, exchange: str, way: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", REPLACES, str(target), str(moment), exchange, way]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def content(target: Path) -> str | None:
    return (target / "content").read_text() if target.exists() else None


@pytest.mark.parametrize("way", ["atomic", "prepare"])
@pytest.mark.parametrize("exchange", ["exchange", "two renames"])
def test_a_replaced_folder_is_the_old_or_the_new_one_however_often_it_is_killed(tmp_path, exchange, way):
    whole = tmp_path / "whole" / "target"
    whole.mkdir(parents=True)
    done = replace(whole, 0, exchange, way)
    moments = int(done.stdout)
    assert done.returncode == 0 and content(whole) == "new" and moments > 5
    assert [path.name for path in whole.parent.iterdir()] == ["target"]
    # QWEN3VL_KILLS: every moment, else some
    for moment in range(1, moments + 1, 1 if os.environ.get("QWEN3VL_KILLS") else 4):
        target = tmp_path / str(moment) / "target"
        target.mkdir(parents=True)
        for name in ("content", "more"):
            (target / name).write_text("old")
        # killed at the same moment twice: the second begins with what the first has left
        for _ in range(2):
            assert replace(target, moment, exchange, way).returncode in (0, -signal.SIGKILL)
            assert content(target) in ("old", "new") or exchange == "two renames"
            if target.exists():
                assert (target / "more").read_text() == content(target)
        assert replace(target, 0, exchange, way).returncode == 0
        assert content(target) == "new" and [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_folder_lost_between_two_renames_is_put_back_before_anything_else(tmp_path):
    target, old = tmp_path / "target", tmp_path / "target.old.tmp"
    old.mkdir()
    (old / "content").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_folder(target, what="test"):
        assert content(target) == "old"
        raise RuntimeError
    assert content(target) == "old" and not old.exists()
    os.rename(target, old)
    with pytest.raises(RuntimeError), dataset_made_whole(target):
        raise RuntimeError
    assert content(target) == "old"


def test_a_second_writer_of_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    target = tmp_path / "target"
    with files.atomic_folder(target, what="test") as building:
        (building / "content").write_text("first")
        with pytest.raises(RequestError, match="another process is writing it"), files.atomic_folder(target, what="test"):
            pass
    assert content(target) == "first" and [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_looks_whole_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    target = tmp_path / "target"
    with files.atomic_folder(target, what="test") as building:
        (building / "content").write_text("x")
    assert {str(tmp_path / "target.tmp"), str(tmp_path / "target.tmp" / "content"), str(tmp_path)} <= set(synced)
    synced.clear()
    files.write_text(tmp_path / "file", "x")
    assert synced == [str(tmp_path / "file.tmp"), str(tmp_path)]


def test_metrics_go_on_without_tensorboard(tmp_path, capsys):
    from qwen3vl_core.training.metrics import Metrics

    (tmp_path / "tensorboard").write_text("a file in its place")
    metrics = Metrics(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    metrics.row("train", 1, {"loss": 1.0})
    metrics.close()
    assert "TensorBoard failed" in capsys.readouterr().out and len(last_rows(tmp_path / "metrics.jsonl")) == 1


def test_a_tracker_that_does_not_start_ends_a_new_run_and_not_one_that_resumes(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from qwen3vl_core.options import FinetuneOptions
    from qwen3vl_core.training.sinks import Sinks

    monkeypatch.setenv("WANDB_MODE", "offline")
    options = FinetuneOptions(load="base", train_data="data", wandb="a name/that wandb:refuses")
    said: list[str] = []
    with pytest.raises(RequestError, match=r"did not start .*; fix that, or leave --wandb out"):
        Sinks(tmp_path, options, said.append)
    sinks = Sinks(tmp_path, options, said.append, resumed=True)
    assert len(said) == 1 and said[0].endswith("the run continues without it")
    sinks.log({"loss": 1.0}, 1)
    sinks.close(failed=False)


@pytest.fixture
def run(tmp_path):
    store = RunStore(tmp_path / "runs")
    return store.create("finetune", {"train_iters": 4}, ["true"])


@pytest.mark.parametrize("name", ["state.json", "plan.json", "metrics.jsonl", "output.log"])
def test_a_list_does_not_read_gigabytes(run, name):
    with open(run.path / name, "wb") as stream:
        stream.truncate(1 << 32)
    run_text.table([run])
    assert run.status in ("starting", "lost")


def test_the_end_of_what_is_no_file_is_empty(run):
    """tests/faults/test_hostile_folders.py has every command for every file of a run."""
    for file in (run.log, run.metrics):
        file.unlink(missing_ok=True)
        os.mkfifo(file)
    assert LogTail(run.log).read() == [] and last_rows(run.metrics) == []


def test_a_number_in_a_state_is_signalled_only_when_it_is_the_supervisor_of_that_run(run):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        state = run.path / "state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"status": "running", "supervisor_pid": other.pid}))
        lock = subprocess.Popen(["flock", str(run.path / "lock"), "cat"], stdin=subprocess.PIPE)  # as if a supervisor lived
        while run.status != "running":
            assert lock.poll() is None
        launch.stop(run)
        assert (run.path / "stop").exists()
        lock.communicate()
        other.communicate(b"\n")
        assert other.returncode == 0, "it was not signalled"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_run_of_another_user_is_shown_and_not_touched(run, capsys):
    from console import commands

    os.chown(run.path, 12345, 12345)
    words = ["--runs", str(run.path.parent)]
    assert commands.runs(["show", "1", *words]) == 0
    assert "user 12345" in capsys.readouterr().out
    for action in (["stop", "1"], ["resume", "1"], ["delete", "1", "--yes"]):
        with pytest.raises(RequestError, match="belongs to user 12345; ask them, or add --foreign"):
            commands.runs([*action, *words])
    assert commands.runs(["stop", "1", "--foreign", *words]) == 0
    assert commands.runs(["delete", "1", "--yes", "--foreign", *words]) == 0 and not run.path.exists()


def test_writers_of_a_file_take_turns(tmp_path, monkeypatch):
    """Every content is whole, however many write at once; one that stays is waited for, not for ever."""
    target = tmp_path / "plan.yaml"
    texts = [f"{number}\n" * 20_000 for number in range(4)]
    script = (
        "import sys; from pathlib import Path; from qwen3vl_core.files import write_text\n"
        "for _ in range(20): write_text(Path(sys.argv[1]), f'{sys.argv[2]}\\n' * 20_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(target), str(number)]) for number in range(4)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            seen.add(target.read_text())
    assert [writer.returncode for writer in writers] == [0] * 4 and seen <= set(texts) and target.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
    monkeypatch.setattr(files, "TURN_SECONDS", 0.05)
    with files.replaced_file(target) as temporary:
        temporary.write_text("first")
        with pytest.raises(BlockingIOError, match="another process is writing it"):
            files.write_text(target, "second")
    assert target.read_text() == "first"
