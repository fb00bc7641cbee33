"""How fast `prepare` reads each layout of the same pictures, and how much memory it takes for very many records.

    python benchmarks/readers.py                       # 3,000 pictures, every layout; each is compared with `tar` of the pictures
    python benchmarks/readers.py --records 1000000     # that many records as JSON and as parquet: the most memory of all processes

A layout's rate is that of the whole work of `prepare` up to the index, in a new process that has imported what it needs, with
the pictures in the page cache. Layouts and tar take turns; a ratio is the median of the rounds' ratios, and the best round is
shown beside it. Processor time is that of all processes of a way in its best round: on a busy machine it says what the wall
clock cannot. Memory is the largest sum of the processes' proportional shares (Pss), sampled four times a second.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import SHARD_SIZE, Spent, apart, fresh, make_source, timed, write_with_tar

from qwen3vl_core.data.prepare.check import Checker
from qwen3vl_core.data.prepare.command import read_samples
from qwen3vl_core.data.prepare.shard_writer import plan_shards, write_shards
from qwen3vl_core.data.workers import Workers

LEAST = 0.64
"""A layout over tar: within 20 % of the 0.8 that a LLaVA list must reach."""
MOST_GIB = 1.0
INLINE = ("data URLs",)
"""Layouts whose pictures are text, a third longer, that must be decoded: no copy of files to compare with."""


def prepared(source: Path, target: Path, workers: int) -> None:
    """What `qwen3vl prepare --check header` does up to the index."""
    from qwen3vl_core.data import sources
    from qwen3vl_core.data.byte_ranges import Spool

    located = sources.locate(source)
    spool = Spool(target / "media")
    with Workers(workers, Checker(located.root, "header", spool)) as pool:
        _, samples, refused = read_samples(source, pool, located=located)
        if refused or not samples:
            raise ValueError(f"{source}: {len(refused)} records were refused: {refused[0].detail}")
        write_shards(target, plan_shards("train", samples, SHARD_SIZE), pool)
    spool.close()


def table_of(rows: list[dict[str, Any]], file: Path) -> None:
    """A parquet file as Hugging Face's `datasets` writes it: 100 pictures in a row group, or 1,000 rows without."""
    import pyarrow
    import pyarrow.parquet

    inline = isinstance(rows[0]["image"], dict)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=100 if inline else 1000)


def layouts(source: Path) -> dict[str, Path]:
    """Name -> the source in this layout, made here beside the LLaVA list."""
    root = source.parent
    records = json.loads(source.read_text())
    contents = [(root / record["image"]).read_bytes() for record in records]
    turns = [[turn["value"] for turn in record["conversations"]] for record in records]
    questions = [question.replace("<image>", "").strip() for question, _ in turns]
    answers = [answer for _, answer in turns]

    def lines(name: str, made: list[dict[str, Any]]) -> Path:
        (root / name).write_text("".join(json.dumps(record) + "\n" for record in made))
        return root / name

    def parts(image: Any, number: int) -> dict[str, Any]:
        content = [image, {"type": "text", "text": questions[number]}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answers[number]}]}

    names = [record["image"] for record in records]
    everything = range(len(records))
    found = {
        "LLaVA list": source,
        "messages, lines": lines("messages.jsonl", [
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "images": [name]}
            for (question, answer), name in zip(turns, names, strict=True)
        ]),
        "content parts": lines("parts.jsonl", [parts({"type": "image", "image": names[n]}, n) for n in everything]),
        "question and answer": lines("qa.jsonl", [{"image": names[n], "question": questions[n], "answer": answers[n]} for n in everything]),
        "data URLs": lines("urls.jsonl", [
            parts({"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(contents[n]).decode()}}, n)
            for n in everything
        ]),
    }  # fmt: skip
    with open(root / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *zip(names, answers, strict=True)])
    found["CSV"] = root / "captions.csv"
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "caption": answer} for n, answer in enumerate(answers)]
    (root / "coco.json").write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    found["COCO"] = root / "coco.json"
    table_of(
        [{"image": name, "conversations": record["conversations"]} for name, record in zip(names, records, strict=True)],
        root / "names.parquet",
    )
    found["parquet of names"] = root / "names.parquet"
    rows = [{"image": {"bytes": contents[n], "path": None}, "conversations": records[n]["conversations"]} for n in everything]
    table_of(rows, root / "bytes.parquet")
    found["parquet of bytes"] = root / "bytes.parquet"
    (root / "webdataset").mkdir()
    with tarfile.open(root / "webdataset" / "x-00000.tar", "w") as archive:
        for n in everything:
            for ending, content in (("jpg", contents[n]), ("json", json.dumps(records[n]["conversations"]).encode())):
                entry = tarfile.TarInfo(f"{n:08d}.{ending}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    found["WebDataset, Pai's wds"] = root / "webdataset"
    lines("metadata.jsonl", [{"file_name": name, "text": answer} for name, answer in zip(names, answers, strict=True)])
    found["imagefolder"] = root / "metadata.jsonl"
    return found


def rates(count: int, repeats: int, workers: int, folder: Path) -> int:
    """Print a row for each layout; 1 when one is too slow."""
    source = make_source(folder / "source", count)
    found = layouts(source)
    ways: dict[str, Callable[[Path], Spent]] = {"tar": lambda target: timed(lambda: write_with_tar(source, target))}

    def way(path: Path) -> Callable[[Path], Spent]:
        def run(target: Path) -> Spent:
            with apart("pyarrow.parquet") as command:
                return command(prepared, path, target, workers)

        return run

    ways |= {name: way(path) for name, path in found.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            wall, busy = work(fresh(folder))
            # the first round warms up
            if turn:
                seconds[name].append(wall)
                processor[name].append(busy)
    slow = []
    print(f"{count:,} pictures; samples a second (best), over tar: median, and best over best; processor time of one")
    for name, rounds in seconds.items():
        ratios = [theirs / ours for ours, theirs in zip(rounds, seconds["tar"], strict=True)]
        best, busy = min(seconds["tar"]) / min(rounds), min(processor[name]) / count * 1e6
        print(f"  {name:24s} {count / min(rounds):8,.0f}   {statistics.median(ratios):5.2f}   {best:5.2f}   {busy:6.1f} us")
        if max(statistics.median(ratios), best) < LEAST and name not in INLINE:
            slow.append(name)
    print(f"at least {LEAST:g}: {'yes' if not slow else 'NO: ' + ', '.join(slow)}")
    return int(bool(slow))


def tree(process: int) -> list[int]:
    """A process and all below it."""
    try:
        below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        below = []
    return [process, *(found for child in below for found in tree(int(child)))]


def shares(process: int) -> int:
    """Bytes of memory that a process and all below it take, what they share counted once."""
    total = 0
    for each in tree(process):
        try:
            rows = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(row.split()[1]) << 10 for row in rows if row.startswith("Pss:")), 0)
    return total


