"""Every action of the screens as a subcommand with JSON output."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from console import commands, runs_command
from console.actions import ACTIONS
from console.runs import launch
from console.runs.captions import read_votes
from console.runs.store import RunStore
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import FinetuneOptions
from tests.console.runs.jobs import ROOT, SLEEPS, job, run_store, until

SAVES = """
def save(*_): note('saved')
signal.signal(signal.SIGUSR1, save)
note('up')
while True: time.sleep(0.02)
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3VL_GRACE", "0.4")
    monkeypatch.setenv("QWEN3VL_RUNS", str(tmp_path / "runs"))
    with run_store(tmp_path / "runs") as made:
        yield made


@pytest.fixture
def answer(capsys):
    """`answer("show", "1")` runs `qwen3vl runs show 1 --json` and returns its parsed output."""

    def run(*words):
        assert commands.runs([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def finetune(store, losses=(), status="done", **options):
    run = store.create("finetune", FinetuneOptions(load="base", train_data="data", train_iters=4, **options), ["true"])
    rows = [{"v": 1, "kind": "train", "step": n, "loss": loss, "lr": 1e-5} for n, loss in enumerate(losses, 1)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.log.write_text("".join(f"step {n} loss {loss}\n" for n, loss in enumerate(losses, 1)))
    state = json.loads((run.path / "state.json").read_text())
    (run.path / "state.json").write_text(json.dumps(state | {"status": status, "exit_code": 0 if status == "done" else 1}))
    return run


def test_the_list_is_filtered_sorted_and_an_array(store, answer):
    finetune(store, [3.0, 2.0], name="b")
    finetune(store, [3.0, 1.0], name="a", lr=1e-4)
    finetune(store, [3.0], status="failed", name="c")
    assert [row["id"] for row in answer("list")] == [row["id"] for row in answer()] == ["0003-c", "0002-a", "0001-b"]
    first = answer("list", "--sort", "loss")[0]
    assert (first["id"], first["loss"], first["step"], first["total"], first["status"]) == ("0002-a", 1.0, 2, 4, "done")
    assert [row["id"] for row in answer("list", "--filter", "lr:1e-4")] == ["0002-a"]
    assert [row["id"] for row in answer("list", "--filter", "failed")] == ["0003-c"]
    assert [row["id"] for row in answer("list", "--sort", "name", "--reverse")] == ["0003-c", "0001-b", "0002-a"]
    with pytest.raises(RequestError, match="--sort speed: no such order; choose from newest, name"):
        commands.runs(["list", "--sort", "speed"])


def test_show_contains_plan_state_metrics_checkpoints_and_failure(store, answer):
    run = finetune(store, [3.0, float("nan")], status="failed")
    run.log.write_text("step 1\nOSError: [Errno 28] No space left on device: 'x'\n")
    (run.path / "checkpoints" / "iter_0000002").mkdir(parents=True)
    found = answer("show", "1")
    assert found["plan"]["options"]["train_iters"] == 4 and found["state"]["exit_code"] == 1 and found["checkpoints"] == [2]
    assert found["trouble"]["name"] == "disk" and "No space left" in found["trouble"]["line"] and found["trouble"]["advice"]
    assert found["loss"] is None and found["train"]["step"] == 2


def test_logs_metrics_and_samples(store, answer, capsys):
    run = finetune(store, [3.0, 2.0, None])
    (run.path / "samples.jsonl").write_text(json.dumps({"image": "a.jpg", "step": 2, "text": "a dog", "prompt": "What?"}) + "\n{half")
    assert answer("logs", "1", "-n", "2")["lines"] == ["step 2 loss 2.0", "step 3 loss None"]
    assert answer("logs", "1", "--grep", "LOSS 2")["lines"] == ["step 2 loss 2.0"]
    with open(run.log, "a") as log:
        log.write("qwen3vl[stop]: asked to stop\n")
    assert answer("logs", "1", "--grep", "[stop]")["lines"] == ["qwen3vl[stop]: asked to stop"], "programs read the tag"
    assert commands.runs(["logs", "1", "--follow", "--json"]) == 0
    assert [json.loads(line)["line"] for line in capsys.readouterr().out.splitlines()][:1] == ["step 1 loss 3.0"]
    series = answer("metrics", "1", "--metric", "loss")["metrics"]
    assert series == {"loss": {"step": [1, 2, 3], "value": [3.0, 2.0, None]}}
    assert set(answer("metrics", "1")["metrics"]) == {"loss", "lr"}
    with pytest.raises(RequestError, match="--metric speed: run 0001-finetune has no such metric; choose from loss, lr"):
        commands.runs(["metrics", "1", "--metric", "speed"])
    assert answer("samples", "1")["samples"][0]["text"] == "a dog"
    assert commands.runs(["samples", "1"]) == commands.runs(["metrics", "1"]) == 0
    out = capsys.readouterr().out
    assert "a.jpg\n      step 2  a dog" in out and re.search(r"loss +3 +3 +– +2 +3", out)


def test_compare_names_what_differs(store, answer):
    finetune(store, [3.0], lr=1e-5, name="a")
    finetune(store, [2.0], lr=1e-4, name="b")
    found = answer("compare", "1", "2")
    assert found["options"] == {"lr": [1e-5, 1e-4]} and [row["loss"] for row in found["train"]] == [3.0, 2.0]
    other = store.create("job", {"x": 1}, ["true"])
    assert answer("compare", "1", str(other.number))["options"]["x"] == [None, 1]


def test_stop_save_and_resume_answer_in_json(store, answer):
    run = store.create("finetune", FinetuneOptions(load="base", train_data="data"), job(SAVES))
    launch.start(run)
    until((run.path / "up").exists)
    assert answer("save", "1") == {"id": run.id, "asked": "save"}
    until((run.path / "saved").exists)
    until(lambda: "qwen3vl[save]: asked to save a checkpoint" in run.log.read_text())
    assert run.alive and not (run.path / "save").exists()
    assert answer("stop", "1") == {"id": run.id, "status": "stopped"}
    with pytest.raises(RequestError, match="stopped; only a live finetune can save"):
        commands.runs(["save", "1"])
    (run.path / "up").unlink()
    assert answer("resume", "1")["status"] in ("starting", "running")
    until((run.path / "up").exists)
    assert answer("stop", "1", "--no-wait")["id"] == run.id
    launch.wait(run, 150)


def test_a_save_request_never_kills_a_process_without_a_handler(store):
    run = store.create("finetune", FinetuneOptions(load="base", train_data="data"), job(SLEEPS))
    launch.start(run)
    until((run.path / "up").exists)
    launch.save_now(run)
    until(lambda: "the training has not begun; nothing to save yet" in run.log.read_text())
    assert run.status == "running"
    other = store.create("prepare", {}, job(SLEEPS))
    with pytest.raises(RequestError, match="a prepare saves no checkpoints; only a finetune does"):
        launch.save_now(other)


def test_delete_asks_says_what_it_frees_and_refuses_a_live_run(store, answer, capsys):
    run = finetune(store, [3.0])
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "weights").write_bytes(b"w" * 3_000_000)
    live = store.create("job", {}, job(SLEEPS))
    launch.start(live)
    with pytest.raises(RequestError, match=r"delete: 0001-finetune would free 3\.\d MB; add --yes to do it"):
        commands.runs(["delete", "1", "--json"])
    with pytest.raises(RequestError, match="running; stop it first: qwen3vl runs stop 2"):
        commands.runs(["delete", "2", "--yes"])
    found = answer("delete", "1", "--yes")
    assert found["id"] == run.id and found["freed_bytes"] > 3_000_000
    assert not run.path.exists() and [r.id for r in store.list()] == [live.id]
    assert os.listdir(store.root) == [live.id]
    with pytest.raises(RequestError, match="no such run"):
        commands.runs(["delete", "1", "--yes"])


def test_a_run_that_is_a_symlink_is_unlinked_and_its_target_kept(store, tmp_path):
    run = finetune(store, [3.0])
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run.path, elsewhere)
    run.path.symlink_to(elsewhere)
    assert launch.delete(run) == 0
    assert not run.path.exists() and (elsewhere / "plan.json").is_file()


def test_a_run_that_cannot_be_deleted_is_a_one_line_error(store, monkeypatch):
    run = finetune(store, [3.0])
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors=False: None if ignore_errors else (_ for _ in ()).throw(
        PermissionError(13, "Permission denied", str(path))))  # fmt: skip
    with pytest.raises(WorkError, match="Permission denied; delete it by hand"):
        launch.delete(run)
    assert RunStore(store.root).list() == []


