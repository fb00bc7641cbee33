"""What the notebook's curve costs while a long run grows: one look after one more step, and what is sent to the browser.

    python benchmarks/notebook.py [--steps 1000000] [--looks 20] [--smoothing 0.05] [--json]

The run's metrics are made here; the widget is the real one, without a browser. Prints medians of CPU time. A look comes twice a
second, so that 10 ms are 2% of a core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from console.notebook import RunMonitor
from console.notebook.live import SECONDS
from console.runs.store import Run, RunStore


def write(run: Run, begin: int, losses: list[float]) -> None:
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.writelines(f'{{"v":1,"step":{begin + i},"time":0.0,"kind":"train","loss":{loss:.4f}}}\n' for i, loss in enumerate(losses))


def measure(steps: int, looks: int, smoothing: float) -> dict[str, float]:
    """CPU milliseconds of reading all, of a look, and points and kilobytes that a look sends."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunStore(Path(folder)).create("finetune", {}, ["true"])
        write(run, 1, np.random.default_rng(0).normal(3.0, 0.1, steps).tolist())
        begun = time.process_time()
        monitor = RunMonitor(run, store=folder, smoothing=smoothing)
        while monitor._look():
            pass
        read = time.process_time() - begun
        monitor._updater.stop()
        look_seconds = []
        for number in range(looks):
            write(run, steps + 1 + number, [3.0])
            begun = time.process_time()
            monitor._look()
            look_seconds.append(time.process_time() - begun)
        points = [len(trace.x) for trace in monitor.figure.data]
        assert monitor.figure.data[0].x[-1] == steps + looks
        sent = len(json.dumps(monitor.figure.shown.data))
        monitor.close()
    return {
        "steps": steps, "read_ms": 1e3 * read, "look_ms": 1e3 * statistics.median(look_seconds), "most_points": max(points),
        "sent_kb": sent / 1e3, "share_of_a_core": statistics.median(look_seconds) / SECONDS,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--looks", type=int, default=20)
    parser.add_argument("--smoothing", type=float, default=0.05)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    measure(100, 1, args.smoothing)  # the first widget imports plotly
    rows = [measure(steps, args.looks, args.smoothing) for steps in args.steps]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("| steps | read all, CPU ms | a look, CPU ms | of a core | points a trace | kB sent |\n| --- | --- | --- | --- | --- | --- |")
    for r in rows:
        cells = [f"{r['steps']:,}", f"{r['read_ms']:,.0f}", f"{r['look_ms']:.1f}", f"{r['share_of_a_core']:.1%}"]
        print(f"| {' | '.join(cells)} | {r['most_points']} | {r['sent_kb']:.0f} |")


if __name__ == "__main__":
    main()
