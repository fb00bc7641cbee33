"""Parallel layouts on several GPUs: is the loss that of one process, and how much faster is a step?

    python benchmarks/multi_gpu.py --gpus 2                   # Qwen3-VL-2B with random weights
    python benchmarks/multi_gpu.py --gpus 2 --rows 2          # of a micro batch
    python benchmarks/multi_gpu.py --gpus 4 --size 8B --json
    python benchmarks/multi_gpu.py --gpus 2 --size tiny       # the demo's model on gloo processes: shows the loss only

Each row is one `qwen3vl finetune --foreground` of the same global batches. `loss_gap` is the largest difference from one process's
losses, relative; `scaling` its tokens a second over those of one GPU, divided by the number of GPUs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import random_run

from qwen3vl_core.layout.parameters import TINY

# (GPUs, options) -> what it is called
LAYOUTS = {
    "DP": (2, "--distributed-optimizer"),
    "DP overlapped": (2, "--distributed-optimizer --overlap-grad-reduce --overlap-param-gather"),
    "TP2 SP": (2, "--tp 2 --sequence-parallel"),
    "PP2": (2, "--pp 2"),
    "CP2": (2, "--cp 2"),
    "TP2 SP DP": (4, "--tp 2 --sequence-parallel --distributed-optimizer"),
    "TP2 SP PP2": (4, "--tp 2 --sequence-parallel --pp 2"),
    "PP2 DP": (4, "--pp 2 --distributed-optimizer"),
}


def row(name: str, gpus: int, words: str, run: random_run.Finetune, one_process: random_run.Finetune) -> dict[str, Any]:
    gaps = [abs(a / b - 1) for a, b in zip(run.losses, one_process.losses, strict=False)]
    rate, one = run.median("tokens_per_second", 2), one_process.median("tokens_per_second", 2)
    return {
        "name": name, "gpus": gpus, "options": words, "loss_gap": max(gaps) if gaps and not run.problem else None,
        "scaling": round(rate / one / gpus, 3) if not run.problem else None, "tokens_per_second": rate, "peak_gib": run.peak_gib,
        "losses": run.losses, "problem": run.problem,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--size", default="2B", choices=("tiny", "2B", "4B", "8B", "32B"))
    parser.add_argument("--layers", type=int, default=0, help="language layers to keep; 0: all")
    parser.add_argument("--rows", type=int, default=1, help="of a micro batch; a step is four micro batches for each GPU")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS), metavar="LAYOUT", help=", ".join(LAYOUTS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    small = args.size == "tiny"
    folder = Path(tempfile.mkdtemp(prefix="multi-gpu-"))
    rows = []
    try:
        base = TINY.parent if small else random_run.model(folder / "model", args.size, args.layers)
        length, side = (256, 128) if small else (2048, 1024)
        seen = (side // 32) ** 2
        shards = random_run.data(folder / "data", base, 64, tokens=(seen + 80, length - 50), side=side)
        batch = 4 * args.rows * max(args.gpus, 2)
        shared = [
            "--load", str(base), "--train-data", str(shards), "--seq-length", str(length), "--micro-batch-size", str(args.rows),
            "--global-batch-size", str(batch), "--lr", "1e-4", "--min-lr", "1e-5", "--max-pixels", str(side * side),
            "--precision", "fp32" if small else "bf16", "--num-workers", "0" if small else "4",
        ]  # fmt: skip
        one_process = random_run.finetune(folder / "runs", [*shared, "--nproc", "1"], args.steps)
        if one_process.problem:
            raise SystemExit(f"one process, which the layouts are compared with, failed:\n{one_process.problem}")
        rows.append(row("one process", 1, "", one_process, one_process))
        for name, (least, words) in LAYOUTS.items():
            if name in args.only and least <= args.gpus and args.gpus % least == 0:
                run = random_run.finetune(folder / "runs", [*shared, "--nproc", str(args.gpus), *words.split()], args.steps)
                rows.append(row(name, args.gpus, words, run, one_process))
                if not args.json:
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {"size": args.size, "gpus": args.gpus, "micro_batch_size": args.rows, "rows": rows}
    print(json.dumps(result, indent=1) if args.json else table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| layout | GPUs | options | loss gap | scaling | tokens/s | peak GiB |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        if r["problem"]:
            lines.append(f"| {r['name']} | {r['gpus']} | `{r['options']}` | failed: {r['problem'].strip().splitlines()[-1][:90]} | | | |")
        else:
            lines.append(
                f"| {r['name']} | {r['gpus']} | `{r['options']}` | {r['loss_gap']:.1e} | {r['scaling']:.3f} "
                f"| {r['tokens_per_second']:,.0f} | {r['peak_gib']:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
