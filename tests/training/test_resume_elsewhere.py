"""A run resumes in another layout, with more steps, or from a bare checkpoint; anything else is refused with an explanation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from console.runs import plan_record
from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.resuming import completed
from qwen3vl_core.options import FinetuneOptions
from tests.training import runs
from tests.training.runs import losses, plan, rows, small_model

STOPPED_AT = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return runs.scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"dense": small_model(folder / "dense"), "experts": small_model(folder / "experts", experts=4)}


@pytest.fixture(scope="module")
def halves(data, models, tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Of each kind, of one process: (a run of six steps, the same one stopped after three)."""
    made = {}
    for kind, model in models.items():
        folder = tmp_path_factory.mktemp(kind)
        for name, moment in (("whole", None), ("stopped", f"iter_000000{STOPPED_AT - 1}")):
            plan(folder / name, data, load=str(model), save_interval=2)
            assert runs.train(folder / name, moment, signal.SIGTERM)[0] == 0, runs.log(folder / name)
        assert rows(folder / "stopped")[-1]["step"] == STOPPED_AT
        made[kind] = folder / "whole", folder / "stopped"
    return made


LAYOUTS = {
    "dense TP2": ("dense", dict(tp=2, sequence_parallel=True)),
    "dense PP2": ("dense", dict(pp=2)),
    "dense DP2": ("dense", dict(distributed_optimizer=True)),
    "experts EP2": ("experts", dict(ep=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_resumes_in_another_layout_and_back(halves, data, tmp_path, name):
    kind, layout = LAYOUTS[name]
    whole, stopped = halves[kind]
    expected = losses(whole)
    plan(tmp_path / "there", data, load="", resume=str(stopped), save_interval=2, **layout)
    assert runs.train(tmp_path / "there", "iter_0000004", signal.SIGTERM, world=2)[0] == 0, runs.log(tmp_path / "there")
    there = losses(tmp_path / "there")
    assert there == pytest.approx(expected[STOPPED_AT : STOPPED_AT + len(there)], abs=1e-6) and len(there) == 2
    text = runs.events(tmp_path / "there", "resume")[0]["text"]
    assert f"resuming after step {STOPPED_AT} of 6" in text and "random numbers are seeded again" in text
    # one process resumes from a checkpoint of two
    plan(tmp_path / "back", data, load="", resume=str(tmp_path / "there" / "checkpoints"))
    assert runs.train(tmp_path / "back")[0] == 0, runs.log(tmp_path / "back")
    assert losses(tmp_path / "back") == pytest.approx(expected[5:], abs=1e-6)


@pytest.mark.slow
def test_in_the_same_layout_a_resume_is_bitwise_an_uninterrupted_run(halves, data, tmp_path):
    whole, stopped = halves["dense"]
    plan(tmp_path / "then", data, load="", resume=str(stopped / "checkpoints" / f"iter_000000{STOPPED_AT}"))
    assert runs.train(tmp_path / "then")[0] == 0, runs.log(tmp_path / "then")
    assert losses(tmp_path / "then") == losses(whole)[STOPPED_AT:]
    assert "random numbers" not in runs.events(tmp_path / "then", "resume")[0]["text"]


@pytest.mark.slow
def test_runs_resume_extends_a_done_run_in_another_layout(data, models, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "QWEN3VL_RUNS": str(tmp_path / "runs")}

    def cli(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "qwen3vl_core.cli", *words], capture_output=True, text=True, env=environment)

    common = "--precision fp32 --micro-batch-size 2 --global-batch-size 4 --seq-length 256 --lr 1e-4 --lr-warmup-iters 1 --foreground"
    begun = cli("finetune", "--load", str(models["dense"]), "--train-data", str(data), "--train-iters", "2", *common.split())
    assert begun.returncode == 0, begun.stdout + begun.stderr
    assert cli("runs", "resume", "1").returncode == 2
    resumed = cli("runs", "resume", "1", "--train-iters", "3", "--nproc", "2", "--tp", "2", "--foreground")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    (run,) = (tmp_path / "runs").glob("0001*")
    assert [row["step"] for row in rows(run)] == [1, 2, 3]
    record = json.loads((run / "plan.json").read_text())
    assert record["changed"][0]["options"] == {"train_iters": [2, 3], "nproc": [0, 2], "tp": [1, 2]}
    assert record["options"]["tp"] == 2 and "--nproc-per-node 2" in " ".join(record["command"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lora_rank": 4}, "--lora-rank 4: the run has 0, and its checkpoint has only the state"),
        ({"freeze": "vision"}, "--freeze vision: the run has ''"),
        ({"seed": 7}, "--seed 7: the run has 1234, which the order of its samples depends on"),
        ({"global_batch_size": 8}, "--global-batch-size 8: the run has 4"),
        ({"train_iters": 3}, "--train-iters 3: the last checkpoint is of step 3"),
        ({"load": "/other"}, "a run resumes from its own checkpoint"),
        ({"lr": "nan"}, "--lr"),
    ],
)
def test_a_resume_with_options_that_the_checkpoint_has_no_state_for_is_refused(halves, changes, line):
    _, stopped = halves["dense"]
    record = json.loads((stopped / "plan.json").read_text())
    before = (stopped / "plan.json").read_bytes()
    with pytest.raises(RequestError) as error:
        plan_record.change_options(stopped, record, changes)
    assert line in str(error.value), str(error.value)
    assert (stopped / "plan.json").read_bytes() == before


def test_a_resume_cannot_add_or_remove_adapters(halves, tmp_path):
    _, stopped = halves["dense"]
    with pytest.raises(RequestError, match="adapters cannot be added to a run"):
        completed(FinetuneOptions(load="", train_data="x", resume=str(stopped), lora_rank=4))
    data = stopped / "checkpoints" / f"iter_000000{STOPPED_AT}"
    other = tmp_path / data.name
    other.mkdir()
    (other / ".metadata").write_bytes((data / ".metadata").read_bytes())
    extra = json.loads((data / "extra.json").read_text())
    (other / "extra.json").write_text(json.dumps(extra | {"adapters": {"rank": 4, "alpha": 8.0, "base": "/base"}}))
    with pytest.raises(RequestError, match=r"has adapters, which cannot be removed from a run; resume with --lora-rank 4 --lora-alpha 8"):
        completed(FinetuneOptions(load="", train_data="x", resume=str(other)))
    assert completed(FinetuneOptions(load="", train_data="x", resume=str(other), lora_rank=4)).load == "/base"


def test_other_checkpoints_than_those_of_a_run_are_refused(models, capsys):
    assert main(["finetune", "--resume", str(models["dense"]), "--train-data", "/nowhere"]) == 2
    assert "not a checkpoint that a run saved" in capsys.readouterr().err
