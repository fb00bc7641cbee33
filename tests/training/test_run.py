"""A whole run: `python -m qwen3vl_core.training`, alone and under torchrun, on drawn scenes and the demo's model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3vl_core.cli import main
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.layout.command import training_command
from qwen3vl_core.options import FinetuneOptions
from tests.training.runs import losses, plan, rows, scenes

STEPS = 6
ENVIRONMENT = os.environ | {"QWEN3VL_PROGRESS": "lines", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return scenes(tmp_path_factory.mktemp("scenes"))


def train(run_dir: Path, options: FinetuneOptions) -> subprocess.CompletedProcess:
    return subprocess.run(training_command(options, run_dir), capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole")
    done = train(run_dir, plan(run_dir, data, eval_interval=3, eval_iters=1, save_interval=4))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"step {STEPS}/{STEPS}  loss" in done.stdout
    return run_dir


def test_the_record_of_a_run_is_complete(whole):
    train_rows = rows(whole)
    assert [r["step"] for r in train_rows] == list(range(1, STEPS + 1))
    assert all(r["data_seconds"] + r["forward_backward_seconds"] + r["optimizer_seconds"] <= r["step_seconds"] + 0.001 for r in train_rows)
    assert all(r["tflops"] > 0 and 0.5 < r["packing_efficiency"] <= 1 and "mfu" not in r for r in train_rows)
    assert train_rows[4]["checkpoint_seconds"] > 0 == train_rows[3]["checkpoint_seconds"]
    assert all(r["tokens"] > 20 and r["grad_norm"] > 0 and r["tokens_per_second"] > 0 and r["samples"] == 4 for r in train_rows)
    assert [(r["step"], r["loss"] > 0) for r in rows(whole, "eval")] == [(3, True), (6, True)]
    assert [r["event"] for r in rows(whole, "event")] == ["start", "save", "save", "done"]
    assert (whole / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == f"{STEPS}\n"
    assert sorted(p.name for p in (whole / "checkpoints").glob("iter_*")) == ["iter_0000004", "iter_0000006"]


def test_tensorboard_mirrors_the_record(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert [s.value for s in events.Scalars("lm loss")] == pytest.approx(losses(whole))
    assert {"learning-rate", "grad-norm", "lm loss eval"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("layout", ["data parallel", "tensor parallel"])
def test_two_processes_under_torchrun_give_the_same_losses(whole, data, tmp_path, layout):
    changes = {"nproc": 2, "tp": 2} if layout == "tensor parallel" else {"nproc": 2, "distributed_optimizer": True, "save_interval": 3}
    done = train(tmp_path, plan(tmp_path, data, **changes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)
    if layout == "data parallel":
        # back to step 3, and on with one process and the plain optimizer
        (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3\n")
        done = train(tmp_path, plan(tmp_path, data))
        assert done.returncode == 0, done.stdout + done.stderr
        assert losses(tmp_path)[STEPS:] == pytest.approx(losses(whole)[3:], rel=1e-5)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bitwise(whole, data, tmp_path):
    options = plan(tmp_path, data)
    with subprocess.Popen(training_command(options, tmp_path), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        for line in process.stdout:
            if f"step 2/{STEPS}" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    stopped = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert stopped["event"] == "stop" and 2 <= stopped["step"] < STEPS
    done = train(tmp_path, options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resume" in [r["event"] for r in rows(tmp_path, "event")]
    assert losses(tmp_path) == losses(whole)


def test_a_checkpoint_can_be_asked_for_while_the_run_goes_on(data, tmp_path):
    options = plan(tmp_path, data, train_iters=8)
    with subprocess.Popen(training_command(options, tmp_path), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        for line in process.stdout:
            if "step 1/8" in line:
                process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0
    saves = [r["step"] for r in rows(tmp_path, "event") if r["event"] == "save"]
    assert len(saves) == 2 and saves[0] < 8 and saves[1] == 8


def test_captions_of_fixed_pictures_are_written_while_training_and_change_nothing(whole, data, tmp_path):
    pictures = [str(data.parent / f"{number}.png") for number in (0, 7)]
    done = train(tmp_path, plan(tmp_path, data, sample_interval=4, sample_images=pictures, sample_prompt="What is this?"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["image"], r["model"], r["prompt"], r["done"]) for r in found] == [
        (4, picture, "tuned", "What is this?", True) for picture in pictures
    ]
    assert all(len(r["text"]) > 10 and r["seconds"] > 0 for r in found)
    assert losses(tmp_path) == losses(whole)


def test_a_picture_for_captions_that_is_none_is_refused(data, tmp_path):
    wrong = tmp_path / "notes.png"
    wrong.write_text("not a picture")
    done = train(tmp_path, plan(tmp_path, data, sample_interval=4, sample_images=[str(wrong)]))
    assert done.returncode == 2 and f"--sample-images {wrong}" in done.stderr and done.stderr.count("\n") == 1


def test_samples_that_are_left_out_are_counted_and_named(data, tmp_path):
    """The long answer does not fit, and is more than the run allows."""
    done = train(tmp_path, plan(tmp_path, data, seq_length=80, train_iters=40, max_skip_share=0.001))
    assert done.returncode == 1
    assert "more than --max-skip-share 0.001; skipped.jsonl" in done.stderr and done.stderr.count("\n") == 1
    assert json.loads((tmp_path / "skipped.jsonl").read_text().splitlines()[0])["reason"] == "too_long"
    assert rows(tmp_path)[-1]["skipped"] > 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"load": "nowhere"}, "--load nowhere: no such folder"),
        ({"train_data": "nowhere"}, "nowhere"),
        ({"tp": 3}, "--tp 3: 8 attention heads / 3 = 2.67 is not whole; use --tp 2"),
        ({"pp": 4}, "--pp 4: 6 layers / 4 = 1.50 is not whole"),
        ({"pp": 3}, "the 3 deepstack layers must all be on it; use --pp 2"),
        ({"global_batch_size": 5}, "--global-batch-size 5: must be a multiple of micro batch x data parallel = 2 x 1 = 2; use 4 or 6"),
        ({"size": "8B"}, "--size 8B"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_plan_that_cannot_run_is_refused_before_it_starts(data, tmp_path, changes, line, capsys):
    words = ["finetune", "--load", str(BASE), "--train-data", str(data), "--micro-batch-size", "2", "--runs", str(tmp_path / "runs")]
    for name, value in changes.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and line in err
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_went_wrong_after_it_was_written_is_one_line(tmp_path):
    (tmp_path / "plan.json").write_text('{"kind": "finetune"}')
    command = [sys.executable, "-m", "qwen3vl_core.training", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert "not a plan of a run" in done.stderr and done.stderr.count("\n") == 1
