"""Runs are created atomically with a unique number, and found by number, id or name."""

from __future__ import annotations

import json
import threading

import pytest

from console.runs.store import Run, RunStore
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import CompareOptions, FinetuneOptions, PrepareOptions


def test_a_new_run_holds_its_plan_its_command_and_its_state(store):
    run = store.create("finetune", FinetuneOptions(load="base", train_data="data", name="Small words, please", nproc=1))
    assert run.id == "0001-small-words-please" and run.name == "Small words, please" and run.number == 1
    assert sorted(p.name for p in run.path.iterdir()) == ["command.sh", "plan.json", "state.json"]
    plan = json.loads((run.path / "plan.json").read_text())
    assert set(plan) == {"v", "kind", "name", "options", "command", "cwd", "versions", "git", "host", "cpus", "gpus", "created", "changed"}
    assert plan["v"] == 1 and run.kind == "finetune" and run.options["train_iters"] == 100
    assert run.command[1:] == ["-m", "qwen3vl_core.training", str(run.path)]
    state = json.loads((run.path / "state.json").read_text())
    assert {"status", "supervisor_pid", "pid", "host", "boot_id", "exit_code", "started", "ended"} <= set(state)
    assert (run.status, run.alive, run.exit_code, run.started, run.ended) == ("starting", True, None, None, None)


def test_paths_become_absolute(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = store.create("compare", CompareOptions(base="a", tuned="/b", images=["x.png", "~/y"], html="out.html"))
    assert run.options["base"] == str(tmp_path / "a") and run.options["tuned"] == ["/b"]
    assert run.options["images"][0] == str(tmp_path / "x.png") and run.options["images"][1].startswith("/")
    assert run.options["html"] == str(tmp_path / "out.html") and run.options["json"] is None
    assert str(tmp_path / "x.png") in run.command and run.plan["cwd"] == str(tmp_path)


def test_the_newest_run_comes_first_and_other_folders_are_ignored(store):
    for name in ("a", "b", "c"):
        store.create(name, {}, ["true"])
    (store.root / "0009-half").mkdir()
    (store.root / "notes.txt").touch()
    (store.root / ".0010-claimed").mkdir()
    assert [run.id for run in store.list()] == ["0003-c", "0002-b", "0001-a"]
    assert store.create("d", {}, ["true"]).number == 11
    assert RunStore(store.root / "not there").list() == []


def test_a_run_is_found_by_number_id_beginning_and_name(store):
    first = store.create("prepare", PrepareOptions(source="x.json", to="data"))
    second = store.create("finetune", FinetuneOptions(load="l", train_data="d", name="long try", nproc=1))
    for ref in (2, "2", "0002", "0002-long-try", "0002-lo", "long try"):
        assert store.get(ref) == second
    assert store.get("prepare") == first
    with pytest.raises(RequestError, match=r"run 7: no such run in .*; choose from 0002-long-try, 0001-prepare"):
        store.get(7)
    with pytest.raises(RequestError, match=r"run 000: 2 runs match, 0002-long-try, 0001-prepare; give the number"):
        store.get("000")
    with pytest.raises(RequestError, match="no such run"):
        store.get("../runs/0001-prepare")
    with pytest.raises(RequestError, match="there are none; qwen3vl finetune starts one"):
        RunStore(store.root / "new").get("")


def test_runs_created_concurrently_never_share_a_number(store):
    made, failed = [], []

    def make(name):
        try:
            made.extend(store.create(name, {}, ["true"]) for _ in range(5))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=make, args=(f"t{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(run.number for run in made) == list(range(1, 31))
    assert sorted(store.list(), key=lambda r: r.number) == sorted(made, key=lambda r: r.number)


def test_a_run_that_cannot_be_created_leaves_nothing(store, tmp_path):
    with pytest.raises(RequestError, match="--nproc 3: must be a multiple of tp x pp"):
        store.create("finetune", FinetuneOptions(load="l", train_data="d", nproc=3, tp=2))
    assert list(store.root.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="is a file; choose a folder"):
        RunStore(tmp_path / "file")
    with pytest.raises(RequestError, match="choose a folder that you can write to"):
        RunStore(tmp_path / "file" / "below").create("a", {}, ["true"])


def test_a_full_disk_is_a_one_line_error_and_leaves_nothing(store, monkeypatch):
    full = open("/dev/full", "w")  # noqa: SIM115
    real = open
    # every new state is written to a full disk; everything else is real
    monkeypatch.setattr("builtins.open", lambda file, *a, **k: full if str(file).endswith("state.json.tmp") else real(file, *a, **k))
    with pytest.raises(WorkError, match="No space left on device; the run was not created; free some space"):
        store.create("a", {}, ["true"])
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"kind": 5, "options": "x", "command": 3, "name": null, "created": true}'])
def test_a_damaged_record_is_still_listed_and_never_raises(store, damage):
    run = store.create("a", {}, ["true"])
    for name in ("plan.json", "state.json"):
        (run.path / name).write_text(damage)
    assert store.list() == [run]
    seen = Run(run.path)
    assert (seen.kind, seen.name, seen.options, seen.command, seen.created) == ("unknown", "a", {}, [], None)
    assert (seen.status, seen.exit_code, seen.started, seen.error) == ("lost", None, None, None)
