"""A folder from somebody else neither hangs nor steers what reads it, and what is recorded holds no secret."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from console import commands
from console.readers.monitor import MonitorFeed
from console.readers.store_watcher import StoreWatcher
from console.runs import launch, processes
from console.runs.store import RunStore
from qwen3vl_core import addresses, cli
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.layout.torchrun_command import free_port
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import FILES, TORCHRUN
from tests.readers import outside_models
from tests.shared import DEMO

ROOT = Path(__file__).parents[2]
STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
SECONDS = 60
FOLDERS = ("ranks", "checkpoints", "tensorboard", "wandb", "swanlab")
INSIDE = ("ranks/0.json", "checkpoints/iter_0000002/digests.json", "checkpoints/iter_0000002/__0_0.distcp",
          "checkpoints/latest_checkpointed_iteration.txt", "state.json.tmp")  # fmt: skip


@contextlib.contextmanager
def in_time():
    """Raises TimeoutError in a block that hangs."""

    def late(*_):
        raise TimeoutError(f"not done in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tmp_path):
    run = RunStore(tmp_path / "runs").create("finetune", {"train_iters": 4}, ["true"])
    data = run.path / "checkpoints" / "iter_0000002"
    data.mkdir(parents=True)
    (run.path / "ranks").mkdir()
    (data / "__0_0.distcp").write_bytes(b"x")
    row = {"v": 1, "step": 1, "time": 1.0, "kind": "train", "loss": 1.0}
    (run.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run.path / "output.log").write_text("a line\n")
    return run


def read_all(run, *, ended: str = "failed") -> None:
    """Every command that reads a run; a refusal in one line counts as an answer."""
    state = run.path / "state.json"
    if state.is_file() and not state.is_symlink():
        state.write_text(json.dumps(json.loads(state.read_text()) | {"status": ended, "supervisor_pid": 99999999}))
    store = ["--runs", str(run.path.parent)]
    for words in (
        ["list"], ["list", "--json"], ["show", run.id], ["show", run.id, "--json"], ["logs", run.id], ["metrics", run.id],
        ["samples", run.id],        ["metrics", run.id, "--json"], ["check", run.id], ["check", run.id, "--read-data"],
        ["compare", run.id, run.id],        ["clone", run.id, "--set", "train_iters=0"], ["captions", run.id],
    ):  # fmt: skip
        with in_time(), contextlib.suppress(RequestError, WorkError, SystemExit):
            commands.runs([*words, *store])
    # what the console's screens read
    with in_time(), contextlib.suppress(RequestError, WorkError):
        watcher = StoreWatcher(run.path.parent)
        rows = watcher.look().rows
        assert [row.id for row in rows] == ([run.id] if RunStore(run.path.parent).list() else [])
        MonitorFeed(watcher).read(run, (), "loss")


@pytest.mark.parametrize("kind", ["FIFO", "link", "folder"])
@pytest.mark.parametrize("name", [*(name for name in FILES if name not in FOLDERS), *INSIDE])
def test_no_reader_waits_for_what_is_no_file(run, name, kind):
    file = run.path / name
    file.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    for ended in ("failed", "running"):
        read_all(run, ended=ended)


def test_what_a_run_writes_goes_through_no_link(run, tmp_path):
    other = tmp_path / "mine"
    other.write_text("mine")
    for name in ("state.json.tmp", "plan.json.tmp", "stop.tmp"):
        (run.path / name).symlink_to(other)
    launch.start(run)
    assert launch.wait(run, 60) == "done"
    assert other.read_text() == "mine" and not (run.path / "state.json").is_symlink()


def test_names_and_texts_of_a_run_do_not_steer_the_terminal(run, capsys):
    plan = json.loads((run.path / "plan.json").read_text())
    plan |= {"name": STEERING, "kind": "compare", "options": {STEERING: STEERING, "name": STEERING}, "versions": {STEERING: STEERING}}
    (run.path / "plan.json").write_text(json.dumps(plan))
    (run.path / "metrics.jsonl").write_text(json.dumps({"v": 1, "step": 1, "kind": "train", "loss": 1, STEERING: 1.0}) + "\n")
    (run.path / "samples.jsonl").write_text(json.dumps({"image": STEERING, "model": STEERING, "text": STEERING, "prompt": STEERING}) + "\n")
    (run.path / "output.log").write_text(STEERING + "\n")
    hostile = run.path.with_name(f"0009-{STEERING.replace('/', '')}")
    hostile.mkdir()
    (hostile / "plan.json").write_text("{}")
    read_all(run)
    out = "".join(capsys.readouterr())
    assert "0001" in out and not any(sign in out for sign in "\x1b\x07\x9b\u202e")
    assert len(RunStore(run.path.parent).list()) == 1


def test_names_in_errors_and_reports_do_not_steer_the_terminal(tmp_path, capsys):
    import torch
    from safetensors.torch import save_file

    model = tmp_path / "model"
    model.mkdir()
    save_file({f"model.{STEERING}": torch.zeros(1)}, model / "model.safetensors")
    (tmp_path / "a.json").write_text(json.dumps([{STEERING: STEERING, "image": STEERING, "conversations": STEERING}]))
    for words in (
        ["inspect", str(model)], ["convert", str(model), str(tmp_path / "to")], ["inspect", str(tmp_path / STEERING)],
        ["prepare", str(tmp_path / "a.json"), "--to", str(tmp_path / "data")], ["plan", "--load", STEERING],
        ["download", "model", STEERING, "--to", str(tmp_path / "x")],
    ):  # fmt: skip
        with contextlib.suppress(SystemExit):
            assert cli.main(words) in (0, 1, 2)
        out = "".join(capsys.readouterr())
        assert out and not any(sign in out for sign in "\x1b\x07\x9b\u202e"), (words, out)


def test_a_process_with_the_number_and_command_of_a_supervisor_is_not_signalled_if_it_started_later(run):
    """The kernel gives numbers again; another supervisor of this run is not the one that the state names."""
    words = [sys.executable, "-c", "input()", "console.runs.supervisor", str(run.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as other:
        state = json.loads((run.path / "state.json").read_text()) | {"status": "running", "supervisor_pid": other.pid}
        start = processes.start_of(other.pid)
        for stated, code in ((start - 1, None), (start, -signal.SIGTERM)):
            processes.signal_supervisor(run.path, state | {"supervisor_start": stated}, signal.SIGTERM)
            if code is not None:
                other.wait(60)
            assert other.poll() == code


SECRETS = ("https://me:hunter2@host/x", "s3://hunter2@bucket/x", "https://host/x?a=1&access_token=hunter2", "http://host/?sig=hunter2")


@pytest.mark.parametrize("address", SECRETS)
def test_a_run_with_a_secret_in_an_address_is_refused_and_nothing_is_written(tmp_path, address):
    store = RunStore(tmp_path / "runs")
    for options, command in (
        (FinetuneOptions(load="l", train_data=address), None), (FinetuneOptions(load="l", train_data="d", name=address), None),
        ({"proxy": address}, ["true"]), ({}, ["curl", address]),
    ):  # fmt: skip
        with pytest.raises(RequestError, match="holds a user, password or token") as caught:
            store.create("finetune", options, command)
        assert "hunter2" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("text", [*SECRETS, "hf_abcdefghijklmnopqrst"])
def test_errors_show_no_secret(text, capsys):
    shown = addresses.without_secrets(f"ProxyError: {text} failed")
    assert "hunter2" not in shown and "hf_abc" not in shown and shown.startswith("ProxyError: ") and shown.endswith(" failed")
    assert cli.main(["inspect", text]) == 2
    assert "hunter2" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("text", ["https://host/path?revision=main", "msc://profile/data", "/data/a@b/c", "me@host", "https://host/a@b"])
def test_addresses_without_secrets_stay(text):
    assert addresses.without_secrets(text) == text


def test_the_store_of_one_machine_listens_on_the_loopback_address_alone(tmp_path):
    port, script = free_port(), tmp_path / "rank.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "ranks = torch.ones(1)\n"
        "dist.all_reduce(ranks)\n"
        "rows = [row.split() for name in ('tcp', 'tcp6') for row in open('/proc/net/' + name).readlines()[1:]]\n"
        "listening = [row[1] for row in rows if row[3] == '0A' and row[1].endswith(f':{int(os.environ[\"MASTER_PORT\"]):04X}')]\n"
        "if dist.get_rank() == 0: print('ranks', int(ranks), 'listening', *listening, flush=True)\n"
    )
    words = [sys.executable, "-m", TORCHRUN, "--nnodes", "1", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    done = subprocess.run(
        [*words, "--master-port", str(port), str(script)], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"ranks 2 listening 0100007F:{port:04X}\n" in done.stdout


def test_no_reader_of_a_model_or_dataset_waits_for_what_is_no_file(tmp_path, capsys):
    outside_models.make_checkpoint(tmp_path)
    shutil.copytree(DEMO, tmp_path / "model")
    for folder, names, ways in (
        ("checkpoints", ("common.pt", ".metadata", "extra.json", "*.distcp", "config.json", "latest_*"), (["inspect"], ["convert"])),
        ("model", ("*.safetensors", "config.json", "tokenizer.json"), (["inspect"], ["convert"])),
        ("datasets/one", ("split.yaml", "dataset.yaml", ".info.json", "index.uuid", "index.sqlite", "*.tar", "*.idx"), (["inspect"],)),
    ):
        for file in (found for name in names for found in sorted((tmp_path / folder).rglob(name))[:1]):
            content = file.read_bytes()
            file.unlink()
            os.mkfifo(file)
            for words in ways:
                target = [str(tmp_path / "target")] if words == ["convert"] else []
                with in_time():
                    code = cli.main([*words, str(tmp_path / folder), *target])
                said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qwen3vl: ")]
                assert code in (0, 1, 2) and len(said) == (code > 0) and "--debug" not in "".join(said), (file, said)
                shutil.rmtree(tmp_path / "target", ignore_errors=True)
            file.unlink()
            file.write_bytes(content)


@pytest.mark.parametrize("words", [["runs", "list"], ["notify"]])
def test_no_command_waits_for_settings_that_are_no_file(tmp_path, words):
    for name in ("settings.yaml", "settings.language", "settings.theme"):
        os.mkfifo(tmp_path / name)
    env = os.environ | {"QWEN3VL_SETTINGS": str(tmp_path / "settings.yaml"), "QWEN3VL_RUNS": str(tmp_path / "runs"), "QWEN3VL_LANG": ""}
    done = subprocess.run(
        [sys.executable, "-m", "qwen3vl_core.cli", *words], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 2) and len((done.stdout + done.stderr).splitlines()) == 1
