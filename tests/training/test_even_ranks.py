"""Samples dealt evenly to ranks: the losses are those of the samples in the order drawn, a kill or another layout changes nothing, and
ranks that do not agree on who has what are stopped."""

from __future__ import annotations

import json

from qwen3vl_core.model import process_groups

import pytest
import torch

from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.errors import WorkError
from qwen3vl_core.training import setup, step
from tests import tiny
from tests.data import samples
from tests.ranks import Failure, run_each
from tests.training import runs, trainings


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run_each(1, runs.small_model, {"model": (tmp_path_factory.mktemp("model"),)})["model"][0]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Samples with and without pictures of several sizes, texts of several lengths."""
    from qwen3vl_core.cli import main

    folder = tmp_path_factory.mktemp("mixed")
    records = []
    for number in range(32):
        image = None if number % 3 == 0 else f"{number}.png"
        if image:
            side = (32, 64, 160, 224)[number % 4]
            samples.picture(number, side, side).save(folder / image)
        records.append(samples.record(number, image, "a red dog " * (1 + number * 7 % 11)))
    (folder / "captions.json").write_text(json.dumps(records))
    assert main(["prepare", str(folder / "captions.json"), "--to", str(folder / "data"), "--split", "7,1,0"]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def trained(small, mixed, tmp_path_factory):
    """Runs by their options, each made once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(world=2, **changes):
        name = f"{world}-" + "-".join(f"{key}-{value}" for key, value in changes.items())
        if name not in made:
            values = {"load": str(small), "seq_length": 512, "global_batch_size": 8, "train_iters": 4, "eval_interval": 2, "eval_iters": 1}
            runs.plan(folder / name, mixed, **(values | changes))
            assert runs.train(folder / name, world=world)[0] == 0, runs.log(folder / name)
            made[name] = folder / name
        return made[name]

    return run


FORMS = {
    "rows of one": {"micro_batch_size": 1},
    "rows of two": {"micro_batch_size": 2},
    "packed": {"packing": True, "micro_batch_size": 1, "global_batch_size": 4, "seq_length": 256},
    "PP2": {"world": 4, "pp": 2, "micro_batch_size": 1},
}


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_those_of_the_order_drawn_within_rounding(trained, form):
    even, drawn = trained(**FORMS[form]), trained(**FORMS[form], balance=False)
    for kind in ("train", "eval"):
        pairs = list(zip(runs.rows(even, kind), runs.rows(drawn, kind), strict=True))
        assert len(pairs) >= 2
        for a, b in pairs:
            assert a["tokens"] == b["tokens"]
            assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)
            if kind == "train":
                assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=4e-4)
    shares = [[row["most_patches"] for row in runs.rows(run)] for run in (even, drawn)]
    assert 1 <= sum(shares[0]) / 4 < sum(shares[1]) / 4


def test_where_only_ranks_change_places_losses_are_bitwise_those_of_the_order_drawn(trained):
    """A sum of two does not depend on which comes first."""
    form = {"micro_batch_size": 1, "global_batch_size": 2}
    even, drawn = trained(**form), trained(**form, balance=False)
    for kind in ("train", "eval"):
        assert [(row["loss"], row.get("grad_norm")) for row in runs.rows(even, kind)] == [
            (row["loss"], row.get("grad_norm")) for row in runs.rows(drawn, kind)
        ]


def test_the_first_step_says_how_even_it_is_and_each_step_records_it(trained):
    run = trained(**FORMS["rows of one"])
    (note,) = [row["text"] for row in runs.events(run, "note") if "dealt" in row["text"]]
    assert note.startswith("samples are dealt evenly to 2 ranks: the rank with the most patches has 1.")
    first = runs.rows(run)[0]
    assert f"has {first['most_patches']:.2f} times the mean" in note
    assert all(1 <= row["most_tokens"] < 1.6 for row in runs.rows(run))
    alone = trained(world=1, micro_batch_size=1)
    assert "most_patches" not in runs.rows(alone)[0] and not [row for row in runs.events(alone, "note") if "dealt" in row["text"]]


@pytest.mark.parametrize(("form", "workers"), [("rows of two", 0), ("packed", 1)])
def test_a_killed_and_resumed_run_has_the_losses_of_an_uninterrupted_one(trained, small, mixed, tmp_path, form, workers):
    whole = trained(**FORMS[form])
    values = {"load": str(small), "seq_length": 512, "global_batch_size": 8, "train_iters": 4, "eval_interval": 2, "eval_iters": 1}
    runs.plan(tmp_path, mixed, **(values | FORMS[form] | {"save_interval": 1, "num_workers": workers}))
    assert runs.train(tmp_path, moment="iter_0000003", world=2)[0] == -9
    assert runs.train(tmp_path, world=2)[0] == 0, runs.log(tmp_path)
    by_step = {row["step"]: row["loss"] for row in runs.rows(tmp_path)}
    assert [by_step[number] for number in range(1, 5)] == runs.losses(whole)


def _disagree(folder):
    from megatron.core import parallel_state

    o = trainings.options(folder)
    process_groups.initialize()
    try:
        training = setup.build(o, open_source(folder))
        rank = parallel_state.get_data_parallel_rank()
        batches = trainings.micro_batches(0, o.micro_batch_size, rank, 2)
        before = [p.detach().clone() for p in training.models[0].parameters()]
        for batch in batches:
            batch.dealt = rank
        try:
            step.train_step(training, batches)
        except WorkError as error:
            kept = all(torch.equal(a, b) for a, b in zip(before, training.models[0].parameters(), strict=True))
            return str(error), kept
        return "", False
    finally:
        process_groups.destroy()


def test_ranks_that_do_not_agree_on_who_has_which_sample_are_stopped_before_the_update(tmp_path):
    model = tiny.hf_model(5, ffn=48, layers=2, vision_layers=2, hidden=32, head_dim=8, deepstack=(0,))
    folder = tiny.save(model, tmp_path / "hf")
    ranks = run_each(2, _disagree, {"two": (folder,)})["two"]
    assert not isinstance(ranks, Failure), ranks
    for line, kept in ranks:
        assert line.startswith("the ranks do not agree on which samples belong to which of them") and "--no-balance" in line
        assert kept
