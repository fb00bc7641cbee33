"""Real finetunes of pictures with captions, on one GPU, beside transformers and Liger on the same samples.

    python benchmarks/finetune.py                                    # Qwen3-VL-2B, random weights
    python benchmarks/finetune.py --size 4B --ours packed:8192 --peers liger:40 --json

Samples are LLaVA-like: one picture of 320 x 320 pixels and a text, 180 to 230 tokens in all. A step is four micro batches. This project
is the command `qwen3vl finetune`, with fp32 master weights, reading shards and decoding pictures while it trains; `packed:L` packs
rows of L tokens, `rows:N` takes N samples a micro batch. The peers are transformers as its Trainer runs it: bf16 weights without masters
(which is less work), sdpa, padded to the longest sample, fused AdamW; `liger:N` with Liger's kernels. Their batches are decoded before
the clock starts. Each is measured in a process of its own, on the samples' own tokens: padding counts for nobody.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import random_run
import torch

from qwen3vl_core.data.batch import IGNORED, Batch
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.formats import GIB
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training.throughput import peak_flops, training_flops

MICRO_BATCHES = 4
TOKENS, SIDE = (180, 230), 320
WARM, MEASURED = 3, 6


def samples(folder: Path, count: int) -> Path:
    """The dataset that all train on."""
    return random_run.data(folder, random_run.TINY.parent, count, tokens=TOKENS, side=SIDE)


def batches(shards: Path, rows: int, steps: int) -> list[list[Batch]]:
    """Micro batches of padded rows, as a Trainer's collator makes them."""
    processor = ChatProcessor.from_pretrained(random_run.TINY.parent, 1024, random_run.PIXELS)
    loader = build_loader(
        shards, "train", processor, micro_batch_size=rows, global_batch_size=rows * MICRO_BATCHES, seq_length=4096
    )  # fmt: skip
    steps_of_batches = [next(loader) for _ in range(steps)]
    loader.close()
    return steps_of_batches


