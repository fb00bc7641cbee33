"""The comparison of long runs: on a CPU, where no graphs are made, both ways to train have the same losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "graph_losses.py"


@pytest.mark.slow
def test_runs_of_the_same_rows_are_compared_step_by_step(tmp_path):
    out = tmp_path / "losses.jsonl"
    words = ["graphs", "eager", "--size", "tiny", "--length", "256", "--steps", "3", "--out", str(out)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], check=True, capture_output=True, text=True)
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [run["name"] for run in runs] == ["graphs", "eager"] and all(len(set(run["losses"])) == 3 for run in runs)
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["name"] == "graphs against eager" and row["steps"] == 3
    assert row["largest"] == row["of_the_mean"] == 0.0


def test_the_largest_difference_is_that_of_a_step(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import graph_losses

    row = graph_losses.difference("a", "b", [2.0, 3.0, 4.4], [2.0, 3.03, 4.0])
    assert row["steps"] == 3 and row["largest"] == pytest.approx(0.1) and row["of_the_mean"] == pytest.approx(9.4 / 9.03 - 1)
