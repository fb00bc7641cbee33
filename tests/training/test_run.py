"""A whole run on drawn scenes and the demo's model: its record, its signals, its captions, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3vl_core import log_lines
from qwen3vl_core.cli import main
from qwen3vl_core.demo.workspace import BASE
from qwen3vl_core.layout.torchrun_command import training_command
from qwen3vl_core.run_metrics import METRICS
from qwen3vl_core.run_record import EVENT_FIELDS, EVENTS, ROW_FIELDS, SAMPLE_FIELDS
from qwen3vl_core.training.throughput import Gpu
from tests.ranks import run_ranks
from tests.training import runs
from tests.training.runs import losses, plan, rows, scenes

STEPS = 6
ENVIRONMENT = os.environ | {"QWEN3VL_PROGRESS": "lines", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """An uninterrupted run with evaluations, captions and checkpoints."""
    run_dir = tmp_path_factory.mktemp("whole")
    pictures = [str(data.parent / f"{number}.png") for number in (0, 7)]
    values = dict(
        eval_interval=3, eval_iters=1, save_interval=4, sample_interval=4, sample_images=pictures, sample_prompt="What is this?",
        sample_tokens=24,
    )  # fmt: skip
    plan(run_dir, data, **values)
    assert runs.train(run_dir)[0] == 0, runs.log(run_dir)
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


def test_metrics_rows_have_the_declared_fields(whole):
    for kind, declared in (("train", METRICS), ("eval", METRICS), ("event", EVENT_FIELDS)):
        assert not {key for row in rows(whole, kind) for key in row} - {*ROW_FIELDS, *declared}
    assert {row["event"] for row in rows(whole, "event")} <= EVENTS.keys()
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert samples and all(row.keys() <= SAMPLE_FIELDS.keys() for row in samples)


def test_the_log_shows_what_is_trained_and_the_progress(whole):
    lines = runs.log(whole).splitlines()
    assert "trained: " in lines[1] and "language" in "".join(lines[2:6])
    assert any(f"step {STEPS}/{STEPS}  loss" in line and "tokens/s" in line and "ETA" in line for line in lines)


def test_tensorboard_mirrors_the_record(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert [s.value for s in events.Scalars("lm loss")] == pytest.approx(losses(whole))
    assert [s.value for s in events.Scalars("lm loss validation")] == pytest.approx([r["loss"] for r in rows(whole, "eval")])
    assert {"learning-rate", "grad-norm", "batch-size", "iteration-time", "throughput"} <= set(events.Tags()["scalars"])


def test_captions_of_fixed_pictures_are_written_during_training(whole, data):
    found = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["image"], r["model"], r["prompt"], r["done"]) for r in found] == [
        (4, str(data.parent / f"{number}.png"), "tuned", "What is this?", True) for number in (0, 7)
    ]
    assert all(len(r["text"]) > 10 and r["seconds"] > 0 for r in found)


def test_two_processes_stop_and_resume_with_the_losses_of_one(whole, data, tmp_path):
    """The command itself; captions and evaluation of the run that it is compared with have not changed the losses."""
    options = plan(tmp_path, data, nproc=2, distributed_optimizer=True)
    with subprocess.Popen(training_command(options, tmp_path), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        for line in process.stdout:
            if f"step 2/{STEPS}" in line:
                # one rank is told, as a console tells them; all stop at the same step
                os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1]), signal.SIGTERM)
        assert process.wait(60) == 0
    stop = runs.events(tmp_path, "stop")
    assert 2 <= stop[0]["step"] < STEPS
    plan(tmp_path, data)
    assert runs.train(tmp_path)[0] == 0, runs.log(tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)


def test_a_checkpoint_can_be_requested_during_a_run(whole, data, tmp_path):
    plan(tmp_path, data, save_interval=2, async_save=True)
    assert runs.train(tmp_path, "iter_0000002", signal.SIGUSR1)[0] == 0
    assert [e["step"] for e in runs.events(tmp_path, "save")] == [2, 3, 4, 6]
    assert losses(tmp_path) == losses(whole), "bitwise"


def test_a_lora_run_is_stopped_resumed_and_read_by_every_command(data, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    lora = {"lora_rank": 4, "lr": 1e-3, "precision": "bf16", "train_iters": 4}
    plan(other, data, **lora)
    assert runs.train(other)[0] == 0, runs.log(other)
    plan(run, data, save_interval=2, **lora)
    assert runs.train(run, "iter_0000002", signal.SIGTERM)[0] == 0
    assert runs.events(run, "stop")[0]["step"] == 3
    assert runs.train(run)[0] == 0, runs.log(run)
    assert losses(run) == losses(other), "bitwise"
    assert "parameters of adapters (LoRA, rank 4, alpha 4)" in runs.log(run)
    weights = BASE / "model.safetensors"
    assert sum(p.stat().st_size for p in (run / "checkpoints" / "iter_0000004").iterdir()) < weights.stat().st_size
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "LoRA, rank 4" in out and f"base model {BASE}" in out
    assert main(["convert", str(run), str(tmp_path / "merged"), "--dtype", "fp32"]) == 0
    assert main(["convert", str(run), str(tmp_path / "peft"), "--adapter"]) == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 4
    picture = str(data.parent / "3.png")
    table = tmp_path / "captions.json"
    # the run itself and its merged export write the same
    sides = ["--base", str(tmp_path / "merged"), "--tuned", str(run)]
    assert main(["compare", *sides, "--images", picture, "--max-new-tokens", "24", "--json", str(table)]) == 0
    (row,) = json.loads(table.read_text())["captions"]
    assert row["base"] == row["tuned"] and len(row["tuned"]) > 10
    # another run may start from its checkpoint
    then = tmp_path / "then"
    plan(then, data, load=str(run), train_iters=1, lr_warmup_iters=0, global_batch_size=2)
    assert runs.train(then)[0] == 0, runs.log(then)


def tiny_copy(folder: Path) -> Path:
    """The demo's model with other weights."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(BASE, folder)
    tensors = {name: tensor * 0.5 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_base_model_of_a_lora_run_must_exist_and_be_unchanged(data, tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(BASE, base)
    plan(run, data, lora_rank=2, load=str(base), train_iters=2)
    assert runs.train(run)[0] == 0, runs.log(run)
    base.rename(tmp_path / "moved")
    assert main(["convert", str(run), str(tmp_path / "a")]) == 2
    assert f"is missing from {base}: restore it there, or name it with --base of convert, inspect or compare" in capsys.readouterr().err
    assert main(["convert", str(run), str(tmp_path / "a"), "--base", str(tmp_path / "moved")]) == 0
    # inspect and compare take it, too, compare as its first model
    assert main(["inspect", str(run)]) == 1 and main(["inspect", str(run), "--base", str(tmp_path / "moved")]) == 0
    words = ["--images", str(data.parent / "3.png"), "--max-new-tokens", "4", "--json", str(tmp_path / "captions.json")]
    capsys.readouterr()
    assert main(["compare", "--base", str(tmp_path / "moved"), "--tuned", str(run), *words]) == 0
    other = tiny_copy(tmp_path / "other")
    assert main(["compare", "--base", str(other), "--tuned", str(run), *words]) == 2
    assert "is not the model that they were trained on" in capsys.readouterr().err
    shutil.copytree(BASE, base)
    tensors = {name: tensor * 1.5 for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert main(["convert", str(run), str(tmp_path / "b")]) == 2
    assert "is not the model that they were trained on" in capsys.readouterr().err
    plan(run, data, lora_rank=2, load=str(base), train_iters=4)
    assert runs.train(run)[0] == 2
    assert runs.log(run).splitlines()[-1].endswith(f"not the weights that the run started from; the adapters belong to {base}")


@pytest.fixture(scope="module")
def sent(data, tmp_path_factory) -> Path:
    """A run whose curves go to both services, offline."""
    pytest.importorskip("wandb")
    pytest.importorskip("swanlab")
    run_dir = tmp_path_factory.mktemp("sent")
    plan(run_dir, data, train_iters=2, eval_interval=1, eval_iters=1, wandb="demo", swanlab="demo")
    assert runs.train(run_dir, WANDB_MODE="offline", SWANLAB_MODE="offline")[0] == 0, runs.log(run_dir)
    return run_dir


def test_wandb_and_swanlab_get_the_curves(sent):
    """Their files hold the name of each curve and its very numbers, as JSON and as doubles."""
    (theirs,), (other,) = (sent / "wandb").glob("offline-run-*/run-*.wandb"), (sent / "swanlab").rglob("*.swanlab")
    values = [r["loss"] for r in rows(sent) + rows(sent, "eval")]
    assert len(values) == 4
    for file, written in ((theirs, lambda value: json.dumps(value).encode()), (other, lambda value: struct.pack("<d", value))):
        held = file.read_bytes()
        assert b"lm loss" in held and b"lm loss validation" in held and b"grad-norm" in held
        assert all(written(value) in held for value in values), file
    assert f"Weights & Biases: demo/{sent.name}, offline" in runs.log(sent) and f"SwanLab: demo/{sent.name}" in runs.log(sent)


def services() -> list[str]:
    return [name for name in ("wandb", "swanlab") if name in sys.modules]


def test_wandb_and_swanlab_are_imported_only_if_used():
    """Though Megatron would: it is an eighth of the time that a process takes to start."""
    assert run_ranks(1, services) == [[]]


@pytest.mark.parametrize("package", ["wandb", "swanlab"])
def test_a_missing_wandb_or_swanlab_is_a_one_line_error(data, tmp_path, capsys, monkeypatch, package):

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest))
    words = ["finetune", "--load", str(BASE), "--train-data", str(data), f"--{package}", "demo", "--runs", str(tmp_path / "runs")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"is not installed; pip install {package}, or leave --{package} out" in err


def test_an_unknown_gpu_is_reported_and_does_not_prevent_training():
    """The real NVML: without a driver it says so; with one it does not know this GPU."""
    pytest.importorskip("pynvml")
    gpu = Gpu()
    assert gpu.open("GPU-00000000-0000-0000-0000-000000000000") is None
    assert gpu.problem.startswith("utilisation and power are not recorded: ") and len(gpu.problem) > 45
    assert gpu.figures() == {} or gpu.peak_flops


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({"sample_interval": 4, "sample_images": ["notes.png"]}, 2, "--sample-images notes.png"),
        # the long answer does not fit, and is more than the run allows
        (
            {"seq_length": 80, "train_iters": 40, "max_skip_share": 0.001, "micro_batch_size": 8, "global_batch_size": 16}, 1,
            "more than --max-skip-share 0.001; use a longer --seq-length than 80 ",
        ),
    ],
    ids=["no picture", "too many left out"],
)  # fmt: skip
def test_a_run_that_cannot_continue_ends_with_a_one_line_error(data, tmp_path, monkeypatch, changes, code, line):
    changes = {k: [str(tmp_path / v[0])] if k == "sample_images" else v for k, v in changes.items()}
    (tmp_path / "notes.png").write_text("not a picture")
    run = tmp_path / "run"
    plan(run, data, **changes)
    assert runs.train(run)[0] == code
    last = runs.log(run).splitlines()[-1]
    assert log_lines.read(last).tag == ("work" if code == 1 else "not-a-picture")
    assert line.replace("notes.png", str(tmp_path / "notes.png")) in last
    if code == 1:
        assert "samples could not be used (longer than --seq-length: " in last and "or a higher --max-skip-share to continue" in last
        assert json.loads((run / "skipped.jsonl").read_text().splitlines()[0])["reason"] == "too_long"
        assert rows(run)[-1]["skipped"] > 0
        assert "left out 1" in runs.log(run) or "left out 2" in runs.log(run)


