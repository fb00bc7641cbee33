"""The comparison of two revisions sees what differs, down to a bit; a whole comparison runs two revisions' loops and takes minutes."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3vl_core.demo.workspace import BASE
from tools import compare_revisions as compare


def result(lines: list[str], what: str) -> str:
    return next(line for line in lines if line.startswith(what))


def test_equal_results_are_equal_and_a_difference_names_the_thing_and_both_values():
    a = {"losses": {"step 1 loss": "1.5", "step 2 loss": "1.25"}, "captions": {"1.png tuned": "a cat"}}
    assert compare.table(a, json.loads(json.dumps(a)))[1]
    b = a | {"losses": {"step 1 loss": "1.5", "step 2 loss": "1.2500000000000002"}}
    lines, equal = compare.table(a, b)
    assert not equal
    assert result(lines, "losses").endswith("different  step 2 loss: 1.25 | 1.2500000000000002")
    assert result(lines, "captions").endswith("equal")


def test_missing_results_count_as_differences():
    assert "step 2: missing | 1.0" in compare.first_difference({"step 1": "2.0"}, {"step 1": "2.0", "step 2": "1.0"})
    lines, equal = compare.table({"captions": {}}, {"captions": {}})
    assert not equal and "nothing was found" in result(lines, "captions")
    assert not compare.table({"weights": {"w": "1"}}, {})[1]


def test_long_texts_with_different_ends_are_printed_differently():
    left, right = compare.first_difference({"c": "x" * 500 + "1"}, {"c": "x" * 500 + "2"}).removeprefix("c: ").split(" | ")
    assert left != right


def test_a_single_different_bit_is_detected(tmp_path):
    shutil.copyfile(BASE / "model.safetensors", tmp_path / "model.safetensors")
    before = compare.of_safetensors(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = sorted(tensors)[3]
    tensors[name].view(torch.int16).view(-1)[0] ^= 1
    save_file(tensors, tmp_path / "model.safetensors")
    after = compare.of_safetensors(tmp_path)
    assert len(before) == 167 and [key for key in before if before[key] != after[key]] == [name]


def test_databases_are_compared_by_rows_not_by_bytes(tmp_path):
    def fill(name: str, rows: list[int]) -> dict[str, str]:
        (tmp_path / name).mkdir()
        with sqlite3.connect(tmp_path / name / "index.sqlite") as database:
            database.execute("CREATE TABLE samples (offset INTEGER)")
            database.executemany("INSERT INTO samples VALUES (?)", [(row,) for row in rows])
        return compare.of_files(tmp_path / name)

    one = fill("one", [1, 2, 3])
    assert one == fill("two", [3, 1, 2]) != fill("three", [1, 2, 4])


def test_the_last_row_of_a_repeated_step_counts(tmp_path):
    rows = [
        {"kind": "train", "step": 1, "loss": 3.0, "lr": 0.1, "grad_norm": 2.0, "tokens": 5, "samples": 8, "skipped": 0, "step_seconds": 9},
        {"kind": "eval", "step": 1, "loss": 9.0},
        {"kind": "train", "step": 1, "loss": 3.5, "lr": 0.1, "grad_norm": None, "tokens": 5, "samples": 8, "skipped": 0, "step_seconds": 1},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare.of_metrics(file)
    assert found["step 1 loss"] == "3.5" and found["step 1 grad_norm"] == "None" and len(found) == len(compare.COMPUTED)
    assert compare.last_step(file) == 1 and compare.last_step(tmp_path / "none") == 0


def test_optimizer_states_are_compared_by_value():
    state = {"rng": [torch.arange(4), b"x"], "step": 3}
    assert compare.of_value(state) == compare.of_value({"step": 3, "rng": [torch.arange(4), b"x"]})
    assert compare.of_value(state) != compare.of_value({"step": 3, "rng": [torch.arange(4), b"y"]})
    assert compare.of_value(torch.zeros(2)) != compare.of_value(torch.zeros(2, 1)) != compare.of_value(torch.zeros(2, 1).bfloat16())


@pytest.mark.skipif(not (compare.ROOT / ".git").exists(), reason="no git checkout")
def test_a_revision_that_does_not_exist_is_a_wrong_request():
    done = subprocess.run([sys.executable, compare.__file__, "no-such-revision", "HEAD"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("no-such-revision: no commit of ")
