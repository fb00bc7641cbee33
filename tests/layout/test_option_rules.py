"""Options that need each other, a checkpoint's shape, or a machine: each problem in one line with a fix."""

from __future__ import annotations

import pytest

from qwen3vl_core.cli import main
from qwen3vl_core.layout.machine_rules import Machine, machine_problems
from qwen3vl_core.layout.parameters import TINY, published
from qwen3vl_core.layout.rules import layout_problems, vision_layers_per_recompute
from qwen3vl_core.options import FinetuneOptions, option_problems

HOPPER = Machine(1, 9.0, transformer_engine=True)
AMPERE = Machine(8, 8.0, transformer_engine=True)
BARE = Machine(1, 9.0)
CPU = Machine(0)
AWARE = dict(use_precision_aware_optimizer=True, distributed_optimizer=True)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(overlap_param_gather=True, overlap_grad_reduce=True), "--overlap-param-gather: needs --distributed-optimizer; add --dist"),
        (dict(overlap_param_gather=True, distributed_optimizer=True), "--overlap-param-gather: needs --overlap-grad-reduce; add --overlap"),
        (dict(optimizer_offload=0.5), "--optimizer-offload 0.5: only the distributed optimizer can be offloaded to the host; add"),
        (dict(optimizer_offload=1.0, distributed_optimizer=True, precision="fp32"), "--optimizer-offload 1: not with --precision fp32"),
        (dict(optimizer_offload=1.5, distributed_optimizer=True), "--optimizer-offload 1.5: must be at most 1; use 1"),
        (dict(main_grads_dtype="bf16", precision="fp16"), "--main-grads-dtype bf16: not with --precision fp16"),
        (dict(AWARE, precision="fp32"), "--use-precision-aware-optimizer: not with --precision fp32"),
        (
            dict(AWARE, distributed_optimizer=False),
            "--use-precision-aware-optimizer: Megatron's precision-aware optimizer is a form",
        ),
        (dict(AWARE, optimizer_offload=0.5), "--use-precision-aware-optimizer: the optimizer on the host keeps its state in fp32"),
        (dict(exp_avg_dtype="bf16"), "--exp-avg-dtype bf16: only the precision-aware optimizer keeps moments in bf16; add --use-precision"),
        (dict(recompute_layers=2), "--recompute-layers 2: needs --recompute full or offload; leave it out"),
        (dict(recompute="offload", pp=2), "--recompute offload: not with --pp 2"),
        (dict(packing=True, pad_length=4096), "--pad-length 4096: with --packing a row is filled to --seq-length 2048"),
    ],
)
def test_options_that_need_each_other(changes, line):
    found = [str(problem) for problem in option_problems(FinetuneOptions(**changes))]
    assert len(found) == 1 and found[0].startswith(line), found


@pytest.mark.parametrize(
    ("size", "changes", "processes", "line"),
    [
        (
            "2B",
            dict(recompute="full", recompute_layers=3),
            1,
            "--recompute-layers 3: the 28 layers / 3 = 9.33 is not a whole number; use 2",
        ),
        ("2B", dict(recompute="full", recompute_layers=4, pp=4), 4, "--recompute-layers 4: a stage's 7 layers / 4 = 1.75 is not"),
        ("2B", dict(recompute="full", recompute_layers=9, pp=2, pp0_layers=9), 2, "--recompute-layers 9: a stage's 19 layers / 9"),
        ("2B", dict(recompute="offload", recompute_layers=28), 1, "--recompute-layers 28: at least one of 28 layers stays"),
        ("32B", dict(precision="fp8", fp8_recipe="blockwise", tp=8, global_batch_size=8), 8, ""),
        ("8B", dict(precision="fp8", tp=8), 8, ""),
        ("A3B", dict(precision="fp8", etp=96), 96, "--precision fp8: 8 FFN columns of an expert on a GPU, not a multiple of 16"),
        ("A3B", dict(precision="fp8", fp8_recipe="blockwise", etp=4), 4, "--precision fp8: 192 FFN columns of an expert on a GPU, not a"),
    ],
)
def test_layers_and_columns_must_be_divisible(size, changes, processes, line):
    options = FinetuneOptions(**{"global_batch_size": processes} | changes)
    found = [str(problem) for problem in layout_problems(options, published(size), processes)]
    assert any(f.startswith(line) for f in found) if line else not found, found


