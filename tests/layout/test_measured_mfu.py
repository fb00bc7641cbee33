"""The plan's time: MFU as measured, what lies between, and longer packed rows where these were measured to be faster."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qwen3vl_core.cli import main
from qwen3vl_core.layout.flops import model_flops, step_flops
from qwen3vl_core.layout.measured_mfu import MEASURED, MeasuredMfu, expected_mfu
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.options.planning import PlanOptions

TWO, FOUR, EIGHT = published("2B"), published("4B"), published("8B")
PACKED = FinetuneOptions(size="2B", packing=True, micro_batch_size=1, seq_length=8192, global_batch_size=4)
BIG = PlanOptions(gpus=1, memory=140.0)


def at(length: int, a=TWO, graph: bool = True, measured=MEASURED, **changes) -> float:
    return expected_mfu(dataclasses.replace(PACKED, seq_length=length, **changes), a, graph, measured)


@pytest.mark.parametrize("m", [m for m in MEASURED if m.precision == "bf16" and not m.lora], ids=str)
def test_measured_points_are_reproduced(m):
    last = [n for n in MEASURED if dataclasses.replace(n, mfu=m.mfu) == m][-1]
    assert at(m.tokens, published(m.size), m.graph, packing=m.packed) == pytest.approx(last.mfu, abs=1e-3)


def test_mfu_is_interpolated_and_extrapolated():
    two = (MeasuredMfu("2B", 8192, 0.5), MeasuredMfu("2B", 4096, 0.4))
    assert 0.4 < at(6144, measured=two) < 0.5 and at(2048, measured=two) < 0.4
    # a fixed time and one for each token: 2 + 0.5 (8192 / tokens - 1)
    assert at(2048, measured=two) == pytest.approx(1 / 3.5, abs=1e-4)
    assert at(32768, measured=two) == 0.5, "what is slow in longer rows was not measured"


def test_a_single_figure_takes_the_shape_of_the_longest_curve_and_a_width_between_two_lies_between():
    rows = (MeasuredMfu("2B", 8192, 0.5), MeasuredMfu("2B", 4096, 0.4), MeasuredMfu("8B", 8192, 0.6))
    assert at(4096, EIGHT, measured=rows) == pytest.approx(0.6 * 0.4 / 0.5)
    assert 0.5 < at(8192, FOUR, measured=rows) < 0.6 and at(8192, published("32B"), measured=rows) == 0.6


def test_a_measurement_of_the_same_kind_is_preferred():
    rows = (MeasuredMfu("2B", 8192, 0.5), MeasuredMfu("2B", 8192, 0.3, precision="fp8"), MeasuredMfu("2B", 8192, 0.4, lora=True))
    assert at(8192, measured=rows, precision="fp8") == 0.3 and at(8192, measured=rows, lora_rank=8) == 0.4
    # the shape of a single figure is that of the curve in bf16
    curve = (*rows, MeasuredMfu("2B", 4096, 0.25))
    assert at(4096, measured=curve, precision="fp8") == pytest.approx(0.15)
    # none of adapters in fp8, nor of experts
    assert at(8192, measured=rows, precision="fp8", lora_rank=8) == 0.3
    assert at(8192, published("A3B"), graph=False) == pytest.approx(0.175, abs=1e-3)


def test_the_measured_step_takes_as_long_as_planned():
    """2B packed to 8192, 4 rows a step: 934.1 ms on one H200 (docs/speed.md)."""
    estimate = judge(PACKED, BIG, disk=False, architecture=TWO).estimate
    assert estimate is not None and estimate.step.seconds == pytest.approx(0.9341, rel=0.03)


def test_tensor_and_context_parallel_ranks_share_a_micro_batch():
    assert at(8192, graph=False, tp=2) == at(4096, graph=False) == at(8192, graph=False, cp=2)


def test_the_plan_counts_flops_as_a_run_does():
    found = step_flops(PACKED, TWO, 1024)
    assert found.model == pytest.approx(4 * model_flops(TWO, [8192], [4096]).model)


def test_faster_longer_packed_rows_are_suggested_with_their_options():
    short = dataclasses.replace(PACKED, seq_length=4096, global_batch_size=8)
    (note,) = judge(short, BIG, disk=False, architecture=TWO).notes
    assert note.code == "longer-rows-faster" and note.remedies == ({"seq_length": 8192, "global_batch_size": 4},)
    assert note.rule["percent"] == round(100 * (at(8192) / at(4096) - 1))
    # as long as was measured; not packed; a batch that cannot be halved; no room; an MFU of one's own
    assert not judge(PACKED, BIG, disk=False, architecture=TWO).notes
    assert not judge(dataclasses.replace(short, packing=False), BIG, disk=False, architecture=TWO).notes
    (odd,) = judge(dataclasses.replace(short, global_batch_size=3), BIG, disk=False, architecture=TWO).notes
    assert odd.remedies == ({"seq_length": 8192},)
    assert not judge(short, PlanOptions(gpus=1, memory=62.0), disk=False, architecture=TWO).notes
    assert not judge(short, PlanOptions(gpus=1, memory=140.0, mfu=0.4), disk=False, architecture=TWO).notes


def test_the_plan_shows_mfu_in_text_and_json(capsys):
    words = ["plan", "--size", "2B", "--gpus", "1", "--memory", "140", "--packing", "--seq-length", "4096", "--micro-batch-size", "1"]
    assert main(words) == 0
    assert "note: --seq-length 4096: longer packed rows would be about" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note["remedies"][0]["seq_length"] == 8192


def test_another_gpu_has_its_own_peak_and_the_same_mfu(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    # a row of whatever is asked for: name, memory, capability, index, UUID
    fields = "name) v='NVIDIA A100-SXM4-80GB';; memory.total) v=81559;; index) v=0;; uuid) v=GPU-1;; *) v=9.0;;"
    asked = "$(echo \"${1#--query-gpu=}\" | tr , ' ')"
    tool.write_text(f"#!/bin/sh\nfor f in {asked}; do case $f in {fields} esac; printf '%s%s' \"$s\" \"$v\"; s=', '; done; echo\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    ours = judge(PACKED, PlanOptions(gpus=1), disk=False, architecture=TWO).estimate
    other = judge(PACKED, PlanOptions(gpus=1, peak_tflops=989.0), disk=False, architecture=TWO).estimate
    assert ours.step.mfu == other.step.mfu and ours.step.seconds == pytest.approx(other.step.seconds * 989 / 312, rel=1e-3)
