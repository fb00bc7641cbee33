"""Shard writing against `tar` and against WebDataset's ShardWriter, on the same files in one run.

    python benchmarks/data.py                      # 3,000 pictures of 336x336, made here
    python benchmarks/data.py --json figures.json

`prepare` reads the JSON, checks the header and the end of every picture and writes finished shards; `tar` copies the same
files into one archive; ShardWriter is fed as the public LLaVA converter feeds it. Each is timed from an open Python (tar:
from its start) to finished files, in turn, several times, with the pictures in the page cache; the best time counts, and
the median is told beside it. Energon's index, the same for all, is timed on its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from qwen3vl_core.data import energon, sources
from qwen3vl_core.data.prepare import read_samples
from qwen3vl_core.data.prepare_check import Checker
from qwen3vl_core.data.prepare_work import Workers, worker_count
from qwen3vl_core.data.prepare_write import plan_shards, write_shards

SIDE = 336
SHARD_SIZE = 500_000_000
QUESTIONS = ("Render a clear and concise summary of the photo.\n<image>", "<image>\nWhat is this?")
WORDS = ("a", "dog", "on", "the", "beach", "with", "woman", "red", "car")
TARGETS = {"shards_over_tar": 0.8, "shards_over_shardwriter": 4.0}


def make_source(folder: Path, count: int) -> Path:
    """`count` pictures of about 26 kB in folders of a thousand, and the LLaVA list that names them."""
    records = []
    for number in range(count):
        random = np.random.RandomState(number)
        image = Image.fromarray(random.randint(0, 255, (12, 12, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = random.randint(0, SIDE, 2).tolist()
            width, height = random.randint(10, 120, 2).tolist()
            draw.ellipse([x, y, x + width, y + height], fill=tuple(random.randint(0, 255, 3).tolist()))
        noisy = np.asarray(image, dtype=np.int16) + random.normal(0, 10.3, (SIDE, SIDE, 3)).astype(np.int16)
        name = f"pictures/{number // 1000:05d}/{number:09d}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name, quality=80)
        answer = " ".join(random.choice(WORDS, random.randint(6, 25)))
        turns = [{"from": "human", "value": QUESTIONS[number % 2]}, {"from": "gpt", "value": answer}]
        records.append({"id": f"{number:09d}", "image": name, "conversations": turns})
    source = folder / "captions.json"
    source.write_text(json.dumps(records))
    return source


def write_with_prepare(source: Path, target: Path, workers: int) -> list[str]:
    """What `qwen3vl prepare --check header` does up to the index; the names of the shards."""
    with Workers(workers, Checker(source.parent, "header")) as pool:
        samples, refused = read_samples(sources.find(source), pool)
        if refused:
            raise ValueError(f"{len(refused)} records were refused")
        shards = plan_shards("train", samples, SHARD_SIZE)
        write_shards(target, shards, pool)
    return [shard.name for shard in shards]


def write_with_tar(source: Path, target: Path) -> None:
    """The same pictures into one archive."""
    subprocess.run(["tar", "-cf", str(target / "train-00000.tar"), "-C", str(source.parent), "pictures"], check=True)


def write_with_shardwriter(source: Path, target: Path) -> None:
    """As the public converter does: a dictionary a sample, the picture's bytes and the conversation as JSON."""
    import webdataset

    records = json.loads(source.read_text())
    with webdataset.ShardWriter(str(target / "train-%05d.tar"), maxsize=SHARD_SIZE, maxcount=10**9, verbose=0) as writer:
        for record in records:
            picture = (source.parent / record["image"]).read_bytes()
            writer.write({"__key__": record["id"], "jpg": picture, "json": json.dumps(record["conversations"]).encode()})


def timed(work: Callable[[Path], Any], folder: Path) -> float:
    """Seconds of `work` into a fresh folder."""
    target = folder / "written"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    begin = time.perf_counter()
    work(target)
    return time.perf_counter() - begin


def shard_figures(folder: Path, source: Path, count: int, repeats: int, workers: int) -> dict[str, Any]:
    """Samples a second of each way, best and median of `repeats` rounds, and how they stand to each other."""
    ways: dict[str, Callable[[Path], Any]] = {
        "prepare": lambda target: write_with_prepare(source, target, workers),
        "prepare_one_process": lambda target: write_with_prepare(source, target, 1),
        "tar": lambda target: write_with_tar(source, target),
        "shardwriter": lambda target: write_with_shardwriter(source, target),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            seconds[name].append(timed(work, folder))
    names: list[str] = []
    timed(lambda target: names.extend(write_with_prepare(source, target, workers)), folder)
    begin = time.perf_counter()
    energon.make_index(folder / "written", names, "benchmark")
    index = time.perf_counter() - begin
    rates = {name: {"best": count / min(taken), "median": count / statistics.median(taken)} for name, taken in seconds.items()}
    return {
        "samples": count,
        "processes": worker_count(workers),
        "samples_per_second": rates,
        "index_seconds": index,
        "shards_over_tar": rates["prepare"]["best"] / rates["tar"]["best"],
        "shards_over_shardwriter": rates["prepare"]["best"] / rates["shardwriter"]["best"],
        "shards_over_tar_median": rates["prepare"]["median"] / rates["tar"]["median"],
        "shards_over_shardwriter_median": rates["prepare"]["median"] / rates["shardwriter"]["median"],
        "one_process_over_tar": rates["prepare_one_process"]["best"] / rates["tar"]["best"],
    }


def extend(figures: dict[str, Any], more: dict[str, Any], targets: dict[str, float] | None = None) -> None:
    """Add figures of another part; `targets` says which of them must reach how much."""
    figures |= more
    figures.setdefault("targets", {}).update(targets or {})


def parts(given: argparse.Namespace, folder: Path, source: Path, figures: dict[str, Any]) -> None:
    """Every part of the benchmark, on the same files. A part adds its figures by `extend`."""
    # before anything imports torch: the processes are forked, as in the command
    extend(figures, shard_figures(folder, source, given.samples, given.repeats, given.workers), TARGETS)


def table(figures: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{figures['samples']:,} pictures, {figures['processes']} processes; samples a second, best (median)"]
    for name, rate in figures["samples_per_second"].items():
        lines.append(f"  {name:20s} {rate['best']:10,.0f} ({rate['median']:,.0f})")
    lines.append(f"  Energon's index takes {figures['index_seconds']:.2f} s more, whoever wrote the shards")
    for name, least in figures["targets"].items():
        lines.append(f"  {name:26s} {figures[name]:6.2f}   at least {least:g}: {'yes' if figures[name] >= least else 'NO'}")
    return "\n".join(lines)


def main() -> int:
    """1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0, help="processes of prepare; 0: one a core")
    parser.add_argument("--dir", type=Path, help="where to write; the default is the system's temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    os.environ["QWEN3VL_PROGRESS"] = "none"
    figures: dict[str, Any] = {"v": 1}
    with tempfile.TemporaryDirectory(dir=given.dir) as name:
        folder = Path(name)
        source = make_source(folder / "source", given.samples)
        with contextlib.redirect_stdout(sys.stderr):
            parts(given, folder, source, figures)
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(figures[name] < least for name, least in figures["targets"].items()))


if __name__ == "__main__":
    sys.exit(main())