def test_the_vision_towers_remedy_divides_its_heads():
    assert [vision_layers_per_recompute(n, 27) for n in (1, 2, 4, 9, 14)] == [1, 1, 3, 9, 9]


@pytest.mark.parametrize(
    ("machine", "changes", "line"),
    [
        (CPU, dict(precision="fp8"), "--precision fp8: needs Transformer Engine and an Ada, Hopper or newer GPU; this machine has no GPU"),
        (BARE, dict(precision="fp8"), "--precision fp8: needs Transformer Engine, which is not installed; pip install"),
        (
            AMPERE,
            dict(precision="fp8"),
            "--precision fp8: tensorwise scaling needs Ada (8.9) or newer, and a GPU here has compute capability 8",
        ),
        (Machine(1, 8.9, True), dict(precision="fp8", fp8_recipe="blockwise"), "--precision fp8: blockwise scaling needs Hopper (9.0)"),
        (
            Machine(1, 7.5, True),
            dict(precision="bf16"),
            "--precision bf16: needs Ampere (8.0) or newer, and a GPU here has compute capability 7.5",
        ),
        (CPU, dict(attention="flash"), "--attention flash: needs a GPU, and this machine has none; use auto"),
        (HOPPER, dict(attention="flash", cp=2), "--attention flash: with --cp 2 it needs the flash-attn package"),
        (HOPPER, dict(attention="flash", precision="fp32"), "--attention flash: supports bf16 and fp16 only"),
        (HOPPER, dict(attention="fused", precision="fp32"), "--attention fused: supports bf16 and fp16 only"),
        (HOPPER, dict(cp=2, precision="fp32"), "--cp 2: Transformer Engine exchanges keys and values in bf16 or fp16 only"),
        (BARE, dict(attention="fused"), "--attention fused: needs Transformer Engine"),
        (CPU, dict(recompute="offload"), "--recompute offload: this machine has no GPU, all activations are on the host"),
        (BARE, dict(recompute="offload"), "--recompute offload: needs Transformer Engine"),
        (BARE, AWARE, "--use-precision-aware-optimizer: needs Transformer Engine"),
        (CPU, dict(optimizer_offload=0.5), "--optimizer-offload 0.5: this machine has no GPU, the optimizer is on the host"),
    ],
)
def test_options_that_the_machine_does_not_support_are_refused(machine, changes, line):
    found = [str(problem) for problem in machine_problems(FinetuneOptions(**changes), machine)]
    assert len(found) == 1 and found[0].startswith(line), found


@pytest.mark.parametrize(
    "changes",
    [dict(), dict(precision="fp8"), dict(precision="fp8", fp8_recipe="blockwise"), dict(attention="flash"), dict(attention="fused"),
     dict(recompute="offload"), dict(optimizer_offload=1.0), dict(precision="fp32"), dict(cp=2), AWARE],
)  # fmt: skip
def test_a_hopper_with_transformer_engine_supports_everything(changes):
    assert not list(machine_problems(FinetuneOptions(**changes), HOPPER))


def test_without_transformer_engine_fp32_supports_sequence_parallelism():
    assert not list(machine_problems(FinetuneOptions(precision="fp32", cp=2), BARE))


def test_a_plan_for_this_machine_says_what_it_lacks_and_one_for_another_does_not(capsys, monkeypatch):
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, *_: CPU))
    words = ["plan", "--load", str(TINY.parent), "--precision", "fp8"]
    assert main(words) == 2 and "--precision fp8: needs Transformer Engine and an Ada" in capsys.readouterr().out
    assert main([*words, "--gpus", "1", "--memory", "80"]) == 0
