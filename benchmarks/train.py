"""Training steps of this project against Hugging Face transformers and against stock Megatron-Core, on one GPU.

    python benchmarks/train.py                 # Qwen3-VL-2B, random weights, rows of 2048 tokens with a 1024 x 1024 picture each
    python benchmarks/train.py --size 8B --layers 8 --json

All train every weight on the same batch: forward, backward, clipping, one AdamW step. This project and stock Megatron keep
fp32 master weights and reduce gradients in fp32; transformers trains its bf16 weights themselves, which is less work. Stock
Megatron is its own `GPTModel` with Transformer Engine's layer spec: the language tower alone, so it is compared with this
project on rows of text. The share of a step that waits for data is that of a real `qwen3vl finetune` with two workers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from qwen3vl_core.model import process_groups
from qwen3vl_core.model.specs import use_transformer_engine

import random_run
import torch
import torch.nn.functional as F

from qwen3vl_core.data.batch import IGNORED, Batch
from qwen3vl_core.data.pictures import PictureRules
from qwen3vl_core.formats import GIB
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training import setup, step
from qwen3vl_core.training.throughput import peak_flops, training_flops

WARM = 3


def batch_of(a: Architecture, rows: int, length: int, vision_tokens: int) -> Batch:
    """Rows of random tokens, each with one square picture, every token after it trained."""
    side = int(vision_tokens**0.5) * 2
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 900, (rows, length), generator=random)
    if vision_tokens:
        ids[:, 0], ids[:, 1 + vision_tokens] = a.vision_start_token_id, a.vision_end_token_id
        ids[:, 1 : 1 + vision_tokens] = a.image_token_id
    labels = torch.roll(ids, -1, 1)
    labels[:, : vision_tokens + 2], labels[:, -1] = IGNORED, IGNORED
    count = rows if vision_tokens else 0
    return Batch(
        input_ids=ids, labels=labels, lengths=torch.full((rows,), length),
        patches=torch.randint(0, 256, (count * side * side, 3 * 256), dtype=torch.uint8, generator=random),
        image_grid_thw=torch.tensor([[1, side, side]] * count).view(-1, 3).long(), keys=[str(i) for i in range(rows)],
        rules=PictureRules(), video_patches=torch.zeros(0, 3 * 2 * 256, dtype=torch.uint8),
        video_grid_thw=torch.zeros(0, 3).long(), video_rules=None,
    )  # fmt: skip


def draw(model: torch.nn.Module, *_: object) -> None:
    """Random weights in place of a checkpoint's."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, random_run.SPREAD) if parameter.dim() > 1 else parameter.fill_(1.0)


