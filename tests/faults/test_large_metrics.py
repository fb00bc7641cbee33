"""`runs metrics` gives every value of a file of any size, in a memory that does not grow with it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from console import commands
from console.runs import metric_columns
from console.runs.metric_columns import MetricColumns
from console.runs.series import MetricSeries
from console.runs.store import RunStore
from qwen3vl_core.run_metrics import METRICS

ROOT = Path(__file__).parents[2]
# the long form: QWEN3VL_METRICS_MB=1024
MEGABYTES = int(os.environ.get("QWEN3VL_METRICS_MB", 48))
MOST = 300_000_000 if MEGABYTES > 100 else 160_000_000


def rows(count: int, chance: random.Random):
    """Train and eval rows with gaps, a metric that begins late, events, and a resume that goes back."""
    step = 0
    for number in range(count):
        step += 1
        if number == count // 2:
            step -= count // 5
            yield {"v": 1, "step": step, "time": 1.0, "kind": "event", "event": "resume", "text": "x", "loss": math.nan}
        values = {name: chance.random() for name in ("loss", "lr", "grad_norm") if chance.random() > 0.1}
        if number > count // 3:
            values["late"] = None if number % 7 == 0 else float(number)
        yield {"v": 1, "step": step, "time": 1.0, "kind": "eval" if number % 10 == 9 else "train"} | values


@pytest.mark.parametrize("bytes_at_once", [1, 5000, 1 << 30])
def test_the_columns_are_those_of_the_whole_series(tmp_path, monkeypatch, bytes_at_once):
    monkeypatch.setattr(metric_columns, "COLUMN_BYTES", bytes_at_once)
    monkeypatch.setattr(metric_columns, "READ_BYTES", 3000)
    monkeypatch.setattr(metric_columns, "WRITTEN", 7)
    run = RunStore(tmp_path).create("finetune", {}, ["true"])
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows(700, random.Random(3))))
    whole = MetricSeries(run.metrics)
    whole.update()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert commands.runs(["metrics", run.id, "--json", "--runs", str(tmp_path)]) == 0
    said = json.loads(out.getvalue())
    assert list(said["metrics"]) == whole.keys and said["id"] == run.id and len(said["events"]) == 1
    assert said["events"][0]["loss"] is None
    for name in whole.keys:
        steps, values = whole.xy(name)
        assert said["metrics"][name]["step"] == steps.tolist()
        assert said["metrics"][name]["value"] == [None if math.isnan(v) else v for v in values.tolist()]
    assert [column.name for column in MetricColumns(run.metrics).columns(["late", "no", "loss"])] == ["late", "loss"]


PEAK = """
import runpy, sys
sys.argv[0] = "qwen3vl"
try:
    runpy.run_module("console", run_name="__main__")
finally:
    sys.stdout.flush()
    # not getrusage: its peak is that of the process that started this one, where that was larger
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def test_memory_stays_bounded(tmp_path):
    run = RunStore(tmp_path).create("finetune", {}, ["true"])
    names = [name for name in METRICS if "/" not in name][:14]
    rows = 0
    with open(run.metrics, "w") as file:
        while file.tell() < MEGABYTES << 20:
            for _ in range(5000):
                rows += 1
                values = ", ".join(f'"{name}": {rows * 1.2345678:.9g}' for name in names)
                file.write(f'{{"v": 1, "step": {rows}, "time": 1700000000.123, "kind": "train", {values}}}\n')
    for words in ([], ["--json"]):
        command = [sys.executable, "-c", PEAK, "runs", "metrics", run.id, "--runs", str(tmp_path), *words]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False) as process:
            written = sum(len(piece) for piece in iter(lambda stdout=process.stdout: stdout.read(1 << 20), b""))
            peak = int(process.stderr.read().split()[-1]) * 1024
        assert process.returncode == 0 and (written > rows * len(names) * 8 if words else written > 100)
        print(f"\n{run.metrics.stat().st_size >> 20} MiB, {rows:,} rows: {peak / 1e6:.0f} MB {words}")
        assert peak < MOST
