"""Bucketed batches for CUDA graphs (one row of documents, rounded sizes, logits of trained tokens only) in parallel layouts."""

from __future__ import annotations

from dataclasses import replace

from qwen3vl_core.model import process_groups

import pytest

from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.data.batch import collate, pack
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.training import setup, step
from tests import tiny
from tests.ranks import run_each
from tests.structure.test_structure import RULES, VIDEO_RULES, sample

SP = {"tp": 2, "sequence_parallel": True}
LAYOUTS = {"TP2": {"tp": 2}, "TP2 SP": SP, "CP2": {"cp": 2}}


def batches(number: int, packed: bool, multiple: int):
    """Two micro batches of pictures, text and videos."""
    micro_batches = []
    for micro in range(2):
        seed = number * 10 + micro
        parts = [(5 + seed % 7, ("image", 4, 4), 20), (30 + seed % 5,), (3, ("video", 2, 4, 4), 9)]
        samples = [sample(100 * seed + i, *part) for i, part in enumerate(parts)]
        micro_batches.append(pack(samples, 0, RULES, VIDEO_RULES, multiple=multiple) if packed else collate(samples, 0, RULES, VIDEO_RULES))
    return micro_batches


def train(folder, packed: bool, buckets: bool, **changes):
    """(loss, gradient norm, trained tokens) of three steps."""
    values = dict(load=str(folder), train_data="", precision="fp32", micro_batch_size=1, global_batch_size=2, train_iters=10, lr=1e-3,
                  min_lr=1e-4, lr_warmup_iters=2, seq_length=512, packing=packed)  # fmt: skip
    options = FinetuneOptions(**(values | changes))
    process_groups.initialize(options.tp, options.pp, cp=options.cp)
    try:
        training = setup.build(options, open_source(folder))
        training.rules = replace(training.rules, buckets=buckets)
        results = [step.train_step(training, batches(number, packed, setup.multiple_of(options))) for number in range(3)]
        return [(r.loss, r.grad_norm, r.tokens) for r in results]
    finally:
        process_groups.destroy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save(tiny.hf_model(7), folder)
    alone = run_each(1, train, {packed: (folder, packed, False) for packed in (True, False)})
    jobs = {(name, packed): (folder, packed, True, changes) for name, changes in LAYOUTS.items() for packed in (True, False)}
    return alone | run_each(2, train_layout, jobs)


def train_layout(folder, packed: bool, buckets: bool, changes: dict):
    return train(folder, packed, buckets, **changes)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "rows"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bucketed_batches_have_the_losses_and_gradients_of_one_process(trained, layout, packed):
    expected = trained[packed][0]
    for rank in trained[layout, packed]:
        for (loss, norm, tokens), (loss_of_one, norm_of_one, tokens_of_one) in zip(rank, expected, strict=True):
            assert tokens == tokens_of_one
            assert loss == pytest.approx(loss_of_one, rel=1e-5) and norm == pytest.approx(norm_of_one, rel=2e-4)