def memory(count: int, workers: int, folder: Path) -> int:
    """Print the most memory that `prepare` takes for `count` records, each naming a picture; 1 when it is too much."""
    import pyarrow
    import pyarrow.parquet

    make_source(folder, 100)

    def record(number: int) -> dict[str, Any]:
        question = f"<image>\nQuestion {number}: what is to be seen here, and what is its colour?"
        answer = f"This is number {number}: a dog on a beach with a red car, and a woman who walks towards it."
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"id": f"record-{number}", "image": f"pictures/00000/{number % 100:09d}.jpg", "conversations": turns}

    with open(folder / "many.json", "w") as file:
        for number in range(count):
            file.write(("[" if not number else ",\n") + json.dumps(record(number)))
        file.write("]\n")
    schema = pyarrow.Table.from_pylist([record(0)]).schema
    with pyarrow.parquet.ParquetWriter(folder / "many.parquet", schema) as writer:
        for begin in range(0, count, 20_000):
            made = [record(number) for number in range(begin, min(begin + 20_000, count))]
            writer.write_table(pyarrow.Table.from_pylist(made, schema))
    # pictures of a few bytes: it is the records that are measured, not the disk
    for picture in (folder / "pictures" / "00000").iterdir():
        from PIL import Image

        Image.new("RGB", (32, 32)).save(picture)
    too_much = 0
    for name in ("many.json", "many.parquet"):
        target, began, most = folder / "written", time.monotonic(), 0
        command = [str(Path(sys.executable).with_name("qwen3vl")), "prepare", str(folder / name), "--to", str(target), "--overwrite"]
        process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            most = max(most, shares(process.pid))
            time.sleep(0.25)
        if process.returncode:
            raise SystemExit(f"prepare of {name} failed")
        print(f"  {name:14s} {(folder / name).stat().st_size / 1e6:6,.0f} MB: {most / 2**30:.2f} GiB, {time.monotonic() - began:,.0f} s")
        too_much |= most > MOST_GIB * 2**30
    print(f"{count:,} records within {MOST_GIB:g} GiB: {'NO' if too_much else 'yes'}")
    return int(too_much)


def main() -> int:
    """1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="processes of prepare; 0: one a core")
    parser.add_argument("--records", type=int, help="measure the memory for so many records instead")
    parser.add_argument("--dir", type=Path, help="where to write; the default is the system's temporary folder")
    args = parser.parse_args()
    os.environ["QWEN3VL_PROGRESS"] = "none"
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        if args.records:
            return memory(args.records, args.workers, Path(name))
        return rates(args.samples, args.repeats, args.workers, Path(name))


if __name__ == "__main__":
    sys.exit(main())