def test_skipped_samples_are_reported_at_the_end_and_for_validation(data, tmp_path):
    run = tmp_path / "run"
    plan(
        run, data, seq_length=80, train_iters=2, max_skip_share=1.0, eval_interval=1, eval_iters=2, micro_batch_size=8, global_batch_size=16
    )
    assert runs.train(run)[0] == 0
    log = runs.log(run)
    assert "samples left out (longer than --seq-length: " in log.split("done: 2 steps")[1]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"load": "nowhere"}, "--load nowhere: no such folder"),
        ({"train_data": "nowhere"}, "nowhere"),
        ({"tp": 3}, "--tp 3: 8 attention heads / 3 = 2.67 is not a whole number; use 2"),
        ({"pp": 4}, "--pp 4: 6 layers / 4 = 1.50 is not a whole number"),
        ({"pp": 3}, "the 3 deepstack layers must all be on it; use 2"),
        ({"global_batch_size": 5}, "--global-batch-size 5: must be a multiple of micro batch x data parallel = 2 x 1 = 2; use 4 or 6"),
        ({"size": "8B"}, "--size 8B"),
        ({"lora_alpha": 8}, "--lora-alpha 8: needs --lora-rank; use --lora-rank 16, or leave --lora-alpha out"),
        (
            {"lora_rank": 8, "lora_targets": "router"},
            "--lora-targets router: router is not a layer that can have an adapter; choose",
        ),
        ({"lora_rank": 8, "freeze": "language"}, "no part is left that can have an adapter; leave it out, or add --lora-vision"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_a_plan_that_cannot_run_is_refused_before_it_starts(data, tmp_path, changes, line, capsys):
    words = ["finetune", "--load", str(BASE), "--train-data", str(data), "--micro-batch-size", "2", "--runs", str(tmp_path / "runs")]
    for name, value in changes.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and line in err
    assert not (tmp_path / "runs").exists()


def test_a_plan_broken_after_it_was_written_is_a_one_line_error(tmp_path):
    (tmp_path / "plan.json").write_text('{"kind": "finetune"}')
    command = [sys.executable, "-m", "qwen3vl_core.training", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert "not a plan of a run" in done.stderr and done.stderr.count("\n") == 1