def peer(kind: str, rows: int, shards: Path, config: dict, autocast: bool) -> dict:
    """transformers, with Liger's kernels or without: figures of a few steps. autocast: fp32 weights, computed in bf16."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    if kind == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3_vl

        apply_liger_kernel_to_qwen3_vl()
    a = Architecture.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model_config = AutoConfig.from_pretrained(folder)
    with torch.device("cuda"):
        dtype = torch.float32 if autocast else torch.bfloat16
        model = AutoModelForImageTextToText.from_config(model_config, dtype=dtype, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, random_run.SPREAD) if parameter.dim() > 1 else parameter.fill_(1.0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    steps = batches(shards, rows, WARM + MEASURED)

    def train(micro_batches: list[Batch]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device="cuda")
        trained = sum(batch.tokens for batch in micro_batches)
        for batch in micro_batches:
            inputs = batch.model_inputs("cuda", torch.bfloat16)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == a.image_token_id).int()
            labels = batch.labels.cuda(non_blocking=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                if kind == "liger":
                    # no logits of the whole batch: the loss is computed block by block
                    loss = model(**inputs, labels=labels, shift_labels=labels).loss * (batch.tokens / trained)
                else:
                    logits = model(**inputs).logits
                    loss = torch.nn.functional.cross_entropy(
                        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
                    ) / trained  # fmt: skip
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(total)

    seconds, losses = [], []
    for number, micro_batches in enumerate(steps):
        torch.cuda.synchronize()
        if number == WARM:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        losses.append(train(micro_batches))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    measured = steps[WARM:]
    tokens = statistics.mean(sum(int(batch.lengths.sum()) for batch in micro_batches) for micro_batches in measured)
    flops = statistics.mean(sum(training_flops(a, batch) for batch in micro_batches) for micro_batches in measured)
    return figures(tokens, flops, statistics.median(seconds[WARM:]), torch.cuda.max_memory_allocated() / GIB, losses[-1])


def figures(tokens: float, flops: float, seconds: float, gib: float, loss: float) -> dict:
    limit = peak_flops(torch.cuda.get_device_name())
    return {
        "useful_tokens_per_s": round(tokens / seconds), "step_ms": round(1000 * seconds, 1),
        "mfu": round(flops / seconds / limit, 3) if limit else None, "peak_gib": round(gib, 1), "loss": round(loss, 3),
    }  # fmt: skip


def ours(folder: Path, base: Path, shards: Path, what: str, steps: int, more: list[str], average: float) -> dict:
    """`qwen3vl finetune`: figures of its record, of the later half of its steps. average: tokens of a sample."""
    kind, size = what.split(":")
    packed = kind == "packed"
    rows = 1 if packed else int(size)
    words = [
        "--load", str(base), "--train-data", str(shards), "--micro-batch-size", str(rows), "--global-batch-size", str(rows * MICRO_BATCHES),
        "--seq-length", size if packed else "4096", "--lr", "1e-5", "--max-pixels", str(random_run.PIXELS), "--num-workers", "4",
        *(["--packing"] if packed else []), *more,
    ]  # fmt: skip
    run = random_run.finetune(folder / "runs", words, steps, deadline=400)
    if run.problem:
        raise SystemExit(run.problem)
    later = run.rows[len(run.rows) // 2 :]
    seconds = statistics.median(row["step_seconds"] for row in later)
    if packed:
        tokens = statistics.median(row["packing_efficiency"] for row in later) * MICRO_BATCHES * int(size)
    else:
        tokens = average * rows * MICRO_BATCHES
    row = {
        "useful_tokens_per_s": round(tokens / seconds), "step_ms": round(1000 * seconds, 1),
        "mfu": round(statistics.median(row.get("mfu", 0.0) for row in later), 3),
        "peak_gib": round(max(row.get("memory_gib", 0.0) for row in run.rows), 1), "loss": round(later[-1]["loss"], 3),
        "waits_for_data": round(sum(r["data_seconds"] for r in later) / sum(r["step_seconds"] for r in later), 4),
        "losses": run.losses,
    }  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2B", choices=("2B", "4B", "8B"))
    parser.add_argument("--layers", type=int, default=0, help="language layers to keep; 0: all")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=40, help="of this project; the later half is measured")
    parser.add_argument("--ours", nargs="*", default=["packed:8192", "packed:4096", "rows:20"])
    parser.add_argument("--peers", nargs="*", default=["transformers:20", "transformers:40", "liger:20", "liger:40"])
    parser.add_argument("--autocast", action="store_true", help="the peers' weights in fp32, computed in bf16")
    parser.add_argument("--options", default="", help="more options of `qwen3vl finetune`, in one string")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("finetune.py needs an NVIDIA GPU")
    config = random_run.config(options.size, options.layers)
    if options.peer:
        kind, rows = options.peer.split(":")
        print(json.dumps(peer(kind, int(rows), options.shards, config, options.autocast)))
        return
    results: dict[str, dict] = {}

    def add(name: str, row: dict) -> None:
        results[name] = row
        if not options.json:
            cells = (f"{row['useful_tokens_per_s']:,}", *(row[key] for key in ("step_ms", "mfu", "peak_gib", "loss")))
            print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)

    if not options.json:
        print("| configuration | useful tokens/s | step ms | MFU | peak GiB | loss |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = samples(folder / "data", options.samples)
        average = statistics.mean(int(n) for batch in batches(shards, 100, 1)[0] for n in batch.lengths)
        base = random_run.model(folder / "model", options.size, options.layers) if options.ours else folder
        for what in options.ours:
            add(f"qwen3vl {what}", ours(folder, base, shards, what, options.steps, options.options.split(), average))
        for what in options.peers:
            words = ["--size", options.size, "--layers", str(options.layers), "--peer", what, "--shards", str(shards)]
            words += ["--autocast"] if options.autocast else []
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{what}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)
                continue
            add(what, json.loads(done.stdout.strip().splitlines()[-1]))
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
