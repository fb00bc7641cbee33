"""Harmful steps are skipped and reported, and end the run if there are too many."""

from __future__ import annotations

import json
import math

import pytest

from qwen3vl_core.checkpoint import retention
from qwen3vl_core.cli import main
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.training.guard import FEWEST, GRADIENT, NOT_FINITE, SPIKE, WINDOW, Guard, Learned
from tests import tiny
from tests.ranks import run_each
from tests.training import runs, trainings


def warmed(**options) -> Guard:
    guard = Guard(10.0, **options)
    for i in range(FEWEST):
        guard.note(2.0 + 0.1 * (i % 3), "")
    return guard


def test_a_loss_far_above_the_previous_ones_is_a_spike():
    guard = warmed()
    assert guard.problem(2.3) == "" and guard.problem(0.1) == ""
    assert guard.problem(9.0) == SPIKE and not guard.skips(SPIKE)
    assert guard.problem(math.nan) == guard.problem(math.inf) == NOT_FINITE
    assert all(guard.skips(problem) for problem in (NOT_FINITE, GRADIENT)) and warmed(skip=True).skips(SPIKE)


def test_without_a_factor_or_with_few_steps_nothing_is_a_spike():
    assert Guard(0.0).problem(1e9) == "" and Guard(10.0).problem(1e9) == ""
    guard = Guard(10.0)
    for _ in range(FEWEST):
        guard.note(1.0, "")
    # a loss that stands still: the deviation is not taken for 0
    assert guard.problem(1.05) == "" and guard.problem(1.2) == SPIKE


def test_a_new_level_of_the_loss_is_learned():
    guard = warmed()
    assert guard.problem(9.0) == SPIKE
    for _ in range(WINDOW):
        guard.note(9.0, guard.problem(9.0))
    assert guard.problem(9.0) == ""


def test_consecutive_bad_steps_end_the_run():
    guard = warmed(most=2)
    assert [guard.note(math.nan, NOT_FINITE), guard.note(2.0, ""), guard.note(math.nan, NOT_FINITE)] == [False] * 3
    again = Guard(10.0, most=2)
    again.load_state_dict(guard.state_dict())
    assert again.limit == guard.limit and again.note(2.0, GRADIENT)
    for damage in ({"losses": [10**400]}, {"bad": -1}, {"bad": 2**40}, {"losses": 2.0}):
        with pytest.raises(RequestError, match="the guard's state in the checkpoint is damaged; resume from an earlier one"):
            again.load_state_dict(guard.state_dict() | damage)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tiny.hf_model(5, layers=2, vision_layers=2, deepstack=(0,)), tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize("precision, world", [("fp32", 1), ("bf16", 2)])
def test_a_bad_step_does_not_change_the_weights(folder, precision, world):
    changes = {"precision": precision, "distributed_optimizer": world > 1, "micro_batch_size": 4}
    found = run_each(world, trainings.train_a_bad_step, {what: (folder, what, changes) for what in ("loss", "gradient", "spike")})
    for what, problem, updated, same, then in [(what, *of_rank) for what, ranks in found.items() for of_rank in ranks]:
        assert (problem, updated, same) == (what, False, True)
        assert then[0] == "" and then[1] and math.isfinite(then[2])


def test_a_diverged_run_stops_and_names_samples_and_checkpoint(tmp_path):
    (tmp_path / "scenes").mkdir()
    data = runs.scenes(tmp_path / "scenes")
    run = tmp_path / "run"
    # the first steps move the weights so far that the next loss is NaN
    runs.plan(
        run,
        data,
        lr=1e30,
        min_lr=1e29,
        lr_warmup_iters=0,
        clip_grad=0.0,
        train_iters=12,
        max_bad_steps=3,
        save_interval=1,
        keep=1,
        micro_batch_size=4,
    )
    assert runs.train(run)[0] == 1
    bad = runs.events(run, "nan")
    assert [e["in_a_row"] for e in bad] == [1, 2, 3] and all(len(e["keys"]) == 4 and not e["updated"] for e in bad)
    line = (run / "output.log").read_text().splitlines()[-1]
    assert "3 bad steps in a row (--max-bad-steps 3); its samples: " + ", ".join(bad[-1]["keys"]) in line
    assert f"the last checkpoint is step {runs.events(run, 'save')[-1]['step']}" in line and "try a lower --lr than 1e+30" in line
    assert [r["grad_norm"] for r in runs.rows(run)][-3:] == [None] * 3
    # the states of the bad steps are not saved, nor is the last good one removed
    good = bad[0]["step"] - 1
    assert [e["step"] for e in runs.events(run, "save")] == list(range(1, good + 1))
    assert [e["step"] for e in runs.events(run, "note")] == [good + 1]
    assert retention.iterations(run / "checkpoints") == [good]


def test_a_run_that_cannot_learn_says_so_and_does_not_end_as_done():
    step = step_result
    learned = Learned(3)
    assert learned.note(step(tokens=0)).startswith("no token is trained") and learned.note(step(tokens=0)) == ""
    with pytest.raises(WorkError, match="3 steps in a row: no token is trained"):
        learned.note(step(tokens=0))
    # one that learned before goes on: a few samples without a picture, while the vision tower is trained alone
    learned = Learned(2)
    assert not learned.note(step()) and "the gradient is zero" in learned.note(step(grad_norm=0.0))
    assert not learned.note(step(grad_norm=0.0)) and learned.problem() == ""
    skipped = Learned(2)
    for _ in range(5):
        skipped.note(step(updated=False))
    assert "nothing was learned in 5 steps: every step was skipped" in skipped.problem()


def step_result(tokens: int = 7, grad_norm: float | None = 1.0, updated: bool = True):
    from qwen3vl_core.training.step import StepResult

    return StepResult(1.0, tokens, grad_norm, 1e-4, updated=updated)


@pytest.mark.slow
def test_a_vision_tower_trained_on_text_alone_fails_with_the_reason(tmp_path):
    data = runs.scenes(tmp_path)
    # the vision tower alone is trained, on text alone
    for file in tmp_path.glob("captions.json"):
        rows = json.loads(file.read_text())
        for row in rows:
            row.pop("image")
            row["conversations"][0]["value"] = "What is this?"
        (tmp_path / "text.json").write_text(json.dumps(rows))
    assert main(["prepare", str(tmp_path / "text.json"), "--to", str(tmp_path / "text"), "--split", "5,1,0"]) == 0
    runs.plan(tmp_path / "run", tmp_path / "text", freeze="language", train_iters=3, max_bad_steps=2)
    assert runs.train(tmp_path / "run")[0] == 1, runs.log(tmp_path / "run")
    assert "2 steps in a row: the gradient is zero" in runs.log(tmp_path / "run") and not runs.events(tmp_path / "run", "done")
    assert data.is_dir()
