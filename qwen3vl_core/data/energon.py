"""Writes the Energon index of a folder of shards without reading them again. Imports neither torch nor Energon.

Energon's own `prepare_dataset` reads the shards again, header by header, and takes seconds to import. The writer of the shards
knows all offsets: the files written here equal those of Energon 7.4 for the same shards, byte for byte and row for row.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import struct
import uuid
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from qwen3vl_core import limits
from qwen3vl_core.data.tar import BLOCK, member_size
from qwen3vl_core.errors import WorkError
from qwen3vl_core.files import open_regular, write_text
from qwen3vl_core.progress import Progress

FOLDER = ".nv-meta"
SPLITS = ("train", "val", "test")
DATASET_YAML = """\
# pictures and conversations as they are; a cooker makes samples of them
__module__: megatron.energon
__class__: CrudeWebdataset
"""
FORMAT = "7.4.1"
"""The Energon release that defines this file format."""
_NAMESPACE = uuid.UUID("5f0d6f1e-6f6c-5d0a-9b0e-3a0f7f1f2c11")
_TABLES = (
    """CREATE TABLE samples (
                    tar_file_id INTEGER NOT NULL,
                    sample_key TEXT NOT NULL UNIQUE,
                    sample_index INTEGER NOT NULL,
                    byte_offset INTEGER,
                    byte_size INTEGER
                )""",
    """CREATE TABLE sample_parts (
                    tar_file_id INTEGER,
                    sample_index INTEGER,
                    part_name TEXT,
                    content_byte_offset INTEGER,
                    content_byte_size INTEGER
                )""",
)
_INDEXES = (
    "CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index)",
    "CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset)",
    "CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size)",
)

Entry = tuple[str, list[tuple[str, int]]]
"""A sample of a shard: its key, and (name after the key, bytes) of its members in order."""


def write_index(folder: Path, shards: list[tuple[str, Iterable[Entry]]], identity: str) -> None:
    """Write `.nv-meta` and every shard's `.idx` for `shards`: (name in `folder`, which begins with the split's name, entries).

    identity: a digest of the content; the dataset's uuid is made from it, so that the same input gives the same index.
    Raises OSError when the disk is full, WorkError when the index cannot be written for another reason.
    """
    meta = folder / FOLDER
    meta.mkdir(exist_ok=True)
    file = meta / "index.sqlite"
    counts: dict[str, int] = {}
    # SQLite does not say why it cannot make a file
    file.touch()
    try:
        # without locks, which shared disks often lack: no other process opens this file
        database = sqlite3.connect(f"{file.absolute().as_uri()}?nolock=1", uri=True, isolation_level=None)
        try:
            # an unfinished folder is deleted: nothing has to survive a crash
            database.execute("PRAGMA journal_mode=OFF")
            database.execute("PRAGMA synchronous=OFF")
            for statement in _TABLES:
                database.execute(statement)
            database.execute("BEGIN")
            with Progress("index", total=len(shards), unit="shards") as progress:
                for number, (name, entries) in enumerate(shards):
                    counts[name] = _add_shard(database, folder / name, number, entries)
                    progress.update(1)
                for statement in _INDEXES:
                    database.execute(statement)
            database.execute("COMMIT")
        finally:
            database.close()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or shutil.disk_usage(folder).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
        raise WorkError(f"{file}: the index cannot be written ({error}); nothing was left there; prepare again") from error
    write_text(meta / ".info.json", json.dumps({"energon_version": FORMAT, "shard_counts": counts}, indent=2))
    lines = ["split_parts:"]
    for split in SPLITS:
        patterns = list(_collapsed([name for name, _ in shards if name.startswith(f"{split}-")]))
        lines += [f"  {split}:", *(f"  - {pattern}" for pattern in patterns)] if patterns else [f"  {split}: []"]
    write_text(meta / "split.yaml", "\n".join([*lines, "exclude: []", ""]))
    write_text(meta / "dataset.yaml", DATASET_YAML)
    write_text(meta / "index.uuid", str(uuid.uuid5(_NAMESPACE, identity)))


def _add_shard(database: sqlite3.Connection, shard: Path, number: int, entries: Iterable[Entry]) -> int:
    """Insert the rows of one shard and write its `.idx`: where each sample begins, and where the last one ends. Returns the
    number of samples."""
    begins, samples, members = [0], [], []
    at = 0
    for place, (key, parts) in enumerate(entries):
        for part, size in parts:
            members.append((number, place, part, at + BLOCK, size))
            at += member_size(size)
        samples.append((number, key, place, begins[-1], at - begins[-1]))
        begins.append(at)
    database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
    database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", members)
    shard.with_name(f"{shard.name}.idx").write_bytes(struct.pack(f"<{len(begins)}Q", *begins))
    return len(samples)


def _collapsed(names: list[str]) -> Iterator[str]:
    """Consecutive names `train-00000.tar`, … -> `train-{00000..00041}.tar`."""
    for _, group in groupby(names, key=len):
        names_of_length = list(group)
        (split, first), last = names_of_length[0].removesuffix(".tar").split("-"), names_of_length[-1].removesuffix(".tar").split("-")[1]
        yield names_of_length[0] if len(names_of_length) == 1 else f"{split}-{{{first}..{last}}}.tar"


def is_own_index(path: Path) -> bool:
    """Whether the dataset is read as `prepare` writes it, and not by a sample class of another trainer."""
    try:
        with open_regular(path / FOLDER / "dataset.yaml", links=True) as file:
            text = file.read(limits.DATASET_INDEX).decode("utf-8", "replace")
    except OSError:
        # a damaged index is named where it is read
        return True
    return "__class__" not in text or "CrudeWebdataset" in text
