"""Shards: cut in order by size, written by several processes at known offsets, and kept when a prepare is interrupted.

The sizes of all files are known before the first byte is written, so a shard is created at its full length, and each
process writes a stretch of it. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_core.data import energon
from qwen3vl_core.data.byte_ranges import identity_of
from qwen3vl_core.data.prepare.check import Checker, TarSample
from qwen3vl_core.data.prepare.copying import SampleFiles, sum_stretch, write_stretch
from qwen3vl_core.data.tar import BLOCK, RECORD
from qwen3vl_core.data.workers import Workers
from qwen3vl_core.errors import WorkError
from qwen3vl_core.files import UNFINISHED, disk_full, folder_lock, put_back, put_in_place
from qwen3vl_core.progress import Progress

SHARD_ENDING = RECORD + 2 * BLOCK
"""Largest size of the end of an archive, in bytes."""
LOG = "finished" + UNFINISHED
_STRETCH = 256 << 10, 4 << 20
"""Bytes in one task of a process: minimum and maximum."""
_STRETCH_SAMPLES = 512
_JOINED = 8192
"""Samples' JSON that is joined at once, to be digested."""
_SMALL = 16 << 20
"""Up to this many bytes, one process finishes before others have started."""


@dataclass(frozen=True)
class Shard:
    """One archive that will be written."""

    name: str
    samples: list[TarSample]
    size: int
    """Bytes of the file."""
    content: str
    """Digest of its content."""
    plan: str
    """Digest of its content and its files' paths and modification times: a shard of an earlier prepare with this digest is reused."""

    def entries(self) -> Iterator[energon.Entry]:
        """The index entries of its samples."""
        for sample in self.samples:
            yield f"{sample.number:08d}", [("json", len(sample.payload)), *zip(sample.parts, sample.sizes, strict=True)]


def plan_shards(split: str, samples: list[TarSample], shard_size: int) -> list[Shard]:
    """The shards of a split, each as long as `shard_size` bytes allow."""
    shards: list[Shard] = []
    current: list[TarSample] = []
    size = SHARD_ENDING
    for sample in samples:
        if current and size + sample.size > shard_size:
            shards.append(_shard(split, len(shards), current))
            current, size = [], SHARD_ENDING
        current.append(sample)
        size += sample.size
    if current:
        shards.append(_shard(split, len(shards), current))
    return shards


def _shard(split: str, number: int, samples: list[TarSample]) -> Shard:
    name = f"{split}-{number:05d}.tar"
    payloads = [sample.payload for sample in samples]
    media = [len(sample.parts) for sample in samples]
    numbers = [sample.number for sample in samples]
    sizes = [size for sample in samples for size in sample.sizes]
    content = hashlib.sha256(name.encode() + _packed([len(samples)], numbers, list(map(len, payloads)), media, sizes))
    # names hold no zero bytes
    content.update("\0".join([part for sample in samples for part in sample.parts]).encode())
    for begin in range(0, len(payloads), _JOINED):
        content.update(b"".join(payloads[begin : begin + _JOINED]))
    plan = hashlib.sha256(content.digest() + b"".join([sample.stamps for sample in samples]))
    plan.update("\0".join([identity_of(file) if "\0" in file else file for sample in samples for file in sample.files]).encode())
    size = sum([sample.size for sample in samples]) + 2 * BLOCK
    return Shard(name, samples, size + -size % RECORD, content.hexdigest(), plan.hexdigest())


def _packed(*columns: list[int]) -> bytes:
    return b"".join(np.array(column, "<i8").tobytes() for column in columns)


def _stretches(shards: list[Shard], workers: Workers) -> Iterator[tuple[Shard, int, list[TarSample]]]:
    """(shard, offset, samples) of each task."""
    remaining = sum(shard.size for shard in shards)
    for shard in shards:
        begin = at = 0
        samples: list[TarSample] = []
        limit = workers.portion(remaining, *_STRETCH)
        for sample in shard.samples:
            samples.append(sample)
            at += sample.size
            if at - begin >= limit or len(samples) >= _STRETCH_SAMPLES:
                yield shard, begin, samples
                remaining -= at - begin
                begin, samples, limit = at, [], workers.portion(remaining, *_STRETCH)
        if samples:
            yield shard, begin, samples
            remaining -= at - begin


