"""Captions a second: this project's writer and Hugging Face's `generate`, the same pictures in one run, interleaved.

    python benchmarks/caption.py [--pictures 32] [--batch-size 16] [--repeats 3] [--json]

Uses the bundled demo model in fp32 with greedy decoding. Prints medians and the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import qwen3vl_core.model

import torch

import qwen3vl_core
from qwen3vl_core.caption.generate import CaptionWriter, Prompt
from qwen3vl_core.caption.sampling import Sampling
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.demo.captions import PROMPT
from qwen3vl_core.demo.examples import example
from qwen3vl_core.demo.workspace import BASE, HELD_OUT_SEED

LONGEST = 200


def hugging_face(model: Any, processor: ChatProcessor, prompts: list[dict[str, Any]], batch_size: int) -> list[str]:
    """Batches through `generate`; the prompts are equally long."""
    texts = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        inputs = {name: torch.cat([p[name] for p in part]) for name in part[0]}
        types = (inputs["input_ids"] == processor.image_token_id).int()
        with torch.no_grad():
            generated = model.generate(
                **inputs, mm_token_type_ids=types, do_sample=False, max_new_tokens=LONGEST, eos_token_id=processor.eos_token_ids,
                pad_token_id=processor.pad_token_id,
            )  # fmt: skip
        texts += [processor.decode(row[inputs["input_ids"].shape[1] :].tolist()) for row in generated]
    return texts


def ours(model: Any, processor: ChatProcessor, prompts: list[dict[str, Any]], batch_size: int) -> list[str]:
    writer = CaptionWriter(model, processor.decode, processor.eos_token_ids, Sampling(LONGEST, 0.0, 1.0, 0), batch_size=batch_size)
    return [caption.text for caption in writer.write(Prompt(p, 0) for p in prompts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    from transformers import Qwen3VLForConditionalGeneration

    processor = ChatProcessor.from_pretrained(BASE)
    pictures = [example(HELD_OUT_SEED + i, "heldout")[1] for i in range(args.pictures)]
    prompts = [processor.prompt([picture], PROMPT) for picture in pictures]
    models = {
        "Hugging Face generate": (hugging_face, Qwen3VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32).eval()),
        "this project": (ours, qwen3vl_core.load(BASE)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    texts: dict[str, list[str]] = {}
    for _ in range(args.repeats):
        for name, (write, model) in models.items():
            started = time.perf_counter()
            texts[name] = write(model, processor, prompts, args.batch_size)
            seconds[name].append(time.perf_counter() - started)
    rate = {name: args.pictures / statistics.median(times) for name, times in seconds.items()}
    theirs, mine = rate.values()
    result = {"over_generate_loop": round(mine / theirs, 3), "same_text": len({tuple(t) for t in texts.values()}) == 1}
    if args.json:
        print(json.dumps(result | {"captions_per_second": {k: round(v, 2) for k, v in rate.items()}}))
        return
    print(f"{args.pictures} pictures, batches of {args.batch_size}, median of {args.repeats}")
    for name, value in rate.items():
        print(f"  {name:24s} {value:6.2f} captions/s")
    print(f"  ratio                    {result['over_generate_loop']:6.2f}")
    print(f"  same text                {'yes' if result['same_text'] else 'NO'}")


if __name__ == "__main__":
    main()
