"""The data path compared with others on the same files in one run: shards, the loader, packing.

    python benchmarks/data.py                      # 3,000 pictures of 336x336, made here
    python benchmarks/data.py --json               # the figures as one JSON object; --json FILE writes them there

`prepare` reads the JSON, checks the header and the end of every picture and writes finished shards; `tar` copies the same
files into one archive; ShardWriter is fed as the public LLaVA converter feeds it. Each is timed from an open Python (tar:
from its start) to finished files, in turn, several times, with the pictures in the page cache. `prepare` is a new process
each time, as the command is; ShardWriter has one for all rounds, which has imported it, and torch with it, before. Processor
time is that of all processes of a way: on a busy machine it says what the wall clock cannot.
The index is timed on its own, and so is Energon making it from the shards. The loader, in this process, gives out batches of
one sample from those shards; Hugging Face's `Qwen3VLProcessor` with the Pillow backend is given the same pictures and
conversations, in turn. A ratio is the median of the rounds' ratios: what else the machine does weighs on both. Packing is
measured over one epoch of conversations whose lengths are spread as LLaVA's instructions are, at 4,096 tokens a row.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import qwen3vl_core
from qwen3vl_core.data import energon
from qwen3vl_core.data.media_limits import MediaLimits
from qwen3vl_core.data.prepare.check import Checker
from qwen3vl_core.data.prepare.command import read_samples
from qwen3vl_core.data.prepare.shard_writer import Shard, plan_shards, write_shards
from qwen3vl_core.data.workers import Workers, worker_count

SIDE = 336
SHARD_SIZE = 500_000_000
QUESTIONS = ("Render a clear and concise summary of the photo.\n<image>", "<image>\nWhat is this?")
WORDS = ("a", "dog", "on", "the", "beach", "with", "woman", "red", "car")
TARGETS = {"shards_over_tar": 0.8, "shards_over_shardwriter": 4.0}
LOADER_TARGETS = {"loader_over_hf_processor": 3.0, "packing_efficiency": 0.97}
CHECKPOINT = Path(qwen3vl_core.__file__).parent / "demo" / "base_hf"
ROW = 4096
AREAS = (65536, 16777216)
"""Pixels that Qwen3-VL resizes a picture into; the tiny checkpoint has smaller ones."""


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


APART = "apart"
Spent = tuple[float, float]
"""Wall-clock seconds and CPU seconds."""


def write_with_prepare(source: Path, target: Path, workers: int) -> list[Shard]:
    """What `qwen3vl prepare --check header` does up to the index; the shards."""
    with Workers(workers, Checker(source.parent, "header")) as pool:
        _, samples, refused = read_samples(source, pool)
        if refused:
            raise ValueError(f"{len(refused)} records were refused")
        shards = plan_shards("train", samples, SHARD_SIZE)
        write_shards(target, shards, pool)
    return shards


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


def index_with_energon(target: Path, names: list[str]) -> None:
    """The index as Energon makes it, reading the shards."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors import BaseWebdatasetFactory

    patterns = [(split, f"{split}-[0-9]+[.]tar") for split in energon.SPLITS]
    with contextlib.redirect_stdout(sys.stderr):
        BaseWebdatasetFactory.prepare_dataset(
            EPath(target.absolute()), names, split_parts_patterns=patterns, tar_index_only=False, shuffle_seed=None, workers=1
        )


