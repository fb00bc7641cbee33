"""The benchmark of the whole loop: its weights are known byte for byte, and its steps are commands that work on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3vl_core.checkpoint.hf import HFReader

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(FOLDER))
    import a3b

    yield a3b
    sys.path.remove(str(FOLDER))


@pytest.fixture
def small_blocks(bench, monkeypatch):
    # several blocks and files
    monkeypatch.setattr(bench.random_run, "BLOCK", 1 << 14)
    monkeypatch.setattr(bench.random_run, "SHARD", 1_000_000)


def test_made_weights_are_known_without_reading_them_and_a_changed_byte_is_named(bench, small_blocks, tmp_path):
    folder = bench.random_run.model(tmp_path / "hf", "tiny-experts", 3)
    entries = HFReader(folder).entries
    assert bench.differing(folder) == "" and len({entry.file for entry in entries.values()}) > 1
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    with entries[name].file.open("r+b") as file:
        file.seek(entries[name].end - 1)
        byte = file.read(1)[0]
        file.seek(entries[name].end - 1)
        file.write(bytes([byte ^ 1]))
    assert bench.differing(folder) == name


def test_blocks_of_a_tensor_differ_and_have_the_spread_of_its_initialization(bench, small_blocks, tmp_path):
    import torch

    entry = HFReader(bench.random_run.model(tmp_path / "hf", "tiny-experts", 3)).entries["lm_head.weight"]
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        values = torch.frombuffer(bytearray(file.read(entry.end - entry.start)), dtype=torch.bfloat16).float()
    blocks = values[: values.numel() // 8192 * 8192].view(-1, 8192)
    assert values.std().item() == pytest.approx(bench.random_run.SPREAD, rel=0.05)
    assert len({tuple(block[:8].tolist()) for block in blocks}) == len(blocks) > 10


def test_the_steps_of_a_small_form_run_as_commands_and_the_checkpoint_comes_back_bitwise(tmp_path):
    steps = ["weights", "convert", "back", "lora", "whole", "export"]
    words = [*steps, "--tiny", "--layers", "3", "--train-steps", "2", "--no-verify", "--dir", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(FOLDER / "a3b.py"), *words], check=True, capture_output=True, env=environment)
    rows = {row["step"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}
    assert list(rows) == ["weights", "convert", "back", "lora, 1 GPU", "whole, 1 GPU", "export"]
    assert rows["back"]["note"] == "every byte as it was made"
    assert len(rows["lora, 1 GPU"]["losses"]) == 2 and rows["lora, 1 GPU"]["useful_tokens_per_s"] > 0
    (record,) = tmp_path.glob("lora-1/*/metrics.jsonl")
    steps = [row for row in map(json.loads, record.read_text().splitlines()) if row["kind"] == "train"]
    # 8 experts, of which a token takes 2
    assert len(steps) == 2 and all(1 <= row["expert_load"] <= 4 and 0 <= row["idle_experts"] < 16 for row in steps)
    assert rows["export"]["note"].startswith("adapters merged into the weights; rank 16")
    assert 0.1 < rows["convert"]["process_gib"] < 2
    # what is no longer needed is gone
    assert not (tmp_path / "hf").exists() and not (tmp_path / "back").exists() and not (tmp_path / "tuned").exists()


def test_a_step_without_what_it_needs_is_a_row_that_says_so(tmp_path):
    words = ["lora", "back", "--tiny", "--dir", str(tmp_path)]
    done = subprocess.run([sys.executable, str(FOLDER / "a3b.py"), *words], check=True, capture_output=True, text=True)
    assert done.stdout.count(f"not made: {tmp_path / 'base'} is missing: run the step convert first") == 2
