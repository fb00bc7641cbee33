"""All broken rules of a layout are reported at once, each with its equation and the nearest valid value."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.rules import divisors, layout_problems
from qwen3vl_core.options import FinetuneOptions, option_problems


@pytest.mark.parametrize(
    ("size", "changes", "processes", "line"),
    [
        ("4B", {"tp": 3}, 3, "--tp 3: 32 attention heads / 3 = 10.67 is not a whole number; use 2"),
        ("8B", {"pp": 5}, 5, "--pp 5: 36 layers / 5 = 7.20 is not a whole number; use 4"),
        ("8B", {"pp": 2, "vp": 5}, 2, "--vp 5: 36 layers / 2 x 5 = 10 chunks = 3.60 is not a whole number; use 6"),
        ("4B", {"pp": 2, "pp0_layers": 40}, 2, "--pp0-layers 40: leaves none of the 36 layers for the other stages; use 35"),
        ("8B", {"pp": 18}, 18, "--pp 18: its first stage holds 36 / 18 = 2 layers, but the 3 deepstack layers must all be on it; "
         "use 12, or use --pp0-layers 19"),
        ("4B", {"ep": 2}, 2, "--ep 2: this checkpoint has no experts; leave it out"),
        ("A3B", {"tp": 2}, 2, "--tp 2: with experts it needs --sequence-parallel; add --sequence-parallel, or use --tp 1"),
        ("A3B", {"ep": 3}, 3, "--ep 3: 128 experts / 3 = 42.67 is not a whole number; use 2"),
        ("4B", {"tp": 2}, 3, "--nproc 3: must be a multiple of tp x pp x cp = 2 x 1 x 1 = 2; use 2"),
        ("4B", {"micro_batch_size": 3}, 2, "--global-batch-size 8: must be a multiple of micro batch x data parallel = 3 x 2 = 6; "
         "use 6 or 12"),
        ("4B", {"pp": 4, "vp": 3, "global_batch_size": 6}, 4, "--vp 3: 6 micro batches a step (global batch 6 / 1) / pp 4 = 1.50 is not "
         "a whole number; use --global-batch-size 4, or leave --vp out"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_reported_with_its_equation(size, changes, processes, line):
    options = FinetuneOptions(**changes)
    assert line in [str(problem) for problem in layout_problems(options, published(size), processes)]


def test_several_problems_are_listed_together():
    options = FinetuneOptions(tp=3, vp=2, ep=2, lr_warmup_iters=200, min_lr=1.0, sequence_parallel=True)
    found = [*option_problems(options), *layout_problems(options, published("4B"), 4)]
    starts = ("--lr-warmup-iters 200", "--min-lr 1", "--tp 3", "--vp 2", "--nproc 4", "--ep 2")
    assert [str(f).startswith(s) for f, s in zip(found, starts, strict=True)] == [True] * 6


def test_applying_a_remedy_removes_its_problem():
    options = FinetuneOptions(tp=2, global_batch_size=9)
    assert "use 8 or 12" in str(next(layout_problems(options, published("4B"), 8)))
    for size in (8, 12):
        assert not list(layout_problems(FinetuneOptions(tp=2, global_batch_size=size), published("4B"), 8))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=3))
def test_common_divisors_are_all_of_them_in_order(numbers):
    assert divisors(*numbers) == [d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)]


def test_a_model_of_fewer_layers_than_deepstack_outputs_has_one_stage():
    a = dataclasses.replace(published("2B"), num_layers=2)
    (problem,) = [p for p in layout_problems(FinetuneOptions(pp=2), a, 2) if p.code == "deepstack-beyond-stage"]
    assert problem.remedies == ({"pp": 1},)
