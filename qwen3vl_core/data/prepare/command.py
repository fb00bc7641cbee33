"""`qwen3vl prepare`: pictures, videos and conversations to shards with an Energon index. Imports torch to count tokens only.

Everything is checked before the first byte is written; the dataset is built in a temporary folder beside its target and
then renamed. The same input gives the same bytes, with any number of processes: a fixed shuffle, splits by sample count,
shards cut by size, no timestamps, no owners.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_core.data import dataset_info, energon, sources
from qwen3vl_core.data.byte_ranges import Spool
from qwen3vl_core.data.dataset_info import Naming, naming_of
from qwen3vl_core.data.energon import SPLITS
from qwen3vl_core.data.media_limits import limits_of
from qwen3vl_core.data.prepare import report
from qwen3vl_core.data.prepare.check import Checker, Refusal, TarSample
from qwen3vl_core.data.prepare.report import REFUSED, REPORT
from qwen3vl_core.data.prepare.shard_writer import SHARD_ENDING, dataset_made_whole, keep_finished, plan_shards, write_shards
from qwen3vl_core.data.records import REMARK, UNUSED_KEY
from qwen3vl_core.data.storage import local
from qwen3vl_core.data.tables import row_group
from qwen3vl_core.data.workers import Workers
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import UNFINISHED, check_target, disk_full, need_space, write_text
from qwen3vl_core.formats import printable
from qwen3vl_core.options import PrepareOptions, options_of
from qwen3vl_core.progress import Progress

SHUFFLE_SEED = 20
_CHECKED_AT_ONCE = 16, 256
"""Records in one task of a process: minimum and maximum."""
_WORTH_PROCESSES = 1 << 18
"""A source of at least this many bytes is worth starting processes for, which happens while it is read."""
_INDEX_BYTES = 400
"""Upper estimate of what a sample takes in the index."""


def run(options: PrepareOptions) -> None:
    """Prepare the dataset that `options` describe, and print a summary.

    Raises RequestError for an invalid request or source, WorkError when the disk is full; no files are left in either case.
    """
    for declared in options_of(PrepareOptions):
        declared.check(getattr(options, declared.name))
    shares = parse_split(options.split)
    source, target = local(options.source, "SOURCE"), local(options.to, "--to")
    if not source.exists():
        raise RequestError(f"{source}: no such file or folder; give a file or folder of records")
    source, naming, entry = naming_of(source, options.columns, options.dataset)
    if not source.exists():
        raise RequestError(f"{source}: no such file or folder, as {dataset_info.FILE} names it for {entry}; correct its file_name")
    located = sources.locate(source)
    images = local(options.images, "--images") if options.images else located.root
    _check_places(source, target, images, overwrite=options.overwrite)
    _check_model(options.model)
    spool = Spool(target.absolute().with_name(target.name + ".media" + UNFINISHED))
    spool.close()
    with contextlib.closing(spool), Workers(options.workers, Checker(images, options.check, spool, naming)) as workers:
        try:
            record_file, samples, refused = read_samples(source, workers, naming, located)
        except OSError as error:
            # pictures within records are kept in files until they are written
            if disk_full(error) is None:
                raise
            raise WorkError(f"{target}: the disk is full; nothing was left there; free some space and run the prepare again") from error
        total = len(samples) + len(refused)
        if refused and not options.skip_missing:
            raise RequestError(report.refusal(refused, total, source, images))
        if not samples:
            state = f"no sample is left of {total:,} ({report.reasons(refused)})"
            first = f"record {refused[0].number}: {refused[0].detail}"
            raise RequestError(f"{source}: {state}; {first}; put pictures and videos under {images}, or give --images")
        counts = split_counts(len(samples), shares, options.split)
        _check_shard_size(samples, options.shard_size)
        with dataset_made_whole(target) as building:
            summary = _build(building, target, samples, counts, options, record_file.kind, refused, workers)
    if options.json:
        print(json.dumps({**summary, "target": str(target), "notes_of_source": list(record_file.notes)}))
        return
    print(printable("\n".join([report.table(summary, target), *(f"  {note}" for note in record_file.notes)])))


def parse_split(text: str) -> tuple[float, float, float]:
    """`9,1,0` -> shares of training, validation and test. Raises RequestError."""
    shares: tuple[float, ...]
    try:
        shares = tuple(float(word) for word in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != len(SPLITS) or not all(math.isfinite(s) and s >= 0 for s in shares) or not sum(shares):
        raise RequestError(f"--split {text}: must be three numbers, the shares of training, validation and test; use 9,1,0")
    training, validation, test = shares
    return training, validation, test


def split_counts(samples: int, shares: tuple[float, ...], text: str) -> list[int]:
    """Samples of each split: as close to the shares as whole samples allow, with no requested split left empty.

    Raises RequestError when there are fewer samples than requested splits.
    """
    requested = [i for i, share in enumerate(shares) if share > 0]
    if samples < len(requested):
        way_out = ",".join("1" if i == requested[0] else "0" for i in range(len(shares)))
        have = "one sample" if samples == 1 else f"{samples} samples"
        raise RequestError(f"--split {text}: {have} cannot fill {len(requested)} splits; use --split {way_out}, or give more samples")
    ideal = [samples * (share / sum(shares)) for share in shares]
    counts = [max(1, math.floor(ideal[i])) if i in requested else 0 for i in range(len(shares))]
    while sum(counts) < samples:
        counts[max(requested, key=lambda i: ideal[i] - counts[i])] += 1
    while sum(counts) > samples:
        counts[max((i for i in requested if counts[i] > 1), key=lambda i: counts[i] - ideal[i])] -= 1
    return counts


def _check_places(source: Path, target: Path, images: Path, *, overwrite: bool) -> None:
    """Raises RequestError unless the media folder exists and the target may be written."""
    if not images.is_dir():
        state = "not a folder" if images.exists() else "no such folder"
        raise RequestError(f"--images {images}: {state}; give the folder that the pictures' names are relative to")
    check_target(target, overwrite=overwrite, what="dataset")
    if not target.is_dir() or not any(target.iterdir()):
        return
    # --overwrite replaces datasets only: a mistyped path must not delete another folder
    if not (target / energon.FOLDER).is_dir():
        raise RequestError(f"--overwrite {target}: holds something that is no dataset; choose another folder")
    resolved = target.resolve()
    for name, path in (("SOURCE", source), ("--images", images)):
        if path.resolve().is_relative_to(resolved):
            raise RequestError(f"--overwrite {target}: {name} {path} lies in it and would be lost; choose another folder")


def _check_model(model: str | None) -> None:
    """Raises RequestError when there is no such folder; its content is checked where it is read."""
    if model is not None and not Path(model).expanduser().is_dir():
        raise RequestError(f"--model {model}: no such folder; give the model whose tokenizer shall count")


_FEW_PARTS = 4


def read_samples(
    source: Path, workers: Workers, naming: Naming | None = None, located: sources.Located | None = None
) -> tuple[sources.RecordFile, list[TarSample], list[Refusal]]:
    """(the source, samples to write, records that cannot be used), in the source's order.

    Raises RequestError when the source has no supported format.
    """
    located = located or sources.locate(source)
    small = sum(path.stat().st_size for path in located.paths) < _WORTH_PROCESSES
    if not small:
        if located.kind == "parquet":
            # once, not in every process; where it is missing, the reader says so
            with contextlib.suppress(ImportError):
                import pyarrow.parquet

                # the default pool takes huge pages, which every process would have the kernel fill with zeros first
                pyarrow.set_memory_pool(pyarrow.system_memory_pool())
        workers.start()
    record_file = sources.open_records(source, naming or Naming(), located)
    samples: list[TarSample] = []
    refused: list[Refusal] = []
    # most samples have one of few tuples of names: with millions of them, one copy each is a tenth of the memory
    parts_place = TarSample._fields.index("parts")
    known_parts: dict[tuple[str, ...], tuple[str, ...]] = {}

    def chunks() -> Iterator[list[tuple[int, Any]] | tuple[int, str, int]]:
        stretches = record_file.stretches()
        if stretches is not None:
            yield from stretches
            return
        remaining = record_file.count
        records = record_file.records()
        while chunk := list(islice(records, _CHECKED_AT_ONCE[1] if remaining is None else workers.portion(remaining, *_CHECKED_AT_ONCE))):
            yield chunk
            remaining = None if remaining is None else remaining - len(chunk)

    with Progress("check", total=record_file.count, unit="samples") as progress:
        for results in workers.map(_check, chunks(), small, plain=True):
            for result in results:
                if len(result) == len(TarSample._fields):
                    parts = result[parts_place]
                    if len(parts) <= _FEW_PARTS:
                        result = (*result[:parts_place], known_parts.setdefault(parts, parts), *result[parts_place + 1 :])
                    samples.append(TarSample._make(result))
                else:
                    refused.append(Refusal._make(result))
            progress.update(len(results))
    return record_file, samples, refused


def _check(checker: Checker, task: list[tuple[int, Any]] | tuple[int, str, int]) -> list[tuple[Any, ...]]:
    """Samples and refusals as plain tuples, distinguished by their length. task: records, or a stretch of a table."""
    if isinstance(task, list):
        return [tuple(result) for result in checker.check(task)]
    first, path, group = task
    records, results = enumerate(row_group(path, group), first), list[tuple[Any, ...]]()
    while few := list(islice(records, _CHECKED_AT_ONCE[0])):
        results += [tuple(result) for result in checker.check(few)]
    return results


def _check_shard_size(samples: list[TarSample], shard_size: int) -> None:
    largest = max(samples, key=lambda s: s.size)
    if largest.size + SHARD_ENDING > shard_size:
        raise RequestError(
            f"--shard-size {shard_size}: record {largest.number} alone takes {largest.size:,} bytes; "
            f"use at least {largest.size + SHARD_ENDING}"
        )


def _build(
    folder: Path, target: Path, samples: list[TarSample], counts: list[int], options: PrepareOptions, kind: str, refused: list[Refusal],
    workers: Workers,
) -> dict[str, Any]:  # fmt: skip
    """Write shards, index and report into `folder`; returns the report."""
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(samples))
    splits, begin = {}, 0
    for name, count in zip(SPLITS, counts, strict=True):
        splits[name] = plan_shards(name, [samples[i] for i in order[begin : begin + count].tolist()], options.shard_size)
        begin += count
    shards = [shard for planned in splits.values() for shard in planned]
    finished = keep_finished(folder, shards, workers)
    missing = [shard for shard in shards if shard.name not in finished]
    need_space(target, sum(shard.size for shard in missing) + _INDEX_BYTES * len(samples), "dataset")
    write_shards(folder, missing, workers)
    identity = hashlib.sha256("".join(shard.content for shard in shards).encode())
    energon.write_index(folder, [(shard.name, shard.entries()) for shard in shards], identity.hexdigest())
    by_split = {name: report.share_of(planned) for name, planned in splits.items()}
    summary = {
        "v": 1,
        "source": str(options.source),
        "kind": kind,
        "images": options.images,
        "check": options.check,
        **report.total_of(by_split.values()),
        "refused": dict(Counter(refusal.reason for refusal in refused)),
        "refused_rules": report.rule_lines(refused),
        "unused_keys": report.note_counts(samples, UNUSED_KEY),
        "notes": report.note_counts(samples, REMARK),
        "splits": by_split,
    }
    if options.model is not None:
        summary["tokens"] = _tokens(folder, splits, options.model, options)
    write_text(folder / REPORT, json.dumps(summary, indent=2, ensure_ascii=True) + "\n")
    if refused:
        write_text(folder / REFUSED, report.refused_rows(refused))
    return summary


def _tokens(folder: Path, splits: dict[str, list[Any]], model: str, options: PrepareOptions) -> dict[str, Any]:
    """Tokens of the whole dataset as the model sees it. Raises RequestError when the folder is not a model."""
    from qwen3vl_core.data.token_lengths import Measurer, measure

    chosen = {name: list(range(sum(len(shard.samples) for shard in shards))) for name, shards in splits.items() if shards}
    lengths = measure(Measurer(folder, Path(model).expanduser(), limits=limits_of(options)), chosen, options.workers)
    return {"model": model} | lengths.summary()