def spent() -> Spent:
    """Wall and CPU seconds of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def timed(work: Callable[[], Any]) -> Spent:
    """What `work` takes."""
    begin = spent()
    work()
    done = time.perf_counter()
    for process in multiprocessing.active_children():
        # those of prepare, which end by themselves; what they used is counted when they are waited for
        if process.name != APART:
            process.join()
    return done - begin[0], spent()[1] - begin[1]


def fresh(folder: Path) -> Path:
    """An empty folder to write to."""
    target = folder / "written"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return target


def _serve(connection: Any, imported: str | None) -> None:
    if imported is not None:
        # before anything is timed
        importlib.import_module(imported)
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        connection.send(timed(lambda: work(*arguments)))  # noqa: B023 - called at once


@contextlib.contextmanager
def apart(imported: str | None = None) -> Iterator[Callable[..., Spent]]:
    """A new Python process that has imported what it needs; yields a function that runs work in it and returns the time."""
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, imported), name=APART)
    process.start()
    other.close()

    def done(work: Callable[..., Any], *arguments: Any) -> Spent:
        connection.send((work, arguments))
        return connection.recv()

    try:
        yield done
    finally:
        connection.close()
        process.join()


def shard_figures(folder: Path, source: Path, count: int, repeats: int, workers: int) -> dict[str, Any]:
    """Samples per second of each way, best and median of `repeats` rounds, and their ratios."""

    def prepared(target: Path, processes: int) -> Spent:
        with apart() as command:
            return command(write_with_prepare, source, target, processes)

    with apart("webdataset") as other:
        ways: dict[str, Callable[[Path], Spent]] = {
            "prepare": lambda target: prepared(target, workers),
            "prepare_one_process": lambda target: prepared(target, 1),
            "tar": lambda target: timed(lambda: write_with_tar(source, target)),
            "shardwriter": lambda target: other(write_with_shardwriter, source, target),
        }
        # warm up: what is read or imported for the first time
        for work in ways.values():
            work(fresh(folder))
        rounds: dict[str, list[Spent]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, work in ways.items():
                rounds[name].append(work(fresh(folder)))
        target = fresh(folder)
        shards = write_with_prepare(source, target, workers)
        index = timed(lambda: energon.write_index(target, [(shard.name, shard.entries()) for shard in shards], "benchmark"))
        shutil.rmtree(target / energon.FOLDER)
        theirs = other(index_with_energon, target, [shard.name for shard in shards])
    seconds = {name: [wall for wall, _ in taken] for name, taken in rounds.items()}
    processors = {name: [processor for _, processor in taken] for name, taken in rounds.items()}
    return {
        "samples": count,
        "processes": worker_count(workers),
        "samples_per_second": rates(seconds, count),
        "processor_us_per_sample": {name: statistics.median(taken) / count * 1e6 for name, taken in processors.items()},
        "index_seconds": index[0],
        "energon_index_seconds": theirs[0],
        "shards_over_tar": ratio(seconds, "prepare", "tar"),
        "shards_over_shardwriter": ratio(seconds, "prepare", "shardwriter"),
        "one_process_over_tar": ratio(seconds, "prepare_one_process", "tar"),
    }


def rates(seconds: dict[str, list[float]], count: int) -> dict[str, dict[str, float]]:
    """Samples a second of each way, best and median."""
    return {name: {"best": count / min(taken), "median": count / statistics.median(taken)} for name, taken in seconds.items()}


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """How many times as fast as theirs ours is: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def hugging_face(source: Path, count: int) -> Callable[[], None]:
    """A round of `Qwen3VLProcessor` (Pillow backend) over the first `count` records: file to tensors."""
    from transformers import AutoTokenizer, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutVideo(Qwen3VLProcessor):
        # the video processor needs torchvision
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    processor = WithoutVideo(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(
            CHECKPOINT, size=dict(zip(("shortest_edge", "longest_edge"), AREAS, strict=True))
        ),
        tokenizer=AutoTokenizer.from_pretrained(CHECKPOINT),
        video_processor=None,
        chat_template=(CHECKPOINT / "chat_template.jinja").read_text(),
    )
    records = json.loads(source.read_text())[:count]

    def once() -> None:
        for record in records:
            question, answer = (turn["value"] for turn in record["conversations"])
            shown = [{"type": "image"}, {"type": "text", "text": question.replace("<image>", "").strip()}]
            turns: list[Any] = [{"role": "user", "content": shown}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            text = processor.apply_chat_template(turns, tokenize=False)
            with Image.open(source.parent / record["image"]) as image:
                processor(text=[text], images=[image.convert("RGB")], return_tensors="pt")

    return once


def loader_figures(folder: Path, source: Path, count: int, repeats: int) -> dict[str, Any]:
    """Samples a second of the loader in this process, as training takes them and normalised here too, and of Hugging Face's."""
    import torch

    from qwen3vl_core.data.loader import build_loader
    from qwen3vl_core.data.prepare import command as prepare
    from qwen3vl_core.data.processor import ChatProcessor
    from qwen3vl_core.options import PrepareOptions

    torch.set_num_threads(1)
    prepare.run(PrepareOptions(source=str(source), to=str(folder / "loaded"), split="1,0,0", workers=1, overwrite=True))
    processor = ChatProcessor.from_pretrained(CHECKPOINT, MediaLimits(*AREAS))

    def ours(normalise: bool) -> None:
        loader = build_loader(folder / "loaded", "train", processor, micro_batch_size=1, global_batch_size=1, seq_length=ROW)
        for _ in range(count):
            (batch,) = next(loader)
            if normalise:
                batch.model_inputs("cpu", torch.float32)
        loader.close()

    ways = {"loader": lambda: ours(False), "loader_and_normalising": lambda: ours(True), "hf_processor": hugging_face(source, count)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            begin = time.perf_counter()
            work()
            # the first round warms up
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {
        "loader_samples_per_second": rates(seconds, count),
        "loader_over_hf_processor": ratio(seconds, "loader", "hf_processor"),
        "loader_and_normalising_over_hf_processor": ratio(seconds, "loader_and_normalising", "hf_processor"),
    }


def packing_figures(folder: Path, source: Path, count: int) -> dict[str, Any]:
    """How full the rows of an epoch are, and how fast they come."""
    from qwen3vl_core.data.loader import build_loader
    from qwen3vl_core.data.prepare import command as prepare
    from qwen3vl_core.data.processor import ChatProcessor
    from qwen3vl_core.options import PrepareOptions

    random = np.random.RandomState(7)
    records = json.loads(source.read_text())[:count]
    for record in records:
        # words: half of the conversations below 200, one in twenty above 900, as LLaVA's instructions
        words = int(min(random.lognormal(5.3, 0.9), 3000))
        record["conversations"][1]["value"] = " ".join(random.choice(WORDS, max(3, words)))
    long = source.parent / "long.json"
    long.write_text(json.dumps(records))
    prepare.run(PrepareOptions(source=str(long), to=str(folder / "packed"), split="1,0,0", workers=1, overwrite=True))
    processor = ChatProcessor.from_pretrained(CHECKPOINT, MediaLimits(*AREAS))
    loader = build_loader(folder / "packed", "train", processor, micro_batch_size=1, global_batch_size=1, seq_length=ROW, packing=True)
    begin = time.perf_counter()
    while loader.used < count - sum(loader.skipped.values()):
        next(loader)
    seconds = time.perf_counter() - begin
    loader.close()
    return {
        "packing_efficiency": loader.efficiency,
        "packing": {
            "samples": loader.used,
            "too_long": sum(loader.skipped.values()),
            "row": ROW,
            "samples_per_second": loader.used / seconds,
        },
    }


def extend(figures: dict[str, Any], more: dict[str, Any], targets: dict[str, float] | None = None) -> None:
    """Add figures of another part; `targets` says which of them must reach how much."""
    figures |= more
    figures.setdefault("targets", {}).update(targets or {})


def parts(args: argparse.Namespace, folder: Path, source: Path, figures: dict[str, Any]) -> None:
    """Every part of the benchmark, on the same files. A part adds its figures by `extend`."""
    # before anything imports torch: the processes are forked, as in the command
    extend(figures, shard_figures(folder, source, args.samples, args.repeats, args.workers), TARGETS)
    extend(figures, loader_figures(folder, source, min(args.samples, args.loaded), max(1, args.repeats - 2)))
    extend(figures, packing_figures(folder, source, args.samples), LOADER_TARGETS)


def table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{figures['samples']:,} pictures, {figures['processes']} processes; samples a second, best (median); processor time of one"]
    for name, rate in figures["samples_per_second"].items():
        shown = f"{rate['best']:,.0f} ({rate['median']:,.0f})"
        lines.append(f"  {name:20s} {shown:>20s} {figures['processor_us_per_sample'][name]:8.1f} us")
    lines.append(
        f"  the index takes {figures['index_seconds']:.2f} s more; Energon takes {figures['energon_index_seconds']:.2f} s to make it"
    )
    lines.append("tokens and patches of one sample after the other, in one process; samples a second, best (median)")
    for name, rate in figures["loader_samples_per_second"].items():
        lines.append(f"  {name:22s} {rate['best']:8,.0f} ({rate['median']:,.0f})")
    packed = figures["packing"]
    lines.append(
        f"rows of {packed['row']:,} tokens: {packed['samples']:,} samples in an epoch, {packed['samples_per_second']:,.0f} samples a second"
    )
    for name, least in figures["targets"].items():
        lines.append(f"  {name:26s} {figures[name]:6.2f}   at least {least:g}: {'yes' if figures[name] >= least else 'NO'}")
    return "\n".join(lines)


def main() -> int:
    """1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--loaded", type=int, default=300, help="samples of one round of the loader and of Hugging Face's processor")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0, help="processes of prepare; 0: one a core")
    parser.add_argument("--dir", type=Path, help="where to write; the default is the system's temporary folder")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print the figures as JSON instead, or write them there")
    args = parser.parse_args()
    os.environ["QWEN3VL_PROGRESS"] = "none"
    figures: dict[str, Any] = {"v": 1}
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        source = make_source(folder / "source", args.samples)
        with contextlib.redirect_stdout(sys.stderr):
            parts(args, folder, source, figures)
    if args.json == "-":
        print(json.dumps(figures))
    else:
        print(table(figures))
    if args.json not in (None, "-"):
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(figures[name] < least for name, least in figures["targets"].items()))


if __name__ == "__main__":
    sys.exit(main())