def write_shards(folder: Path, shards: list[Shard], workers: Workers) -> None:
    """Write `shards`. Each gets its final name when it is complete, and a row in the folder's log."""
    tasks = list(_stretches(shards, workers))
    last = {shard.name: offset for shard, offset, _ in tasks}
    done: list[list[int]] = []

    def sent() -> Iterator[tuple[str, int, list[SampleFiles]]]:
        for shard, offset, samples in tasks:
            path = folder / (shard.name + UNFINISHED)
            if offset == 0:
                with open(path, "wb") as file:
                    file.truncate(shard.size)
            yield str(path), offset, [(s.number, s.payload, s.parts, s.files, s.sizes, s.size) for s in samples]

    written = workers.map(_write, sent(), small=sum(shard.size for shard in shards) < _SMALL, plain=True)
    with Progress("write", total=sum(len(s.samples) for s in shards), unit="samples") as progress, open(folder / LOG, "a") as log:
        for (shard, offset, samples), (size, crc) in zip(tasks, written, strict=True):
            if size != sum(sample.size for sample in samples):
                raise WorkError(f"{folder / shard.name}: {size:,} bytes were written, not the planned size; run the prepare again")
            done.append([offset, size, crc])
            if offset == last[shard.name]:
                os.replace(folder / (shard.name + UNFINISHED), folder / shard.name)
                log.write(json.dumps({"shard": shard.name, "plan": shard.plan, "size": shard.size, "stretches": done}) + "\n")
                log.flush()
                done = []
            progress.update(len(samples), note=shard.name)


def _write(checker: Checker, task: tuple[str, int, list[SampleFiles]]) -> tuple[int, int]:
    return write_stretch(str(checker.root), *task)


def _sum(checker: Checker, task: tuple[str, int, int]) -> int:
    return sum_stretch(*task)


def keep_finished(folder: Path, shards: list[Shard], workers: Workers) -> set[str]:
    """Names of shards that an interrupted prepare of the same input has completed; everything else in the folder is removed.

    A shard is kept when it was planned from the same records and unchanged files, and its bytes have the checksums in the log.
    """
    planned = {shard.plan: shard for shard in shards}
    logged = {}
    for row in _rows(folder / LOG):
        shard = planned.get(row["plan"])
        path = folder / row["shard"]
        if shard is not None and shard.name == row["shard"] and path.is_file() and path.stat().st_size == shard.size == row["size"]:
            logged[shard.name] = row
    tasks = [(name, offset, size, expected) for name, row in logged.items() for offset, size, expected in row["stretches"]]
    kept = set(logged)
    if tasks:
        with Progress("resume", total=sum(size for _, _, size, _ in tasks), unit="B") as progress:
            sent = ((str(folder / name), offset, size) for name, offset, size, _ in tasks)
            sums = workers.map(_sum, sent, small=sum(task[2] for task in tasks) < _SMALL, plain=True)
            for (name, _, size, expected), actual in zip(tasks, sums, strict=True):
                progress.update(size, note=name)
                if actual != expected:
                    kept.discard(name)
    rows = "".join(json.dumps(logged[name]) + "\n" for name in sorted(kept))
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / LOG).write_text(rows)
    return kept


def _rows(log: Path) -> list[dict[str, Any]]:
    """The valid rows of the log."""
    rows = []
    if log.is_file():
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
                row = json.loads(line)
                stretches = [[int(value) for value in stretch] for stretch in row["stretches"]]
                if all(len(stretch) == 3 for stretch in stretches) and sum(s[1] for s in stretches) <= int(row["size"]):
                    rows.append({"shard": str(row["shard"]), "plan": str(row["plan"]), "size": int(row["size"]), "stretches": stretches})
    return rows


@contextlib.contextmanager
def dataset_made_whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` to build in; it replaces `target` when the block succeeds.

    It may hold finished shards of an interrupted prepare. When the block fails, it is removed and `target` is unchanged; when
    it is interrupted (Ctrl-C) or the process is killed, it stays, and the next prepare resumes from it.
    Raises RequestError while another prepare is building there, WorkError when the disk fills up.
    """
    target = target.absolute()
    building, old = (target.with_name(target.name + ending) for ending in (UNFINISHED, ".old" + UNFINISHED))
    if building.is_symlink() or (building.exists() and not building.is_dir()):
        building.unlink()
    building.mkdir(parents=True, exist_ok=True)
    with folder_lock(building, f"{target}: another prepare is making it; wait for that one, or choose another folder"):
        put_back(target, old)
        shutil.rmtree(old, ignore_errors=True)
        try:
            yield building
            (building / LOG).unlink(missing_ok=True)
            put_in_place(building, target, old)
        except BaseException as error:
            put_back(target, old)
            if isinstance(error, KeyboardInterrupt) and _rows(building / LOG):
                print(f"finished shards are kept in {building}; the same command resumes from there", file=sys.stderr)
                raise
            shutil.rmtree(building, ignore_errors=True)
            full = disk_full(error)
            if full is not None:
                raise WorkError(f"{target}: the disk is full; nothing was left there; free some space and run the prepare again") from error
            raise
