"""`qwen3vl prepare`: pictures and conversations to shards with an Energon index. Imports no torch before the index.

Everything is checked before the first byte is written; the dataset is built beside its place and renamed into it. The
same input gives the same bytes: a fixed shuffle, splits by sample count, shards cut by size, no times, no owners.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from qwen3vl_core.data import energon, llava
from qwen3vl_core.data.energon import SPLITS
from qwen3vl_core.data.faults import REASONS, DataError, listed
from qwen3vl_core.data.pictures import check_picture
from qwen3vl_core.data.tar import BLOCK, RECORD, TarWriter, member_size
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import check_target, folder_made_whole, need_space, write_text
from qwen3vl_core.options import PrepareOptions, options_of
from qwen3vl_core.progress import Progress, quantity

REPORT = "report.json"
REFUSED = "refused.jsonl"
SHUFFLE_SEED = 20
_CHECKED_AT_ONCE = 4096
_SHARD_ENDING = RECORD + 2 * BLOCK
"""Bytes that the end of an archive takes at most."""
_INDEX_BYTES = 400
"""What a sample takes in the index, generously."""


@dataclass
class Share:
    """What one split holds."""

    samples: int = 0
    pictures: int = 0
    turns: int = 0
    bytes: int = 0
    shards: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """A record that will be written, and where its pictures are."""

    record: llava.Record
    pictures: tuple[Path, ...]
    size: int
    """Bytes in its shard."""


def run(options: PrepareOptions) -> None:
    """Make the dataset that `options` ask for, and say what is in it.

    Raises RequestError when the request or its files are wrong, WorkError when the disk fills up; nothing is left then.
    """
    for declared in options_of(PrepareOptions):
        declared.check(getattr(options, declared.name))
    shares = parse_split(options.split)
    source, target = Path(options.source).expanduser(), Path(options.to).expanduser()
    images = Path(options.images).expanduser() if options.images else source.parent
    _check_places(source, target, images, overwrite=options.overwrite)
    records = llava.read(source)
    sizes, faults = _check_pictures(records, images, options.check)
    samples, refused = _choose(records, images, sizes, faults)
    if refused and not options.skip_missing:
        raise RequestError(_refusal(refused, len(records), source, images))
    if not samples:
        state = f"no sample is left of {len(records):,} ({_reasons(refused)})"
        raise RequestError(f"{source}: {state}; put the pictures under {images}, or give --images")
    counts = split_counts(len(samples), shares, options.split)
    _check_shard_size(samples, options.shard_size)
    need_space(target, sum(s.size for s in samples) + _INDEX_BYTES * len(samples), "dataset")
    with folder_made_whole(target, what="prepare") as building:
        report = _build(building, samples, counts, options, refused)
    print(table(report, target))


def parse_split(text: str) -> tuple[float, float, float]:
    """`9,1,0` -> shares of training, validation and test. Raises RequestError."""
    try:
        shares = tuple(float(word) for word in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != len(SPLITS) or not all(math.isfinite(s) and s >= 0 for s in shares) or not sum(shares):
        raise RequestError(f"--split {text}: must be three numbers, the shares of training, validation and test; use 9,1,0")
    return shares


def split_counts(samples: int, shares: tuple[float, ...], text: str) -> list[int]:
    """Samples of each split: as near to the shares as whole samples allow, and none of those asked for left empty.

    Raises RequestError when there are fewer samples than splits asked for.
    """
    asked = [i for i, share in enumerate(shares) if share > 0]
    if samples < len(asked):
        way_out = ",".join("1" if i == asked[0] else "0" for i in range(len(shares)))
        have = "one sample" if samples == 1 else f"{samples} samples"
        raise RequestError(f"--split {text}: {have} cannot fill {len(asked)} splits; use --split {way_out}, or give more samples")
    ideal = [samples * (share / sum(shares)) for share in shares]
    counts = [max(1, math.floor(ideal[i])) if i in asked else 0 for i in range(len(shares))]
    while sum(counts) < samples:
        counts[max(asked, key=lambda i: ideal[i] - counts[i])] += 1
    while sum(counts) > samples:
        counts[max((i for i in asked if counts[i] > 1), key=lambda i: counts[i] - ideal[i])] -= 1
    return counts


def _check_places(source: Path, target: Path, images: Path, *, overwrite: bool) -> None:
    """Raises RequestError unless the dataset can be read from where it is and written to where it shall be."""
    if not source.exists():
        raise RequestError(f"{source}: no such file; give the JSON list of conversations")
    if not images.is_dir():
        state = "not a folder" if images.exists() else "no such folder"
        raise RequestError(f"--images {images}: {state}; give the folder that the pictures' names are relative to")
    check_target(target, overwrite=overwrite, what="dataset")
    if not target.is_dir() or not any(target.iterdir()):
        return
    # --overwrite replaces datasets only: a slip of the keyboard must not empty somebody's folder
    if not (target / energon.FOLDER).is_dir():
        raise RequestError(f"--overwrite {target}: holds something that is no dataset; choose another folder")
    place = target.resolve()
    for name, path in (("SOURCE", source), ("--images", images)):
        if path.resolve().is_relative_to(place):
            raise RequestError(f"--overwrite {target}: {name} {path} lies in it and would be lost; choose another folder")


def _check_pictures(records: list[llava.Record], images: Path, how: str) -> tuple[dict[str, int], dict[str, DataError]]:
    """(size of each good picture, fault of each other one), by name."""
    names = list(dict.fromkeys(name for record in records for name in record.pictures))
    sizes: dict[str, int] = {}
    faults: dict[str, DataError] = {}

    def check(name: str) -> int | DataError:
        try:
            return check_picture(images / name, how)
        except DataError as fault:
            return fault

    if not names:
        return sizes, faults
    # threads: on shared storage the time goes into waiting, and Pillow decodes without the interpreter's lock
    with Progress("check", total=len(names), unit="pictures") as progress, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for begin in range(0, len(names), _CHECKED_AT_ONCE):
            block = names[begin : begin + _CHECKED_AT_ONCE]
            for name, found in zip(block, pool.map(check, block, chunksize=64), strict=True):
                if isinstance(found, DataError):
                    faults[name] = found
                else:
                    sizes[name] = found
                progress.update(1)
    return sizes, faults


def _choose(
    records: list[llava.Record], images: Path, sizes: dict[str, int], faults: dict[str, DataError]
) -> tuple[list[Sample], list[tuple[llava.Record, DataError]]]:
    """(samples to write, records with a picture that cannot be used)"""
    samples, refused = [], []
    for record in records:
        fault = next((faults[name] for name in record.pictures if name in faults), None)
        if fault is not None:
            refused.append((record, fault))
            continue
        size = member_size(len(record.payload())) + sum(member_size(sizes[name]) for name in record.pictures)
        samples.append(Sample(record, tuple(images / name for name in record.pictures), size))
    return samples, refused


def _refusal(refused: list[tuple[llava.Record, DataError]], total: int, source: Path, images: Path) -> str:
    entries = [f"record {record.number}: {fault.detail}" for record, fault in refused]
    return (
        f"{source}: {len(refused):,} of {total:,} records have a picture that cannot be used ({_reasons(refused)}): {listed(entries)}; "
        f"put the pictures under {images}, give --images, or add --skip-missing to leave those records out"
    )


def _reasons(refused: list[tuple[llava.Record, DataError]]) -> str:
    counts = Counter(fault.reason for _, fault in refused)
    return ", ".join(f"{REASONS[reason]}: {count:,}" for reason, count in counts.most_common())


def _check_shard_size(samples: list[Sample], shard_size: int) -> None:
    largest = max(samples, key=lambda s: s.size)
    if largest.size + _SHARD_ENDING > shard_size:
        raise RequestError(
            f"--shard-size {shard_size}: record {largest.record.number} alone takes {largest.size:,} bytes; "
            f"use at least {largest.size + _SHARD_ENDING}"
        )


def _build(folder: Path, samples: list[Sample], counts: list[int], options: PrepareOptions, refused: list) -> dict:
    """Write shards, index and report into `folder`; returns the report."""
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(samples)).tolist()
    identity = hashlib.sha256()
    splits: dict[str, Share] = {}
    total = sum(s.size for s in samples)
    with Progress("write", total=total, unit="B") as progress:
        begin = 0
        for name, count in zip(SPLITS, counts, strict=True):
            chosen = [samples[i] for i in order[begin : begin + count]]
            begin += count
            splits[name] = _write_split(folder, name, chosen, options.shard_size, identity, progress)
    shards = [shard for share in splits.values() for shard in share.shards]
    energon.make_index(folder, shards, identity.hexdigest())
    report = {
        "v": 1,
        "source": str(options.source),
        "images": options.images,
        "check": options.check,
        "samples": len(samples),
        "pictures": sum(len(s.pictures) for s in samples),
        "turns": sum(len(s.record.turns) for s in samples),
        "bytes": total,
        "refused": dict(Counter(fault.reason for _, fault in refused)),
        "splits": {name: asdict(share) for name, share in splits.items()},
    }
    write_text(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if refused:
        rows = ({"record": r.number, "id": r.id, "reason": fault.reason, "detail": fault.detail} for r, fault in refused)
        write_text(folder / REFUSED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return report


def _shards(samples: list[Sample], shard_size: int) -> Iterator[list[Sample]]:
    """Cut in order; a shard is as long as `shard_size` bytes allow."""
    shard: list[Sample] = []
    size = _SHARD_ENDING
    for sample in samples:
        if shard and size + sample.size > shard_size:
            yield shard
            shard, size = [], _SHARD_ENDING
        shard.append(sample)
        size += sample.size
    if shard:
        yield shard


def _write_split(folder: Path, name: str, samples: list[Sample], shard_size: int, identity, progress: Progress) -> Share:
    share = Share()
    for number, shard in enumerate(_shards(samples, shard_size)):
        file = f"{name}-{number:05d}.tar"
        with TarWriter(folder / file) as tar:
            for sample in shard:
                payload = sample.record.payload()
                before = tar.size
                tar.add(f"{sample.record.key}.json", payload)
                for part, path in zip(sample.record.parts, sample.pictures, strict=True):
                    tar.add(f"{sample.record.key}.{part}", _picture_bytes(path, sample))
                if tar.size - before != sample.size:
                    raise WorkError(f"record {sample.record.number}: a picture changed while it was read; run the prepare again")
                identity.update(b"%s %d %d\n%s\n" % (file.encode(), sample.record.number, sample.size, payload))
                share.samples += 1
                share.pictures += len(sample.pictures)
                share.turns += len(sample.record.turns)
                share.bytes += sample.size
                progress.update(sample.size, note=file)
        share.shards.append(file)
    return share


def _picture_bytes(path: Path, sample: Sample) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WorkError(f"record {sample.record.number}: {path}: {error.strerror}; it was there before; run the prepare again") from error


def table(report: dict, target: Path) -> str:
    """What a person wants to know about a new dataset."""
    shown = {name: share for name, share in report["splits"].items() if share["samples"]}
    if len(shown) > 1:
        shown["all"] = {**report, "shards": [shard for share in report["splits"].values() for shard in share["shards"]]}
    rows = [("", "samples", "pictures", "turns", "size", "shards")]
    for name, share in shown.items():
        counts = (f"{share[what]:,}" for what in ("samples", "pictures", "turns"))
        rows.append((name, *counts, quantity(share["bytes"], "B"), f"{len(share['shards']):,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{target}: {report['samples']:,} samples"]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join(["", row[0].ljust(widths[0]), *cells]))
    if report["refused"]:
        reasons = ", ".join(f"{REASONS[reason]}: {count:,}" for reason, count in report["refused"].items())
        lines.append(f"  left out {sum(report['refused'].values()):,} ({reasons}); each one is in {target / REFUSED}")
    return "\n".join(lines)
