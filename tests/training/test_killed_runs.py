"""A run killed at any moment, even while a checkpoint is written, resumes as if it had not been interrupted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from qwen3vl_core.checkpoint import retention, torch_dist
from qwen3vl_core.layout.torchrun_command import training_command
from qwen3vl_core.run_record import TRACKER
from tests.ranks import run_ranks
from tests.training import runs, trainings

# the long form: QWEN3VL_KILLS=20 pytest -o faulthandler_timeout=0 tests/training/test_killed_runs.py
KILLS = int(os.environ.get("QWEN3VL_KILLS", 0))
CHECKPOINT = "checkpoints"
FORMS = {
    "fp32": {"save_interval": 2, "keep": 2, "micro_batch_size": 4},
    "bf16 written beside the training": {"save_interval": 1, "keep": 2, "precision": "bf16", "async_save": True, "micro_batch_size": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.scenes(tmp_path_factory.mktemp("scenes"))


def check_whole(directory):
    """The tracker names a checkpoint whose files all have their full length."""
    if (directory / TRACKER).exists():
        found = torch_dist.find(directory)
        assert retention.damage(found.data) is None
        assert retention.newest(directory)[0] == found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run_ranks(1, runs.small_model, tmp_path_factory.mktemp("small"))[0]


@pytest.fixture(scope="module")
def whole(data, small, tmp_path_factory):
    """Uninterrupted runs: (folder, number of file operations in it), each made once."""
    made = {}

    def of(form):
        if form not in made:
            run = tmp_path_factory.mktemp("whole")
            runs.plan(run, data, load=str(small), **FORMS[form])
            code, moments = runs.train(run)
            assert code == 0 and moments > 60, runs.log(run)
            made[form] = run, moments
        return made[form]

    return of


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_and_resumed_run_has_the_losses_of_an_uninterrupted_one(data, small, whole, tmp_path, form):
    """Chains of a run that is killed at a random moment, resumed and asked to stop at another, and resumed to its end."""
    reference, moments = whole(form)
    expected = {row["step"]: row["loss"] for row in runs.rows(reference)}
    chance = random.Random(form)
    killed = stopped = 0
    for number in range(max(KILLS // 2, 1)):
        run = tmp_path / str(number)
        runs.plan(run, data, load=str(small), **FORMS[form])
        killed += runs.train(run, chance.randrange(1, moments), signal.SIGKILL)[0] == -signal.SIGKILL
        check_whole(run / CHECKPOINT)
        code, _ = runs.train(run, chance.randrange(1, moments // 2), signal.SIGTERM)
        # before the run looks for signals this one kills
        assert code in (0, -signal.SIGTERM), runs.log(run)
        stopped += bool(runs.events(run, "stop"))
        check_whole(run / CHECKPOINT)
        assert runs.train(run)[0] == 0, runs.log(run)
        # steps that were made again too
        rows = runs.rows(run)
        assert {row["step"] for row in rows} == set(expected)
        assert [row["loss"] for row in rows] == [expected[row["step"]] for row in rows], "bitwise"
        assert not list((run / CHECKPOINT).glob("*.tmp"))
        assert retention.iterations(run / CHECKPOINT)[-1] == 6
    assert killed and (stopped or not KILLS)


@pytest.mark.skipif(not KILLS, reason="takes minutes; QWEN3VL_KILLS=20 runs it")
@pytest.mark.parametrize("changes", [{}, {"async_save": True, "precision": "bf16"}, {"nproc": 2, "distributed_optimizer": True}], ids=str)
def test_a_command_killed_at_random_times_has_the_losses_of_an_uninterrupted_one(data, tmp_path, changes):
    environment = os.environ | {"QWEN3VL_PROGRESS": "lines", "OMP_NUM_THREADS": "1"}
    # so many steps that it is not done before it was killed as often as asked
    values = {"train_iters": 6 * KILLS, "save_interval": 2, "keep": 2} | changes
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = runs.plan(whole, data, **values)
    assert subprocess.run(training_command(options, whole), env=environment, timeout=600).returncode == 0
    options = runs.plan(killed, data, **values)
    chance = random.Random(5)
    died = 0
    while died < KILLS:
        # counted in steps: on a machine that has much to do, seconds would end each life before its first checkpoint
        steps = chance.randrange(1, 12)
        with subprocess.Popen(training_command(options, killed), env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                steps -= "  loss " in line
                if not steps:
                    break
            try:
                assert process.wait(chance.uniform(0, 0.5)) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                died += 1
        check_whole(killed / CHECKPOINT)
    assert subprocess.run(training_command(options, killed), env=environment, timeout=600).returncode == 0
    expected = {row["step"]: row["loss"] for row in runs.rows(whole)}
    rows = runs.rows(killed)
    assert died > KILLS // 2 and len(runs.events(killed, "resume")) > KILLS // 4
    assert {row["step"] for row in rows} == set(expected)
    assert [row["loss"] for row in rows] == [expected[row["step"]] for row in rows], "bitwise"


@pytest.mark.parametrize("form", FORMS)
def test_no_process_survives_a_run_killed_while_it_writes_a_checkpoint(data, small, tmp_path, form):
    runs.plan(tmp_path, data, load=str(small), **FORMS[form])
    assert runs.train(tmp_path, "_0.distcp", signal.SIGKILL)[0] == -signal.SIGKILL
    runs.wait_for_all(tmp_path)


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(data, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole("fp32")[0], run)
    before = runs.losses(run)
    part = max((run / CHECKPOINT / "iter_0000006").glob("*.distcp"), key=lambda p: p.stat().st_size)
    os.truncate(part, part.stat().st_size // 2)
    assert runs.train(run)[0] == 0
    assert "iter_0000006 is damaged" in runs.events(run, "damaged")[0]["text"]
    assert runs.losses(run) == before + before[4:]
    assert retention.damage(run / CHECKPOINT / "iter_0000006") is None


def test_two_processes_do_not_train_one_run(data, tmp_path):
    from qwen3vl_core.errors import RequestError
    from qwen3vl_core.training.run_lock import RunLock

    with subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; from qwen3vl_core.training.run_lock import RunLock as L\n"
         f"lock = L(Path({str(tmp_path)!r})); print('held', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RequestError, match=rf"process {holder.pid} on .* is already training it; stop that one first"):
            RunLock(tmp_path, patience=0)
        holder.kill()
        holder.wait()
    RunLock(tmp_path, patience=10).release()


def test_old_checkpoints_are_deleted_once_the_new_one_is_complete_unless_in_use(tmp_path):
    def make(step):
        folder = tmp_path / torch_dist.iteration_folder(step)
        folder.mkdir()
        for name in (retention.METADATA, "numbers.distcp"):
            (folder / name).write_text("x")
        return folder

    made = {step: make(step) for step in range(1, 9)}
    with torch_dist.shared_lock(made[2]):
        assert retention.prune(tmp_path, 8, last=2, every=3) == [1, 4, 5]
    assert retention.iterations(tmp_path) == [2, 3, 6, 7, 8]
    assert retention.prune(tmp_path, 8, last=2, every=0) == [2, 3, 6]
    assert retention.prune(tmp_path, 8, last=0, every=0) == [] and retention.iterations(tmp_path) == [7, 8]
    assert not list(tmp_path.glob("*.tmp"))


def _save_beside(folder, checkpoints):
    return trainings.save_beside_training(folder, checkpoints)


def test_the_tracker_is_updated_once_an_asynchronous_checkpoint_is_complete(tmp_path):
    from tests import tiny

    folder = tiny.save(tiny.hf_model(5, layers=1, vision_layers=1, deepstack=(0,)), tmp_path / "hf")
    checkpoints = tmp_path / CHECKPOINT
    for before, went_on, resumed in run_ranks(2, _save_beside, folder, checkpoints):
        assert before == (False, [])
        assert went_on == resumed
    assert torch_dist.find(checkpoints).iteration == 2
