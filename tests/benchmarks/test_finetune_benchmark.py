"""The benchmark of real finetunes: this project and each peer make steps of the demo's model on a CPU, with correct figures."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.verdict import judge
from qwen3vl_core.options.planning import PlanOptions
from qwen3vl_core.training.step_profile import VARIABLE, StepProfile, busy, summary

FOLDER = Path(__file__).parents[2] / "benchmarks"
STEPS = 1


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules, with short steps."""
    sys.path.insert(0, str(FOLDER))
    with pytest.MonkeyPatch.context() as patch:
        import finetune
        import padded_rows
        import stock_megatron

        for module in (finetune, padded_rows):
            patch.setattr(module, "WARM", 1)
        for module in (finetune, padded_rows, stock_megatron):
            patch.setattr(module, "MICRO_BATCHES", 2)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield finetune
        torch.set_num_threads(threads)
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def work(bench):
    return dataclasses.replace(bench.WORKS["llava"], size="tiny", samples=24, side=64, tokens=(60, 80), options="--precision fp32")


@pytest.fixture(scope="module")
def shards(bench, work, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    return bench.random_run.data(folder, bench.random_run.TINY.parent, work.samples, tokens=work.tokens, side=work.side)


@pytest.mark.parametrize("kind", ["transformers:1,2", "autocast:1", "peft:1"])
def test_each_peer_makes_steps_with_each_micro_batch(bench, work, shards, kind):
    found = list(bench.measure_peer(kind, work, bench.random_run.config("tiny"), shards, STEPS))
    kind, sizes = kind.split(":")
    assert [name for name, _ in found] == [f"{kind}:{rows}" for rows in sizes.split(",")]
    for _, row in found:
        # with random weights the text is arbitrary
        assert row["useful_tokens_per_s"] > 0 and row["loss"] == pytest.approx(math.log(1024), rel=0.1)


def test_the_peer_of_experts_computes_them_as_grouped_products(bench, work, shards):
    config = bench.random_run.config("tiny-experts", 3)
    ((_, row),) = bench.measure_peer("transformers:1", work, config, shards, STEPS)
    assert row["loss"] == pytest.approx(math.log(1024), rel=0.1)
    import hugging_face

    assert hugging_face.build("transformers", config).config.text_config._experts_implementation == "grouped_mm"


def test_stock_megatron_makes_steps_of_text(bench, tmp_path):
    text = dataclasses.replace(bench.WORKS["text"], size="tiny", samples=12, tokens=(110, 120), length=128)
    shards = bench.random_run.data(tmp_path, bench.random_run.TINY.parent, text.samples, tokens=text.tokens, side=0)
    ((name, row),) = bench.measure_peer("megatron:2 overlap=off", text, bench.random_run.config("tiny"), shards, STEPS)
    assert name == "megatron:2 overlap=off" and row["loss"] == pytest.approx(math.log(1024), rel=0.1)


def test_a_real_finetune_is_measured_and_its_kernels_are_timed_after_the_measured_steps(bench, work, shards, tmp_path):
    base = bench.random_run.TINY.parent
    row = bench.ours(tmp_path, base, shards, work, "packed:256 --num-workers 0", 2, [70], 240.0)
    assert "fault" not in row, row
    assert row["steps"] == 2 == len(row["losses"]) and row["useful_tokens_per_s"] > 0 and row["plan_gib"] > 0
    assert 0 <= row["waits_for_data"] <= 1
    # no GPU: two steps and no kernel
    assert (row["profile"]["first_step"], row["profile"]["steps"]) == (3, 2) and row["profile"]["wall_ms"] > 0
    assert row["profile"]["kernels"] == [] and row["kernels"] is None


def test_failures_and_timeouts_are_rows_of_the_table(bench, work, shards):
    ((name, row),) = bench.run_peer("nothing:1", ["llava", "--size", "tiny"], shards, 60)
    assert name == "nothing:1" and "nothing" in row["fault"]
    ((name, row),) = bench.run_peer("transformers:1", ["llava", "--size", "tiny"], shards, 0.1)
    assert row["fault"] == "not done after 0.1 s"
    assert bench.table_row("x", {"fault": "a\nb"}).startswith("| x | failed: b |")


def test_the_command_lines_of_each_work_are_valid_and_fit_an_h200(bench):
    for work in bench.WORKS.values():
        for what in work.ours:
            options = bench.random_run.options_of_words([*bench.words_of(work, what, Path("m"), Path("d")), "--train-iters", "9"])
            assert options.global_batch_size == options.micro_batch_size * bench.MICRO_BATCHES * work.gpus
            assert next(options.problems(), None) is None
            a = dataclasses.replace(published(work.size), num_layers=work.layers or published(work.size).num_layers)
            verdict = judge(options, PlanOptions(gpus=options.nproc, memory=139.8), disk=False, architecture=a)
            assert verdict.valid, (what, verdict.problems)
            assert 0 < bench.planned_gib(work, [*bench.words_of(work, what, Path("m"), Path("d"))], a, list(work.tokens)) < 0.95 * 139.8


def test_ratios_use_the_fastest_row_of_each_peer(bench):
    speeds = {"packed:8192": 300, "packed:8192 --precision fp8": 360, "liger:20": 100, "liger:40": 150, "transformers:20": 100}
    rows = {name: {"useful_tokens_per_s": speed} for name, speed in speeds.items()} | {"liger:80": {"fault": "out of memory"}}
    assert bench.ratios(rows, 1) == [
        "packed:8192 over liger:40: 2.00", "packed:8192 --precision fp8 over liger:40: 2.40", "packed:8192 over transformers:20: 3.00",
        "packed:8192 --precision fp8 over transformers:20: 3.60", "packed:8192 --precision fp8 over bf16: 1.20",
    ]  # fmt: skip
    rows = {"packed:8192 --nproc 1": {"useful_tokens_per_s": 100}, "packed:8192 --tp 2": {"useful_tokens_per_s": 130}}
    assert bench.ratios(rows, 2) == ["packed:8192 --tp 2: scaling 0.65"]


def test_overlapping_kernels_count_once():
    assert busy([(0, 10), (5, 20), (30, 40), (32, 35)]) == 30 and busy([]) == 0
    found = summary([("a", 0, 2_000_000), ("b", 1_000_000, 3_000_000), ("a", 4_000_000, 6_000_000)], 1)
    assert found["kernels_ms"] == 5 and found["launches"] == 3
    assert found["kernels"] == [{"name": "a", "ms": 4, "launches": 2}, {"name": "b", "ms": 2, "launches": 1}]


@pytest.mark.parametrize("text", ["7", "0:2", "3:0", "a:b"])
def test_invalid_steps_to_profile_are_reported(monkeypatch, tmp_path, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(RequestError, match="as 31:2"):
        StepProfile.of_environment(tmp_path)
    monkeypatch.delenv(VARIABLE)
    assert StepProfile.of_environment(tmp_path) is None


def test_a_profile_is_written_after_its_last_step_only(tmp_path):
    profile = StepProfile(2, 2, tmp_path / "file")
    for step in range(1, 5):
        profile.before(step)
        assert (tmp_path / "file").exists() == (step > 3)
        profile.after(step)
    assert json.loads((tmp_path / "file").read_text())["steps"] == 2