def measure(name: str, train: Callable[[], float], a: Architecture, batch: Batch, frozen: tuple[str, ...], steps: int) -> dict:
    """Figures of `train`, which makes one step and gives its loss."""
    losses = [train() for _ in range(WARM)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(train())
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    limit = peak_flops(torch.cuda.get_device_name())
    flops = training_flops(a, batch, frozen)
    return {
        "name": name, "useful_tokens_per_s": round(int(batch.lengths.sum()) / median, 1), "step_ms": round(1000 * median, 2),
        "mfu": round(flops / median / limit, 4) if limit else None, "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "loss": round(losses[-1], 4), "first_loss": round(losses[0], 4),
    }  # fmt: skip


def ours(name: str, a: Architecture, batch: Batch, steps: int, **changes) -> dict:
    """This project's step."""
    rows, length = batch.input_ids.shape
    values = dict(micro_batch_size=rows, global_batch_size=rows, seq_length=length, lr=1e-5, min_lr=1e-6, train_iters=1000)
    options = FinetuneOptions(**(values | changes))
    process_groups.initialize()
    training = setup.build(options, SimpleNamespace(architecture=a))
    return measure(name, lambda: step.train_step(training, [batch]).loss, a, batch, training.frozen, steps)


def hugging_face(name: str, folder: Path, a: Architecture, batch: Batch, steps: int, *, checkpointing: bool = False) -> dict:
    """transformers' own model, sdpa attention, its loss, clipping and torch's fused AdamW on bf16 weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    with torch.device("cuda"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    draw(model)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    inputs = batch.model_inputs("cuda", torch.bfloat16)
    ids = inputs["input_ids"]
    model_kwargs = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    model_kwargs["mm_token_type_ids"] = (ids == a.image_token_id).int()
    labels = batch.labels.cuda()

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(**model_kwargs).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return measure(name, train, a, batch, (), steps)


def stock_megatron(name: str, a: Architecture, batch: Batch, steps: int) -> dict:
    """Megatron-Core's own GPTModel, layer spec and optimizer around the same language tower; text only."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    process_groups.initialize()
    inner = setup.build_model

    def language_tower(architecture, config, **where):
        return GPTModel(
            config=config, vocab_size=a.vocab_size, max_sequence_length=batch.input_ids.shape[1], position_embedding_type="rope",
            transformer_layer_spec=get_gpt_layer_with_transformer_engine_spec(qk_layernorm=True), rotary_base=int(a.rope_theta),
            share_embeddings_and_output_weights=a.tied,
        )  # fmt: skip

    options = FinetuneOptions(global_batch_size=len(batch.input_ids), micro_batch_size=len(batch.input_ids), train_iters=1000)
    setup.build_model = language_tower
    try:
        training = setup.build(options, SimpleNamespace(architecture=a))
    finally:
        setup.build_model = inner
    model = training.wrapped[0]
    ids, labels = batch.input_ids.cuda(), batch.labels.cuda()
    positions = torch.arange(ids.shape[1], device="cuda").expand_as(ids)

    def train() -> float:
        model.zero_grad_buffer()
        training.optimizer.zero_grad()
        losses = model(ids, positions, None, labels=labels.clamp(min=0))
        trained = labels != IGNORED
        loss = (losses.float() * trained).sum() / trained.sum()
        loss.backward()
        model.finish_grad_sync()
        training.optimizer.step()
        training.scheduler.step(increment=1)
        return float(loss.detach())

    return measure(name, train, a, batch, ("vision", "projector"), steps)


def waiting(folder: Path, size: str, layers: int) -> float:
    """Share of a real run's steps that waits for data."""
    base = random_run.model(folder / "waiting", size, layers)
    shards = random_run.data(folder / "rows", base, 48, tokens=(1990, 2000), side=1024)
    words = [
        "--load", str(base), "--train-data", str(shards), "--seq-length", "2048", "--micro-batch-size", "2", "--global-batch-size", "2",
        "--num-workers", "2", "--max-pixels", str(random_run.PIXELS),
    ]  # fmt: skip
    run = random_run.finetune(folder / "runs", words, 30)
    if run.problem:
        raise SystemExit(run.problem)
    after = run.rows[5:]
    return sum(r["data_seconds"] for r in after) / sum(r["step_seconds"] for r in after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2B", choices=("2B", "4B", "8B", "32B"))
    parser.add_argument("--layers", type=int, default=0, help="language layers to keep; 0: all")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--vision-tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10, help="of each configuration, after three to warm up")
    parser.add_argument("--skip", nargs="*", default=[], choices=("hf", "stock", "fp8", "waiting"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not use_transformer_engine():
        raise SystemExit("train.py needs an NVIDIA GPU with Transformer Engine")
    a = Architecture.from_config(random_run.config(args.size, args.layers))
    setup.fill = draw
    seen, text = (batch_of(a, args.rows, args.length, tokens) for tokens in (args.vision_tokens, 0))
    results: dict = {"gpu": torch.cuda.get_device_name(), "size": args.size, "layers": a.num_layers, "rows": []}
    rows = {}

    def add(r: dict) -> None:
        rows[r["name"]] = r
        results["rows"].append(r)
        gc.collect()
        torch.cuda.empty_cache()
        if not args.json:
            print(
                f"| {r['name']} | {r['useful_tokens_per_s']:,.0f} | {r['step_ms']:.1f} | {r['mfu'] or 0:.3f} | {r['peak_gib']:.2f} "
                f"| {r['loss']:.3f} |", flush=True,
            )  # fmt: skip

    if not args.json:
        print("| configuration | tokens/s | step ms | MFU | peak GiB | loss |\n| --- | --- | --- | --- | --- | --- |")
    add(ours("bf16", a, seen, args.steps))
    if "fp8" not in args.skip:
        add(ours("fp8", a, seen, args.steps, precision="fp8"))
        add(ours("fp8 delayed", a, seen, args.steps, precision="fp8", fp8_recipe="delayed"))
        results["fp8_over_bf16"] = round(
            max(rows[n]["useful_tokens_per_s"] for n in ("fp8", "fp8 delayed")) / rows["bf16"]["useful_tokens_per_s"], 3
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "hf" not in args.skip:
            (folder / "config").mkdir()
            (folder / "config" / "config.json").write_text(json.dumps(random_run.config(args.size, args.layers)))
            add(hugging_face("transformers", folder / "config", a, seen, args.steps))
            results["over_hf"] = round(rows["bf16"]["useful_tokens_per_s"] / rows["transformers"]["useful_tokens_per_s"], 3)
            add(ours("bf16, full recompute", a, seen, args.steps, recompute="full"))
            add(hugging_face("transformers, gradient checkpointing", folder / "config", a, seen, args.steps, checkpointing=True))
            results["over_hf_recompute"] = round(
                rows["bf16, full recompute"]["useful_tokens_per_s"] / rows["transformers, gradient checkpointing"]["useful_tokens_per_s"], 3
            )
        if "stock" not in args.skip:
            add(ours("bf16, text", a, text, args.steps, freeze="vision,projector"))
            add(stock_megatron("stock Megatron, text", a, text, args.steps))
            results["over_stock_megatron"] = round(
                rows["bf16, text"]["useful_tokens_per_s"] / rows["stock Megatron, text"]["useful_tokens_per_s"], 3
            )
        if "waiting" not in args.skip:
            results["data_idle_share"] = round(waiting(folder, args.size, args.layers), 4)
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        print(", ".join(f"{k} {v}" for k, v in results.items() if isinstance(v, float)))


if __name__ == "__main__":
    main()
