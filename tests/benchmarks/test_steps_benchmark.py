"""The table of the gain of each kernel: every variant trains on the same rows, and switched-off kernels are not used."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.kernels import FUSIONS, KERNELS, SWITCH

import pytest

from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training.setup import structure_rules

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def steps():
    sys.path.insert(0, str(FOLDER))
    import steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "WARM", 1)
        patch.setattr(steps, "MICRO_BATCHES", 1)
        yield steps
    sys.path.remove(str(FOLDER))


def test_each_variant_is_a_row_and_switches_are_restored(steps, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    words = ["--size", "tiny", "--length", "256", "--precision", "fp32", "--steps", "1", "--samples", "8", "--out", str(out)]
    rows = steps.main([*words, "--only", "swiglu", "trained_logits", "none"])
    assert [row["name"] for row in rows] == ["everything", "swiglu", "trained_logits", "none"]
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    # on a CPU no kernel is on, so all compute the same
    assert len({row["loss"] for row in rows}) == 1 and all(row["step_ms"] > 0 for row in rows)
    table = capsys.readouterr().out
    assert "| without | step ms |" in table and "| everything | " in table and "| none | " in table
    assert SWITCH not in os.environ


def test_a_failing_variant_does_not_affect_the_others(steps, tmp_path, monkeypatch):
    def build(options, source):
        if os.environ[SWITCH] == "-swiglu":
            raise RuntimeError("no room\nfor it")
        return built(options, source)

    built = steps.setup.build
    monkeypatch.setattr(steps.setup, "build", build)
    words = ["--size", "tiny", "--length", "256", "--precision", "fp32", "--steps", "1", "--samples", "8", "--only", "swiglu", "none"]
    rows = steps.main(words)
    assert rows[1] == {"name": "swiglu", "fault": "RuntimeError: no room"} and "step_ms" in rows[2]
    assert steps.table_row(rows[1], rows[0]) == "| swiglu | failed: RuntimeError: no room | | | | | | |"


def test_gains_are_relative_to_the_step_with_all_kernels(steps):
    whole = {"name": "everything", "step_ms": 1000.0, "kernels_ms": 950.0, "launches": 4, "peak_gib": 1.0, "loss": 2.5}
    row = whole | {"name": "swiglu", "step_ms": 1030.0, "kernels_ms": 979.5}
    assert steps.table_row(row, whole) == "| swiglu | 1,030.0 | +30.0 | 979.5 | +29.5 | 4 | 1.0 | 2.5 |"
    assert ("everything", *KERNELS, *FUSIONS, "none", "eager") == steps.VARIANTS


def test_without_trained_logits_every_position_has_a_label(steps, tmp_path, monkeypatch):
    process_groups.initialize()
    random_run = steps.random_run
    shards = random_run.data(tmp_path, random_run.TINY.parent, 8, tokens=(60, 80), side=64)
    (batch,) = steps.micro_batches(shards, 256)
    a = Architecture.from_config(random_run.config("tiny"))

    def labels() -> int:
        rules = dataclasses.replace(structure_rules(FinetuneOptions(seq_length=256), a), buckets=True)
        return batch.structured(rules).structure.loss_labels.numel()

    assert batch.tokens <= labels() < 256
    monkeypatch.setenv(SWITCH, "-trained_logits")
    assert labels() == 256
