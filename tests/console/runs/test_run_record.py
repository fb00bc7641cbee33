"""The record of a run is correct, and its command can be run by hand."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

from console.runs import launch, plan_record
from qwen3vl_core.options import ConvertOptions, FinetuneOptions
from qwen3vl_core.run_record import TORCHRUN
from tests.console.runs.jobs import ROOT, job


def test_command_sh_does_what_the_run_does(store, tmp_path, monkeypatch):
    odd = tmp_path / "a 'quoted' $HOME folder"
    odd.mkdir()
    monkeypatch.chdir(odd)
    run = store.create("job", {}, [*job("print(sys.argv[1:], here.name, os.getcwd())"), "two words", "$x;"])
    monkeypatch.undo()
    launch.start(run)
    assert launch.wait(run, 150) == "done"
    by_hand = subprocess.run([run.path / "command.sh"], cwd="/", capture_output=True, text=True, timeout=150)
    assert by_hand.returncode == 0 and by_hand.stderr == ""
    assert by_hand.stdout == run.log.read_text() == f"{['two words', '$x;']} {run.id} {odd}\n"


def test_the_console_s_own_commands_are_found_from_any_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "console").mkdir()  # a folder of the user's, of the package's name
    (tmp_path / "console" / "__init__.py").write_text("raise SystemExit('not this one')")
    run = store.create("job", {}, job("import qwen3vl_core.errors; print(qwen3vl_core.errors.EXIT_REQUEST)"))
    launch.start(run)
    assert launch.wait(run, 150) == "done"
    assert run.log.read_text() == "2\n"


def test_versions_are_the_installed_ones_and_no_heavy_import_is_needed():
    found = plan_record.versions()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["python"] == sys.version.split()[0]
    program = "import sys, json\nfrom console.runs.plan_record import versions\nprint(json.dumps([versions(), 'torch' in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=150).stdout
    assert json.loads(out) == [found, False]


def test_the_commit_is_that_of_the_source_tree(monkeypatch, tmp_path):
    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(plan_record, "source_root", lambda: tmp_path)
    assert plan_record.git_commit() is None
    git("init", "-q")
    assert plan_record.git_commit() is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert plan_record.git_commit() == commit
    (tmp_path / "a").write_text("2")
    assert plan_record.git_commit() == commit + "-dirty"


def test_the_command_of_a_kind_is_the_one_a_user_types(tmp_path):
    words = plan_record.child_command("convert", ConvertOptions(source="a", target="b", verify=True), tmp_path)
    assert words == [sys.executable, "-m", "qwen3vl_core.cli", "convert", "a", "b", "--verify"]


def test_a_resumed_torchrun_gets_a_port_that_is_free_now(store):
    options = FinetuneOptions(load="l", train_data="d", nproc=2)
    run = store.create("finetune", options)
    assert TORCHRUN in run.command
    port = run.command.index("--master-port") + 1
    # the same words for a program that only says them, and fails the first time
    words = [*job("print(sys.argv[1:]); sys.exit((here / 'ok').exists() - 1)"), *run.command[1:]]
    run = store.create("finetune", options, words)
    launch.start(run)
    assert launch.wait(run, 150) == "failed"
    (run.path / "ok").touch()
    launch.resume(run)
    assert launch.wait(run, 150) == "done"
    first, _, second = run.log.read_text().splitlines()
    first, second = (line.strip("[]").replace("'", "").split(", ") for line in (first, second))
    at = port - 1
    assert first[:at] == second[:at] and first[at + 1 :] == second[at + 1 :]
    assert second[at] != first[at] and second[at] in (run.path / "command.sh").read_text()
