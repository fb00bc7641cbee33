"""The gain of each kernel and fusion: a training step with all of them, then without one at a time, on one GPU.

    python benchmarks/steps.py                                   # Qwen3-VL-2B, LLaVA-like samples packed to 8192, four micro batches
    python benchmarks/steps.py --size 8B --layers 8 --only swiglu qk_rope --out steps.jsonl

All variants train on the same micro batches, made before the clock starts, from the same random weights. `QWEN3VL_KERNELS` switches
them off; it is no option of a finetune. `gives` is the time that a step takes longer without it. `eager` is everything on without
CUDA graphs, `none` is graphs without any of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.kernels import FUSIONS, KERNELS, SWITCH

import random_run
import torch
from padded_rows import DEVICE, MICRO_BATCHES, synchronize

from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.data.batch import Batch
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.formats import GIB
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.training import setup, step
from qwen3vl_core.training.step_profile import StepProfile

EVERYTHING, EAGER, NONE = "everything", "eager", "none"
VARIANTS = (EVERYTHING, *KERNELS, *FUSIONS, NONE, EAGER)
OF_EXPERTS = "expert_"
"""Kernels whose names begin so are measured of a model with experts alone."""
# the first step of a bucket runs kernel by kernel, the second is captured
WARM = 3


def micro_batches(shards: Path, length: int) -> list[Batch]:
    """The packed rows of a step, without their structure, which depends on the variant."""
    processor = random_run.processor_of(random_run.TINY.parent)
    loader = build_loader(
        shards, "train", processor, micro_batch_size=1, global_batch_size=MICRO_BATCHES, seq_length=length, packing=True
    )  # fmt: skip
    batches = next(loader)
    loader.close()
    return batches


def measure(variant: str, options: FinetuneOptions, base: Path, batches: list[Batch], steps: int, folder: Path) -> dict[str, Any]:
    """Figures of a step of one variant, built for it and torn down."""
    os.environ[SWITCH] = {EVERYTHING: "", EAGER: "", NONE: "none"}.get(variant, f"-{variant}")
    options = dataclasses.replace(options, cuda_graph="off" if variant == EAGER else "auto")
    process_groups.initialize()
    training = setup.build(options, open_source(base))
    structured = [batch.structured(training.rules) for batch in batches]
    if DEVICE == "cuda":
        structured = [batch.pin_memory() for batch in structured]
        torch.cuda.reset_peak_memory_stats()
    profile = StepProfile(WARM + steps + 1, 1, folder / f"{variant}.json")
    seconds, losses, peaks = [], [], [0.0]
    for number in range(1, WARM + steps + 2):
        profile.before(number)
        synchronize()
        began = time.perf_counter()
        result = step.train_step(training, structured)
        losses.append(result.loss)
        # without graphs each step begins anew
        peaks += result.peak_memory[:1]
        synchronize()
        seconds.append(time.perf_counter() - began)
        profile.after(number)
    kernels = json.loads(profile.file.read_text())
    gib = max(peaks) / GIB
    row = {
        "name": variant, "step_ms": round(1000 * statistics.median(seconds[WARM : WARM + steps]), 1), "peak_gib": round(gib, 2),
        "kernels_ms": kernels["kernels_ms"], "launches": kernels["launches"], "loss": round(losses[0], 5), "kernels": kernels["kernels"],
    }  # fmt: skip
    del training, structured
    release()
    return row


def release() -> None:
    """Give back the memory, the stream and the process groups of a variant, also of one that failed."""
    gc.collect()
    process_groups.destroy()
    if DEVICE == "cuda":
        torch.cuda.set_stream(torch.cuda.default_stream())
        gc.collect()
        torch.cuda.empty_cache()


def table_row(row: dict[str, Any], everything: dict[str, Any] | None) -> str:
    """gives: of the GPU's time and of the step's, beside the step with everything on."""
    if "fault" in row:
        return f"| {row['name']} | failed: {row['fault']} | | | | | | |"
    gives = ["", ""]
    if everything is not None and row is not everything:
        gives = [f"{row[key] - everything[key]:+.1f}" for key in ("step_ms", "kernels_ms")]
    return (
        f"| {row['name']} | {row['step_ms']:,.1f} | {gives[0]} | {row['kernels_ms']:,.1f} | {gives[1]} | {row['launches']:,} "
        f"| {row['peak_gib']:.1f} | {row['loss']} |"
    )


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2B", choices=("tiny", "tiny-experts", "2B", "4B", "8B", "A3B"))
    parser.add_argument("--layers", type=int, default=0, help="language layers to keep; 0: all")
    parser.add_argument("--length", type=int, default=8192, help="tokens of a packed row")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp8", "fp32"))
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=VARIANTS, metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=4, help="of each variant, measured")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--out", type=Path, help="append each row here as it is known, one JSON object a line, with every kernel")
    args = parser.parse_args(words)
    options = FinetuneOptions(
        packing=True, micro_batch_size=1, global_batch_size=MICRO_BATCHES, seq_length=args.length, precision=args.precision, lr=1e-5,
        min_lr=1e-6, train_iters=1000,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    before = os.environ.get(SWITCH)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = random_run.data(folder / "data", random_run.TINY.parent, args.samples, tokens=(180, 230), side=320)
        base = random_run.model(folder / "model", args.size, args.layers)
        batches = micro_batches(shards, args.length)
        print("| without | step ms | gives | kernels ms | gives | launches | peak GiB | first loss |\n|" + " --- |" * 8, flush=True)
        experts = "num_experts" in random_run.config(args.size)["text_config"]
        for variant in dict.fromkeys((EVERYTHING, *args.only)):
            if variant.startswith(OF_EXPERTS) and not experts:
                continue
            try:
                rows.append(measure(variant, options, base, batches, args.steps, folder))
            except Exception as error:  # of one variant: the others are measured all the same
                rows.append({"name": variant, "fault": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
                del error
                release()
            print(table_row(rows[-1], rows[0] if "fault" not in rows[0] else None), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    os.environ.pop(SWITCH, None) if before is None else os.environ.update({SWITCH: before})
    return rows


if __name__ == "__main__":
    main()
