"""Every way to train, from the command line: losses, speed, and the estimate of the memory against the measured peak.

    python benchmarks/options.py                      # Qwen3-VL-2B with random weights, 30 steps each, on one 80 GB GPU
    python benchmarks/options.py --only bf16 fp8 --json

Each row is one `qwen3vl finetune --foreground ...` on a checkpoint and a dataset made here; the loss, the time and the peak of
the tensors are those of the run's own metrics.jsonl. The estimate is what `qwen3vl plan` says of the same options.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import random_run

from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.memory import estimate
from qwen3vl_core.layout.rules import architecture_of
from qwen3vl_core.options import FinetuneOptions, options_of

LENGTH, SIDE, VISION_TOKENS = 2048, 1024, 1024
OFFLOAD = "--distributed-optimizer --optimizer-offload"
# name -> (size, options)
RUNS = {
    "bf16": ("2B", ""),
    "flash": ("2B", "--attention flash"),
    "fused": ("2B", "--attention fused"),
    "fp8 delayed": ("2B", "--precision fp8 --fp8-recipe delayed"),
    "fp8": ("2B", "--precision fp8"),
    "fp8 blockwise": ("2B", "--precision fp8 --fp8-recipe blockwise"),
    "recompute sel": ("2B", "--recompute sel"),
    "recompute full": ("2B", "--recompute full"),
    "recompute full, 4 together": ("2B", "--recompute full --recompute-layers 4"),
    "fp8, recompute full": ("2B", "--precision fp8 --recompute full"),
    "activations on the host": ("2B", "--recompute offload --recompute-layers 14"),
    "half the optimizer on the host": ("2B", f"{OFFLOAD} 0.5"),
    "packing": ("2B", "--packing"),
    "language only": ("2B", "--freeze vision,projector"),
    "LoRA": ("2B", "--lora-rank 16"),
    "4B LoRA": ("4B", "--lora-rank 16"),
    "4B LoRA fp8": ("4B", "--lora-rank 16 --precision fp8"),
    "4B optimizer on the host": ("4B", f"{OFFLOAD} 0.6 --recompute full"),
    "4B projector only": ("4B", "--freeze vision,language"),
}
PACKED = "packing"


def words_of(name: str, base: Path, rows: Path, documents: Path) -> list[str]:
    """The command line of a row. One micro batch a step: two padded rows, or one packed row as long as both."""
    _, options = RUNS[name]
    packed = "--packing" in options
    batch = (
        ["--seq-length", str(2 * LENGTH), "--micro-batch-size", "1", "--global-batch-size", "1"] if packed
        else ["--seq-length", str(LENGTH), "--pad-length", str(LENGTH), "--micro-batch-size", "2", "--global-batch-size", "2"]
    )  # fmt: skip
    return [
        "--load", str(base), "--train-data", str(documents if packed else rows), *batch, "--lr", "1e-4", "--min-lr", "1e-5",
        "--lr-warmup-iters", "5", "--num-workers", "2", "--max-pixels", str(random_run.PIXELS), *options.split(),
    ]  # fmt: skip


def row(name: str, run: random_run.Finetune, base: Path) -> dict[str, Any]:
    """The figures of a run, and what was estimated."""
    options = random_run.options_of_words([*run.words, "--train-iters", "1000"])
    # each of a packed row's documents has a picture of 512 x 512; they are 512 tokens long
    seen = 2 * LENGTH // 512 * 256 if options.packing else VISION_TOKENS
    guess = estimate(options, architecture_of(str(base)), 1, seen)[0]
    peak, ours = run.peak_gib, guess.allocated / GIB
    return {
        "name": name, "size": RUNS[name][0], "options": RUNS[name][1], "steps": len(run.rows), "losses": run.losses,
        "step_seconds": run.median("step_seconds"), "tokens_per_second": run.median("tokens_per_second"), "mfu": run.median("mfu"),
        "data_seconds": run.median("data_seconds"), "optimizer_seconds": run.median("optimizer_seconds"), "peak_gib": peak,
        "reserved_gib": max((r.get("memory_reserved_gib", 0.0) for r in run.rows), default=0.0), "estimated_gib": round(ours, 3),
        "off_by": round(ours / peak - 1, 4) if peak else None, "seconds": round(run.seconds, 1), "problem": run.problem,
        "parts": guess.as_gib(), "filled": run.median("packing_efficiency") if options.packing else None,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| run | options | loss, first and last | step ms | MFU | peak GiB | estimated GiB | off by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        if r["problem"]:
            reason = r["problem"].strip().splitlines()[-1][:100] if r["problem"].strip() else "no word"
            lines.append(f"| {r['name']} | `{r['options']}` | failed after {r['steps']} steps: {reason} | | | | | |")
            continue
        off = "" if r["off_by"] is None else f"{r['off_by']:+.1%}"
        lines.append(
            f"| {r['size']} {r['name'].removeprefix(r['size'] + ' ')} | `{r['options']}` | {r['losses'][0]:.3f}, {r['losses'][-1]:.3f} "
            f"| {1000 * r['step_seconds']:.0f} | {r['mfu']:.3f} | {r['peak_gib']:.2f} | {r['estimated_gib']:.2f} | {off} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="RUN", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=0, help="language layers to keep; 0: all")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further run after so many")
    parser.add_argument("--dir", type=Path, default=None, help="folder for checkpoint, data and runs; else a temporary one")
    parser.add_argument("--out", type=Path, default=None, help="write each row here as it is known, one JSON object a line")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = args.dir or Path(tempfile.mkdtemp(prefix="options-"))
    began, rows = time.monotonic(), []
    known = {o.name for o in options_of(FinetuneOptions)}
    try:
        bases: dict[str, Path] = {}
        for name in args.only:
            size, text = RUNS[name]
            flags = {w[2:].replace("-", "_") for w in text.split() if w.startswith("--")}
            if not flags <= known or time.monotonic() - began > args.seconds:
                continue
            if size not in bases:
                bases[size] = folder / size if (folder / size).exists() else random_run.model(folder / size, size, args.layers)
            samples, short = folder / "rows" / "shards", folder / "documents" / "shards"
            if "--packing" not in text and not samples.exists():
                random_run.data(folder / "rows", bases[size], 48, tokens=(LENGTH - 60, LENGTH - 50), side=SIDE)
            if "--packing" in text and not short.exists():
                random_run.data(folder / "documents", bases[size], 192, tokens=(490, 500), side=512)
            run = random_run.finetune(folder / "runs", words_of(name, bases[size], samples, short), args.steps)
            rows.append(row(name, run, bases[size]))
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
            if not args.json:
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    finally:
        if args.dir is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"runs": rows}, indent=1) if args.json else table(rows))


if __name__ == "__main__":
    main()
