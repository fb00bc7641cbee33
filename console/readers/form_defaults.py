"""Initial values and suggestions of the console's forms: presets, layouts that fit, a workspace's paths. Imports no Textual."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from console.forms import gpu_memory, plan_here
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import GIB
from qwen3vl_core.layout.suggest import SHOWN, suggest
from qwen3vl_core.layout.torchrun_command import process_count
from qwen3vl_core.layout.verdict import judge, peak_tflops
from qwen3vl_core.options import COMMANDS, options_of

KINDS = ("download", "prepare", "convert", "finetune", "compare")
"""Commands that the console starts, in the order in which they are used."""
PRESETS: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    "download": (
        ("Qwen3-VL 2B", "the smallest; a download of 4 GB",
         {"kind": "model", "name": "Qwen/Qwen3-VL-2B-Instruct", "to": "Qwen3-VL-2B-Instruct"}),
        ("Qwen3-VL 4B", "a download of 9 GB", {"kind": "model", "name": "Qwen/Qwen3-VL-4B-Instruct", "to": "Qwen3-VL-4B-Instruct"}),
        ("Qwen3-VL 8B", "a download of 18 GB", {"kind": "model", "name": "Qwen/Qwen3-VL-8B-Instruct", "to": "Qwen3-VL-8B-Instruct"}),
        ("LLaVA pretrain", "558 thousand pictures with captions; prepare reads it",
         {"kind": "dataset", "name": "liuhaotian/LLaVA-Pretrain", "to": "LLaVA-Pretrain"}),
        ("from ModelScope", "instead of Hugging Face", {"from_": "modelscope"}),
    ),
    "finetune": (
        ("smoke test", "10 steps, to check that everything runs",
         {"train_iters": 10, "lr_warmup_iters": 0, "log_interval": 1, "save_interval": 0}),
        ("full finetune", "all weights, lr 1e-5, warmup, evaluations, the last 2 checkpoints kept",
         {"freeze": "", "lr": 1e-5, "min_lr": 1e-6, "train_iters": 1000, "lr_warmup_iters": 30, "save_interval": 200, "keep": 2,
          "eval_interval": 100}),
        ("projector only", "vision and language frozen, lr 1e-3: aligns new pictures cheaply",
         {"freeze": "vision,language", "lr": 1e-3, "min_lr": 1e-5, "train_iters": 500, "lr_warmup_iters": 15}),
        ("language only", "vision tower frozen: less memory, the usual choice for captions in a new style",
         {"freeze": "vision", "lr": 1e-5, "min_lr": 1e-6}),
        ("LoRA", "adapters of rank 16 in the language model, lr 1e-4: a fraction of the memory",
         {"lora_rank": 16, "lr": 1e-4, "min_lr": 1e-5}),
        ("packed rows", "samples packed into rows of 8192 tokens: little padding",
         {"packing": True, "micro_batch_size": 1, "seq_length": 8192}),
        ("least memory", "activations recomputed, optimizer state sharded, micro batch 1",
         {"recompute": "full", "distributed_optimizer": True, "micro_batch_size": 1}),
    ),
    "prepare": (
        ("quick", "only the headers of pictures are checked", {"check": "header", "skip_missing": False}),
        ("thorough", "every picture is decoded; invalid records are skipped and counted", {"check": "decode", "skip_missing": True}),
    ),
    "convert": (
        ("verified", "the target is read and compared bitwise", {"verify": True}),
        ("bf16", "written in bf16, half the size of fp32", {"dtype": "bf16"}),
    ),
    "compare": (
        ("greedy", "the same caption every time", {"temperature": 0.0, "top_p": 1.0, "top_k": 0}),
        ("sampled", "temperature 0.7, top-p 0.9", {"temperature": 0.7, "top_p": 0.9}),
        ("first look", "8 pictures, short captions", {"limit": 8, "max_new_tokens": 64}),
    ),
}  # fmt: skip
"""Of each command: (name, description, values) of its presets. `suggestions` adds the layouts that fit."""


def suggestions(options: Any) -> list[dict[str, Any]]:
    """Layouts for these GPUs, best first: {"values": …, "gib", "fits", "seconds", "dp", "price"}. Blocking. Raises RequestError."""
    count = options.nproc or process_count(dataclasses.replace(options, tp=1, pp=1, cp=1))
    plan = plan_here(gpus=count)
    verdict = judge(options, plan)
    if verdict.architecture is None:
        raise RequestError(*verdict.problems)
    peak, tokens = peak_tflops(plan), verdict.vision_tokens
    layouts = suggest(options, verdict.architecture, count, verdict.memory_gib, vision_tokens=tokens, peak_tflops=peak)
    return [
        {
            "values": layout.values(), "gib": round(layout.memory.total / GIB, 1), "fits": layout.fits(verdict.memory_gib),
            "seconds": layout.seconds, "dp": layout.dp, "price": layout.price, "of": round(verdict.memory_gib, 2), "gpus": count,
        }
        for layout in layouts[:SHOWN]
    ]  # fmt: skip


def read_workspace(folder: Path | None) -> dict[str, Any]:
    """`workspace.json` of a demo workspace; empty when there is none."""
    if folder is None:
        return {}
    try:
        value = json.loads((Path(folder) / "workspace.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def gpu_here() -> bool:
    """Whether this machine has a GPU that reports its memory; determined at the first call."""
    return gpu_memory() is not None


def free_path(path: Any) -> Any:
    """The path if it does not exist yet, else the first free one with -2, -3, … appended."""
    if not isinstance(path, str | Path) or not str(path):
        return None
    candidate, number = Path(path).expanduser(), 2
    while candidate.exists():
        wanted = Path(path).expanduser()
        candidate, number = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}"), number + 1
    return str(candidate)


def prefill(kind: str, workspace: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Initial values of a form of this kind: those that the workspace has and that are options of the command."""
    get = workspace.get
    finetune = get("finetune")
    values: dict[str, Any] = {
        "download": {"kind": "model"},
        "prepare": {"source": get("train_json"), "to": free_path(get("data"))},
        "convert": {"source": get("base"), "target": free_path(get("base_mcore"))},
        "finetune": {"load": get("base_mcore"), "train_data": get("data"), **(finetune if isinstance(finetune, dict) else {})},
        "compare": {
            "base": get("base"), "tuned": get("tuned_hf"), "prompt": get("prompt"), "references": get("references"),
            "images": [get("heldout_images")] if isinstance(get("heldout_images"), str) else None,
        },
    }.get(kind, {})  # fmt: skip
    known = {option.name for option in options_of(COMMANDS[kind])}
    return {name: value for name, value in values.items() if name in known and value is not None}