def test_tensorboard_needs_scalars_and_a_run_without_says_so(store):
    finetune(store)
    with pytest.raises(RequestError, match="no scalars for TensorBoard"):
        commands.runs(["tensorboard", "1"])


def test_votes_are_saved_withdrawn_and_refused_atomically(store, answer, tmp_path):
    run = store.create("compare", {"base": "a", "tuned": ["b"]}, ["true"])
    pictures = [tmp_path / "one.png", tmp_path / "two.png", tmp_path / "other" / "two.png"]
    rows = [{"image": str(picture), "prompt": "What?", "model": model, "text": f"a {model}", "done": True}
            for picture in pictures for model in ("base", "tuned")]  # fmt: skip
    (run.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, other = map(str, pictures)

    def kept():
        return read_votes(run).choices

    found = answer("captions", "1", "--vote", "one.png", "tuned", "--vote", two, "same")
    assert found["votes"] == {"base": 0, "tuned": 1, "same": 1} and kept() == {one: "tuned", two: "same"}
    assert [row.get("vote") for row in found["captions"]] == ["tuned", "same", None]
    for words, line in (
        (["nowhere.png", "tuned"], "--vote nowhere.png: no picture has this name in 0001-compare"),
        (["two.png", "tuned"], "--vote two.png: several pictures have this name"),
        (["one.png", "best"], "--vote one.png best: must be one of base, tuned, same, none"),
    ):
        with pytest.raises(RequestError, match=re.escape(line)):
            commands.runs(["captions", "1", "--vote", other, "base", "--vote", *words])
        assert kept() == {one: "tuned", two: "same"}, "none of them is kept"
    assert answer("captions", "1", "--vote", "one.png", "none")["votes"] == {"base": 0, "tuned": 0, "same": 1}
    assert kept() == {two: "same"}


def test_every_action_of_the_runs_has_its_subcommand():
    help = runs_command.parser().format_help()
    names = "list show logs metrics samples stop save resume clone compare delete tensorboard captions"
    for name in names.split():
        assert re.search(rf"^ +{name}\s", help, re.MULTILINE), name
    assert {a.id.rpartition(".")[2] for a in ACTIONS if a.screen == "runs"} >= {"stop", "resume", "clone", "delete", "tensorboard"}


def test_a_closed_pipe_ends_quietly(store):
    for _ in range(3):
        finetune(store, [3.0])
    program = "import sys\nfrom qwen3vl_core.cli import main\nsys.exit(main(['runs', 'list', '--json']))"
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout.read(1) == "["
    writer.stdout.close()
    assert writer.stderr.read() == "" and writer.wait(150) in (0, 1)
