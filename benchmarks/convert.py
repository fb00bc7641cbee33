"""Conversion against `cp` of the same bytes: how much longer does it take to rearrange a checkpoint than to copy it?

    python benchmarks/convert.py --gigabytes 9              # Qwen3-VL-4B: true shapes, random weights, made here
    python benchmarks/convert.py --gigabytes 9 --kind moe   # Qwen3-VL-30B-A3B: fewer layers, all 128 experts

Each is a command of its own, timed from start to end, so that Python's and torch's start-up count; both are run in turn,
several times, with the same page cache (`--cache warm`: the source is in memory; `cold`: it is on the disk alone). The fastest run of
each counts: whatever else the machine does makes the others slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3vl_core.checkpoint.hf import HFReader
from qwen3vl_core.checkpoint.hf_writer import SafetensorsWriter, TensorSpec
from qwen3vl_core.checkpoint.name_map import regions
from qwen3vl_core.formats import quantity
from qwen3vl_core.progress import Progress
from qwen3vl_core.sizes import SIZES, Architecture

BLOCK = 1 << 24
SHARD = 2_000_000_000
KINDS = {"dense": "4B", "moe": "A3B"}


def config(kind: str, layers: int, vision_layers: int) -> dict[str, Any]:
    """`config.json` of the published model with fewer layers."""
    size = SIZES[KINDS[kind]]
    text = {
        "vocab_size": 151936, "hidden_size": size.hidden_size, "intermediate_size": size.ffn_hidden_size, "num_hidden_layers": layers,
        "num_attention_heads": size.num_heads, "num_key_value_heads": size.num_kv_heads, "head_dim": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 5e6, "rope_scaling": {"mrope_section": [24, 20, 20], "rope_type": "default"}, "tie_word_embeddings": size.tied,
    }  # fmt: skip
    if size.num_experts:
        text |= {"num_experts": size.num_experts, "num_experts_per_tok": 8, "moe_intermediate_size": size.expert_ffn_hidden_size}
    large = size.vision_hidden_size == 1152
    deepstack: tuple[int, ...] = ((8, 16, 24) if large else (5, 11, 17)) if vision_layers == size.vision_layers else (0, 1, 2)
    # a language layer takes one of them
    deepstack = deepstack[:layers]
    vision = {
        "depth": vision_layers, "hidden_size": size.vision_hidden_size, "num_heads": 16, "intermediate_size": 4304 if large else 4096,
        "deepstack_visual_indexes": list(deepstack), "out_hidden_size": size.hidden_size, "patch_size": 16, "temporal_patch_size": 2,
        "spatial_merge_size": 2, "num_position_embeddings": 2304,
    }  # fmt: skip
    return {
        "model_type": "qwen3_vl_moe" if size.num_experts else "qwen3_vl", "text_config": text, "vision_config": vision,
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
        "tie_word_embeddings": size.tied, "dtype": "bfloat16",
    }  # fmt: skip


def _bytes(config_json: dict[str, Any]) -> int:
    return 2 * sum(math.prod(region.size) for region in regions(Architecture.from_config(config_json)))


def config_of_size(kind: str, gigabytes: float) -> dict[str, Any]:
    """As many of the model's layers as come nearest to `gigabytes` in bf16, at least one; the vision tower whole if it fits."""
    size = SIZES[KINDS[kind]]
    limit = gigabytes * 1e9
    vision = size.vision_layers if _bytes(config(kind, 1, size.vision_layers)) <= limit else 3
    base = _bytes(config(kind, 1, vision))
    layer = _bytes(config(kind, 2, vision)) - base
    return config(kind, min(size.num_layers, max(1, 1 + round((limit - base) / layer))), vision)


def make_source(folder: Path, config_json: dict[str, Any]) -> int:
    """A Hugging Face folder of random finite bf16 numbers, shard by shard, experts as published. Returns its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
    planned: dict[str, TensorSpec] = {}
    for region in regions(Architecture.from_config(config_json)):
        for name, shape in zip(region.hf, region.stored_shapes, strict=True):
            planned.setdefault(name, TensorSpec(name, shape, torch.bfloat16))
    random = np.random.Generator(np.random.SFC64(0))
    total = sum(tensor.bytes for tensor in planned.values())
    with SafetensorsWriter(folder, list(planned.values()), SHARD) as writer, Progress("make", total, "B") as progress:
        for tensor in planned.values():
            for start in range(0, tensor.bytes, BLOCK):
                count = min(BLOCK, tensor.bytes - start)
                numbers = random.integers(0, 2**64, -(-count // 8), dtype=np.uint64)
                # no exponent of all ones: neither NaN nor infinity
                numbers &= np.uint64(0xBFFFBFFFBFFFBFFF)
                writer.write(tensor.name, start, numbers.view(np.uint8).data[:count])
                progress.update(count)
        writer.finish()
    return total


def same_bits(one: Path, other: Path) -> bool:
    """Whether two Hugging Face folders hold the same tensors with the same bytes; read without the code that is measured."""
    a, b = HFReader(one).entries, HFReader(other).entries
    if a.keys() != b.keys():
        return False
    for name, entry in a.items():
        other_entry = b[name]
        if (entry.dtype, entry.shape) != (other_entry.dtype, other_entry.shape):
            return False
        with entry.file.open("rb") as first, other_entry.file.open("rb") as second:
            first.seek(entry.start)
            second.seek(other_entry.start)
            remaining = entry.end - entry.start
            while remaining:
                count = min(remaining, BLOCK)
                if first.read(count) != second.read(count):
                    return False
                remaining -= count
    return True


@dataclass
class Timed:
    """What one command took, over its runs."""

    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    """Of it, reading and writing, as the command itself reports."""
    rss: list[int] = field(default_factory=list)

    processor: list[float] = field(default_factory=list)
    """Seconds of all its threads, in the program and in the kernel."""

    @property
    def least(self) -> float:
        return min(self.seconds)


def prepare_cache(folder: Path, cache: str) -> None:
    """Nothing waits to be written, and the source is in memory (`warm`) or not (`cold`)."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                if cache == "cold":
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    buffer = bytearray(BLOCK)
                    while stream.readinto(buffer):
                        pass


