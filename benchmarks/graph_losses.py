"""A long run with CUDA graphs: are its losses those of eager execution, and bitwise its own after a kill and a resume?

    python benchmarks/graph_losses.py                     # 200 steps of 2B, then the kill
    python benchmarks/graph_losses.py graphs eager --steps 50
    python benchmarks/graph_losses.py graphs fp32 --warm 200
    qwen3vl demo --workspace-only --dir demo && qwen3vl prepare demo/train --to demo/shards
    python benchmarks/graph_losses.py graphs eager fp32 --model demo/base-hf --data demo/shards/train     # trained weights
    python benchmarks/graph_losses.py resume --layers 4
    python benchmarks/graph_losses.py --size tiny --length 512 --steps 10     # on a CPU: no graphs, and no difference

Every run is a real `qwen3vl finetune` of the same packed rows, two micro batches a step. `graphs` is bf16 as it runs by default, `eager`
the same with `--cuda-graph off`, `fp32` eager in fp32. The table has the largest relative difference of a step's loss and the mean of all
steps. Eager differs from a replay in that rows and patches are not rounded up to buckets and all tokens have logits, so other matrix
products are chosen and sums are taken in another order. The loss of random weights falls from 12 to 4 within ten steps, where bf16 is some
steps behind fp32. `--warm N` trains N steps first, and
every run starts from their checkpoint.

`resume` trains a model of `--layers` layers to the end, then again: killed after a checkpoint, and resumed by `qwen3vl runs resume`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import random_run

from qwen3vl_core.run_record import CHECKPOINTS, METRICS_FILE

VARIANTS = {"graphs": [], "eager": ["--cuda-graph", "off"], "fp32": ["--precision", "fp32", "--cuda-graph", "off"]}
ROWS = 2
"""Micro batches of a step."""


def words_of(base: Path, shards: Path, length: int, *more: str) -> list[str]:
    return [
        "--load", str(base), "--train-data", str(shards), "--packing", "--micro-batch-size", "1", "--global-batch-size", str(ROWS),
        "--seq-length", str(length), "--lr", "1e-5", "--max-pixels", str(random_run.PIXELS), "--nproc", "1", *more,
    ]  # fmt: skip


def difference(name: str, other: str, losses: list[float], others: list[float]) -> dict[str, Any]:
    """Relative differences of two runs' losses."""
    apart = [abs(loss / reference - 1) for loss, reference in zip(losses, others, strict=False)]
    means = [sum(values[: len(apart)]) / len(apart) for values in (losses, others)]
    return {
        "name": f"{name} against {other}", "steps": len(apart), "largest": max(apart), "of_the_mean": abs(means[0] / means[1] - 1),
        "first": losses[0], "last": losses[-1],
    }  # fmt: skip


def warmed(folder: Path, base: Path, shards: Path, args: argparse.Namespace) -> Path:
    """The checkpoint after `--warm` steps from `base`."""
    words = words_of(base, shards, args.length)
    run = random_run.finetune(folder / "warm", words, args.warm, deadline=args.time_limit, to_the_end=True)
    print(f"warm: {len(run.rows)} steps in {run.seconds:.0f} s {run.problem}", flush=True)
    return next((folder / "warm").glob(f"*/{CHECKPOINTS}"))


def compared(folder: Path, base: Path, shards: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.warm:
        base = warmed(folder, base, shards, args)
    losses: dict[str, list[float]] = {}
    rows = []
    for name in args.what:
        if name not in VARIANTS:
            continue
        words = words_of(base, shards, args.length, *VARIANTS[name])
        run = random_run.finetune(folder / "runs", words, args.steps, deadline=args.time_limit)
        print(f"{name}: {len(run.rows)} steps in {run.seconds:.0f} s {run.problem}", flush=True)
        losses[name] = run.losses
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps({"name": name, "losses": run.losses, "problem": run.problem}) + "\n")
    if losses.get("graphs"):
        rows = [difference("graphs", name, losses["graphs"], losses[name]) for name in ("eager", "fp32") if losses.get(name)]
    if losses.get("eager") and losses.get("fp32"):
        rows.append(difference("eager", "fp32", losses["eager"], losses["fp32"]))
    return rows


def followed(runs: Path, words: list[str], until: int | None, deadline: float) -> None:
    """A command in the foreground, killed with all its processes after the step `until`."""
    with (runs.parent / "resume.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3vl_core.cli", *words, "--runs", str(runs), "--foreground"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < deadline:
            if until is not None and len(random_run.metrics(runs)) >= until:
                break
            time.sleep(0.1)
        random_run.end(runs, process)


def losses_by_step(runs: Path) -> dict[int, float]:
    """The last loss of each step: steps after the checkpoint of a resume are trained twice."""
    return {row["step"]: row["loss"] for row in random_run.metrics(runs)}


def resumed(folder: Path, base: Path, shards: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A run that was killed and resumed, against one that was not."""
    every, until, steps = 20, 30, 40
    words = words_of(base, shards, args.length, "--train-iters", str(steps), "--save-interval", str(every))
    whole, killed = folder / "whole", folder / "killed"
    followed(whole, ["finetune", *words], None, args.time_limit)
    followed(killed, ["finetune", *words], until, args.time_limit)
    before = len(random_run.metrics(killed))
    if before >= steps:
        raise SystemExit("the run ended before it could be killed")
    followed(killed, ["runs", "resume", "1"], None, args.time_limit)
    expected, losses = losses_by_step(whole), losses_by_step(killed)
    if sorted(losses) != sorted(expected) or len(losses) != steps:
        print((folder / "resume.log").read_text()[-1500:])
    equal = [step for step in expected if losses.get(step) == expected[step]]
    trained = sum(1 for file in killed.glob(f"*/{METRICS_FILE}") for line in file.open() if '"train"' in line)
    return {
        "name": "killed and resumed", "steps": len(losses), "killed_after": before, "rows": trained, "bitwise_equal": len(equal),
        "first_different": next((step for step in sorted(expected) if losses.get(step) != expected[step]), None),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = [*VARIANTS, "resume"]
    parser.add_argument("what", nargs="*", default=what, metavar="WHAT", help=", ".join(what))
    parser.add_argument("--size", default="2B", choices=("tiny", "2B", "4B", "8B"))
    parser.add_argument("--layers", type=int, default=4, help="language layers of the run that is killed")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a packed row")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm", type=int, default=0, help="steps before those that are compared")
    parser.add_argument("--model", type=Path, help="weights of a trained model instead of random ones of --size; with --data")
    parser.add_argument("--data", type=Path, help="shards that this model is trained on")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds for each run")
    parser.add_argument("--out", type=Path, help="append the losses of each run here, one JSON object a line")
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together")
    if unknown := set(args.what) - set(what):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(what)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples = 2 + (args.steps + 10) * ROWS * args.length // 190
        shards = args.data or random_run.data(folder / "data", random_run.TINY.parent, samples, tokens=(180, 230), side=320)
        rows = []
        if set(args.what) & set(VARIANTS):
            rows += compared(folder, args.model or random_run.model(folder / "model", args.size), shards, args)
        if "resume" in args.what:
            small = random_run.model(folder / "small", args.size, args.layers)
            rows.append(resumed(folder, small, shards, args))
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
