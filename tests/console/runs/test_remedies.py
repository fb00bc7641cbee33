"""The change that gets a failed run to work: by cause, with the memory by the planner, and its command."""

from __future__ import annotations

import json

import pytest

from console.runs.diagnosis import diagnose
from console.runs.remedies import command_words, remedy
from console.runs.store import RunStore
from qwen3vl_core.cli import main
from qwen3vl_core.options import FinetuneOptions
from tests.console.runs.test_diagnosis import LINES

SKIPPED = (
    "qwen3vl[work]: step 9: 24 of 200 samples could not be used (20 too_long, 4 missing), more than --max-skip-share 0.05; use a longer "
    "--seq-length than 2048"
)


@pytest.fixture
def failed(tmp_path):
    """Makes failed finetunes of the 2B model, whose log ends in a line."""
    store = RunStore(tmp_path / "runs")

    def make(line: str, checkpoint: int = 0, processes: int = 8, **options):
        values = {"size": "2B", "micro_batch_size": 16, "global_batch_size": 128, "distributed_optimizer": True} | options
        declared = FinetuneOptions(load=str(tmp_path / "moved"), train_data="data", train_iters=200, **values)
        words = ["torchrun", "--nnodes", "1", "--nproc-per-node", str(processes)]
        run = store.create("finetune", declared, words)
        run.log.write_text(f"step 1/200\n{line}\n")
        (run.path / "state.json").write_text(json.dumps({"status": "failed", "exit_code": 1, "host": "elsewhere"}))
        if checkpoint:
            (run.path / "checkpoints" / f"iter_{checkpoint:07d}").mkdir(parents=True)
        return run

    return make


def found(run):
    return remedy(run, diagnose(run))


def test_out_of_memory_halves_the_micro_batch_until_it_fits_by_the_planner(failed):
    run = failed(LINES["gpu_memory"])
    fix = found(run)
    before, after, total = fix.memory
    assert set(fix.changes) == {"micro_batch_size"} and fix.changes["micro_batch_size"] in (8, 4, 2) and total == 79
    assert after < before * 0.9 and after <= total and fix.resumes is None
    assert fix.headline.startswith(f"--micro-batch-size 16 → {fix.changes['micro_batch_size']}: the same steps in smaller parts, ")
    assert f"{before:.1f} → {after:.1f} of 79 GiB a GPU" in fix.headline
    assert command_words(run, fix) == ["clone", "1", "--set", f"micro_batch_size={fix.changes['micro_batch_size']}"]


def test_a_run_with_a_checkpoint_gets_the_change_with_which_it_can_resume(failed):
    fix = found(run := failed(LINES["gpu_memory"], checkpoint=100, micro_batch_size=8))
    assert fix.changes == {"recompute": "full"} and fix.resumes == 100 and fix.memory[1] < fix.memory[0]
    assert command_words(run, fix) == ["resume", "1", "--recompute", "full"]
    smallest = found(failed(LINES["gpu_memory"], size="32B", micro_batch_size=1, processes=1, global_batch_size=8))
    assert smallest is None or smallest.memory[1] < smallest.memory[0], "one that is too large for any change says so in numbers"


@pytest.mark.parametrize(
    ("cause", "options", "changes", "resumes"),
    [
        ("port", {}, {}, 100), ("nan", {"lr": 1e-4}, {"lr": 5e-5, "lr_warmup_iters": 10}, 100),
        ("nan", {"precision": "fp16"}, {"precision": "bf16"}, 100), ("disk", {}, {"keep": 2}, 100), ("disk", {"keep": 1}, {}, 100),
        ("shared_memory", {}, {"num_workers": 0}, 100), ("host_memory", {"async_save": True}, {"async_save": False}, 100),
        ("nccl_timeout", {}, {"distributed_timeout_minutes": 30.0}, 100), ("nccl", {}, {"max_restarts": 3}, 100),
    ],
)  # fmt: skip
def test_each_cause_has_its_change_and_resumes_with_it(failed, cause, options, changes, resumes):
    run = failed(LINES[cause], checkpoint=100, **options)
    fix = found(run)
    assert dict(fix.changes) == changes and fix.resumes == resumes and fix.headline
    assert command_words(run, fix)[:2] == ["resume", "1"]
    if changes:
        assert found(failed(LINES[cause], **options)).resumes is None, "without a checkpoint a new run is started"


def test_unusable_samples_get_longer_rows_or_are_left_out(failed):
    run = failed(SKIPPED, checkpoint=100)
    assert found(run).changes == {"seq_length": 4096} and found(run).resumes is None, "the order of the samples depends on it"
    other = failed(SKIPPED.replace("20 too_long", "20 picture"), checkpoint=100)
    assert found(other).changes == {"max_skip_share": 0.2} and "12% of the samples are left out" in found(other).headline
    assert found(failed(SKIPPED.replace("24 of", "150 of").replace("20 too_long", "150 picture"))) is None, "the data must be corrected"


def test_no_option_changes_a_missing_package_and_the_command_line_prints_the_fix(failed, capsys):
    assert found(failed(LINES["module"])) is None
    run = failed(LINES["nccl_timeout"])
    assert main(["runs", "show", "2", "--runs", str(run.path.parent)]) == 0
    shown = capsys.readouterr().out
    assert "the fix: --distributed-timeout-minutes 10 → 30: ranks wait longer for a slow one" in shown
    assert f"qwen3vl runs clone 2 --set distributed_timeout_minutes=30.0 --runs {run.path.parent}" in shown