def timed(command: list[str], source: Path, target: Path, into: Timed, cache: str) -> None:
    """Run a command that makes `target` from `source`."""
    shutil.rmtree(target, ignore_errors=True)
    prepare_cache(source, cache)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"QWEN3VL_PROGRESS": "none"})
    _, status, usage = os.wait4(process.pid, 0)
    into.seconds.append(time.perf_counter() - began)
    process.returncode = os.waitstatus_to_exitcode(status)
    into.rss.append(usage.ru_maxrss)
    into.processor.append(usage.ru_utime + usage.ru_stime)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")


def measure(folder: Path, kind: str, gigabytes: float, repeats: int, cache: str) -> dict[str, Any]:
    """The table's numbers; everything is written below `folder`."""
    model_config = config_of_size(kind, gigabytes)
    hf, megatron, back, copy, report = (folder / name for name in ("hf", "megatron", "back", "copy", "report.json"))
    size = make_source(hf, model_config)
    ways = {"hf_to_megatron": (hf, megatron), "megatron_to_hf": (megatron, back)}
    ours, theirs = ({way: Timed() for way in ways} for _ in range(2))
    bitwise = True
    for repeat in range(repeats):
        for way, (source, target) in ways.items():
            convert = [sys.executable, "-m", "qwen3vl_core.cli", "convert", str(source), str(target), "--report", str(report)]
            runs = [("ours", convert, target), ("cp", ["cp", "-r", "--reflink=never", str(source), str(copy)], copy)]
            for name, command, place in runs if repeat % 2 else reversed(runs):
                timed(command, source, place, (ours if name == "ours" else theirs)[way], cache)
                if name == "ours":
                    ours[way].work.append(json.loads(report.read_text())["seconds"])
                else:
                    shutil.rmtree(copy)
        bitwise = bitwise and same_bits(hf, back)
        shutil.rmtree(back)
        shutil.rmtree(megatron)
    result = {
        "kind": kind, "gigabytes": round(size / 1e9, 3), "layers": model_config["text_config"]["num_hidden_layers"],
        "experts": model_config["text_config"].get("num_experts", 0), "repeats": repeats, "cache": cache,
    }  # fmt: skip
    for way in ways:
        result |= {
            f"{way}_over_cp": round(ours[way].least / theirs[way].least, 3),
            f"{way}_work_over_cp": round(min(ours[way].work) / theirs[way].least, 3),
            f"{way}_seconds": round(ours[way].least, 2),
            f"{way}_cp_seconds": round(theirs[way].least, 2),
            f"{way}_processor_seconds": round(min(ours[way].processor), 2),
            f"{way}_cp_processor_seconds": round(min(theirs[way].processor), 2),
        }
    peak = max(rss for timing in ours.values() for rss in timing.rss)
    return result | {"peak_rss_mib": round(peak / 1024), "bitwise": bitwise}


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    what = f"{KINDS[result['kind']]}-shaped, {result['layers']} layers" + (f" of {result['experts']} experts" if result["experts"] else "")
    lines = [
        f"{what}, {quantity(result['gigabytes'] * 1e9, 'B')} of bf16; fastest of {result['repeats']}, {result['cache']} page cache",
        "",
        f"{'':24s} {'convert':>10s} {'cp':>10s} {'ratio':>8s} {'ratio without start-up':>24s}",
    ]
    for way, label in (("hf_to_megatron", "HF -> torch_dist"), ("megatron_to_hf", "torch_dist -> HF")):
        ratios = f"{result[f'{way}_over_cp']:8.2f} {result[f'{way}_work_over_cp']:24.2f}"
        lines.append(f"{label:24s} {result[f'{way}_seconds']:8.2f} s {result[f'{way}_cp_seconds']:8.2f} s {ratios}")
    lines += ["", f"peak memory {result['peak_rss_mib']} MiB; there and back bitwise equal: {'yes' if result['bitwise'] else 'NO'}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=9, help="size of the checkpoint, by leaving out layers (default 9)")
    parser.add_argument("--kind", choices=tuple(KINDS), default="dense")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", choices=("warm", "cold"), default="warm")
    parser.add_argument("--dir", type=Path, default=None, help="folder on the disk to measure (default: the system's for temporary files)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qwen3vl-convert-", dir=options.dir) as folder:
        result = measure(Path(folder), options.kind, options.gigabytes, options.repeats, options.cache)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
