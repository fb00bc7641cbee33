"""A checkpoint of a published size with random weights, pictures with texts, and real finetunes of them: for benchmarks.

The tokenizer and the special tokens are those of the bundled demo model, so nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qwen3vl_core.checkpoint.hf_writer import SafetensorsWriter, TensorSpec
from qwen3vl_core.checkpoint.name_map import regions
from qwen3vl_core.data.media_limits import MediaLimits
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.layout.parameters import TINY, published
from qwen3vl_core.options import FinetuneOptions, from_mapping
from qwen3vl_core.run_record import LOG, METRICS_FILE, PROFILE, STATE
from qwen3vl_core.sizes import Architecture
from qwen3vl_core.training.step_profile import VARIABLE

SHARD = 2_000_000_000
SPREAD = 0.02
BLOCK = 1 << 24
"""Bytes of weights that are written at once."""
WRITERS = 8
PIXELS = 1024 * 1024
WORDS = ("red", "blue", "green", "dog", "cat", "ball", "a", "the", "on", "field", "beach", "two", "three", "snow", "near", "under")


def config(size: str, layers: int = 0, ffn: int = 0) -> dict[str, Any]:
    """`config.json` of a published size, or of its first `layers` language layers, with the demo's special tokens. ffn: width of the
    MLPs of `tiny`, 0: its own."""
    values = json.loads(TINY.read_text())
    if size in ("tiny", "tiny-experts"):
        values["text_config"]["intermediate_size"] = ffn or values["text_config"]["intermediate_size"]
        if layers:
            values["text_config"]["num_hidden_layers"] = layers
        if size == "tiny-experts":
            values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = False
            _with_experts(values, 8, 2, 64)
        return values
    a = published(size)
    v = a.vision
    values["text_config"] |= {
        "vocab_size": a.vocab_size, "hidden_size": a.hidden_size, "intermediate_size": a.ffn_hidden_size, "head_dim": a.head_dim,
        "num_hidden_layers": layers or a.num_layers, "num_attention_heads": a.num_heads, "num_key_value_heads": a.num_kv_heads,
        "tie_word_embeddings": a.tied, "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": a.rope_theta, "mrope_interleaved": True, "mrope_section": list(a.mrope_section),
        },
    }  # fmt: skip
    values["vision_config"] |= {
        "depth": v.num_layers, "hidden_size": v.hidden_size, "num_heads": v.num_heads, "intermediate_size": v.ffn_hidden_size,
        "out_hidden_size": v.out_hidden_size, "num_position_embeddings": v.num_position_embeddings,
        "deepstack_visual_indexes": list(v.deepstack_layers),
    }  # fmt: skip
    values["tie_word_embeddings"] = a.tied
    if a.is_moe:
        _with_experts(values, a.num_experts, a.experts_per_token, a.expert_ffn_hidden_size)
    return values


def _with_experts(values: dict[str, Any], experts: int, chosen: int, ffn: int) -> None:
    values["model_type"], values["architectures"] = "qwen3_vl_moe", ["Qwen3VLMoeForConditionalGeneration"]
    values["text_config"] |= {
        "num_experts": experts, "num_experts_per_tok": chosen, "norm_topk_prob": True, "moe_intermediate_size": ffn,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "router_aux_loss_coef": 0.001, "model_type": "qwen3_vl_moe_text",
    }  # fmt: skip
    values["vision_config"]["model_type"] = "qwen3_vl_moe_vision"


class RandomWeights:
    """The weights of a made checkpoint, known without reading it: matrices from N(0, 0.02), norms 1 and biases 0, in bf16.

    Numbers are drawn once, as many as four blocks; each block of a tensor is a part of them that begins at another place. So making
    61 GB costs no more than writing them, and each block can be compared with what was read back.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        count = 4 * BLOCK // 2
        drawn = torch.empty(count).normal_(0, SPREAD, generator=generator).to(torch.bfloat16)
        self._drawn = drawn.view(torch.uint8).numpy().data
        self._constants = {
            value: torch.full((BLOCK // 2,), value, dtype=torch.bfloat16).view(torch.uint8).numpy().data for value in (0.0, 1.0)
        }

    def block(self, name: str, shape: tuple[int, ...], start: int, count: int) -> memoryview:
        """`count` bytes, at most BLOCK, of a tensor from its byte `start` on, a multiple of BLOCK."""
        if len(shape) < 2:
            return self._constants[0.0 if name.endswith("bias") else 1.0][:count]
        at = 2 * random.Random(f"{name} {start}").randrange((len(self._drawn) - count) // 2 + 1)
        return self._drawn[at : at + count]


def model(folder: Path, size: str, layers: int = 0, ffn: int = 0) -> Path:
    """A Hugging Face folder of `RandomWeights`, made shard by shard, as fast as the disk takes them."""
    folder.mkdir(parents=True)
    model_config = config(size, layers, ffn)
    for file in TINY.parent.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(model_config, indent=2) + "\n")
    planned: dict[str, TensorSpec] = {}
    for region in regions(Architecture.from_config(model_config)):
        for name, shape in zip(region.hf, region.stored_shapes, strict=True):
            planned.setdefault(name, TensorSpec(name, shape, torch.bfloat16))
    weights = RandomWeights()
    tasks = [(tensor, start) for tensor in planned.values() for start in range(0, tensor.bytes, BLOCK)]
    # a file is written by one thread at a time: each takes a part of them
    each = -(-len(tasks) // WRITERS)
    with SafetensorsWriter(folder, list(planned.values()), SHARD) as writer, ThreadPoolExecutor(WRITERS) as pool:

        def write(first: int) -> None:
            for tensor, start in tasks[first : first + each]:
                writer.write(tensor.name, start, weights.block(tensor.name, tensor.shape, start, min(BLOCK, tensor.bytes - start)))

        for _ in pool.map(write, range(0, len(tasks), each)):
            pass
        writer.finish()
    return folder


def processor_of(folder: Path) -> ChatProcessor:
    """The processor of a checkpoint, with pictures of at most PIXELS, as every benchmark uses it."""
    return ChatProcessor.from_pretrained(folder, MediaLimits(min_pixels=1024, max_pixels=PIXELS))


def text(processor: ChatProcessor, tokens: int, seed: int) -> str:
    """Words that the tokenizer makes about so many tokens of, and no more."""
    drawn = random.Random(seed)
    words = [drawn.choice(WORDS) for _ in range(tokens)]
    length = len(processor.tokenizer(" ".join(words))["input_ids"])
    return " ".join(words[: int(tokens * tokens / max(length, tokens))])


def data(folder: Path, base: Path, count: int, *, tokens: tuple[int, int], side: int) -> Path:
    """A dataset of `count` samples, each a picture of `side` x `side` pixels (0: none) and a text, `tokens` (from, to) tokens in all."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    processor = processor_of(base)
    picture_tokens = (side // 32) ** 2
    noise = np.random.Generator(np.random.SFC64(0))
    records = []
    for i in range(count):
        text_tokens = random.Random(i).randint(*tokens) - picture_tokens - 40
        answer = {"from": "gpt", "value": text(processor, text_tokens, i)}
        if not side:
            records.append({"id": str(i), "conversations": [{"from": "human", "value": "Write a text."}, answer]})
            continue
        # soft noise: as large as a photograph's file
        small = noise.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR).save(raw / f"{i}.jpg", quality=90)
        question = {"from": "human", "value": "<image>\nDescribe this image."}
        records.append({"id": str(i), "image": f"{i}.jpg", "conversations": [question, answer]})
    (raw / "samples.json").write_text(json.dumps(records))
    command("prepare", str(raw / "samples.json"), "--to", str(folder / "shards"), "--split", "1,0,0")
    shutil.rmtree(raw)
    return folder / "shards"


def command(*words: str) -> None:
    """A `qwen3vl` command, to its end."""
    subprocess.run([sys.executable, "-m", "qwen3vl_core.cli", *words], check=True, stdout=subprocess.DEVNULL)


@dataclass
class Finetune:
    """A run of `qwen3vl finetune --foreground` and its metrics."""

    words: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of metrics.jsonl, one a step."""
    seconds: float = 0.0
    """From the command to its end."""
    problem: str = ""
    """The end of its output, when it failed before its last step."""
    profile: dict[str, Any] = field(default_factory=dict[str, Any])
    """What `QWEN3VL_PROFILE_STEPS` wrote of the profiled steps; empty without them."""

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows]

    def median(self, name: str, first: int = 5) -> float:
        """Median of a metric, without the first steps, which warm up."""
        values = sorted(row[name] for row in self.rows[first:] if name in row)
        return values[len(values) // 2] if values else float("nan")

    @property
    def peak_gib(self) -> float:
        """Peak memory of tensors, without the first step."""
        return max((row.get("memory_gib", 0.0) for row in self.rows[1:]), default=0.0)


def finetune(
    runs: Path, words: list[str], steps: int, *, deadline: float = 240.0, to_the_end: bool = False, profiled: int = 0
) -> Finetune:  # fmt: skip
    """Start a finetune, and follow its record for so many steps, and `profiled` more whose kernels are timed.

    Then kill it, since its last checkpoint is not measured, unless `to_the_end`.
    """
    environment = os.environ | ({VARIABLE: f"{steps + 1}:{profiled}"} if profiled else {})
    measured, steps = steps, steps + profiled
    shutil.rmtree(runs, ignore_errors=True)
    # a benchmark that is terminated must end its run too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    count = str(steps if to_the_end else steps + 1000)
    arguments = [*words, "--train-iters", count]
    began = time.monotonic()
    done = Finetune(words)
    log = runs.parent / LOG
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3vl_core.cli", "finetune", *arguments, "--runs", str(runs), "--foreground"],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
        )  # fmt: skip
        try:
            while time.monotonic() - began < deadline:
                done.rows = metrics(runs)[:steps]
                if process.poll() is not None or (len(done.rows) == steps and not to_the_end):
                    break
                time.sleep(0.2)
            done.rows = metrics(runs)[:steps]
        finally:
            end(runs, process)
    done.seconds = time.monotonic() - began
    done.profile = next((json.loads(file.read_text()) for file in runs.glob(f"*/{PROFILE}")), {})
    if len(done.rows) < steps or (to_the_end and process.returncode):
        done.problem = log.read_text()[-1500:]
    done.rows = done.rows[:measured]
    return done


def end(runs: Path, process: subprocess.Popen[Any]) -> None:
    """Kill the training where it still runs; its supervisor and the command end with it."""
    if process.poll() is None:
        for state in runs.glob(f"*/{STATE}"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.killpg(int(json.loads(state.read_text()).get("pid") or 0) or process.pid, signal.SIGKILL)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def metrics(runs: Path) -> list[dict[str, Any]]:
    """The training rows of the one run in `runs`, whole lines only."""
    for file in runs.glob(f"*/{METRICS_FILE}"):
        lines = file.read_text().split("\n")[:-1]
        return [row for row in map(json.loads, lines) if row.get("kind") == "train"]
    return []


def options_of_words(words: list[str]) -> FinetuneOptions:
    """The options that a command line names."""
    from qwen3vl_core.command_line import build_parser

    arguments = vars(build_parser().parse_args(["finetune", *words]))
    names = {f.name for f in dataclasses.fields(FinetuneOptions)}
    return from_mapping(FinetuneOptions, {k: v for k, v in arguments.items() if k in names})
