"""Sources of records, found out by looking: JSON, tables, shards, folders of them. Imports no torch.

What one record may look like is in `layouts`.

All layouts give the same samples. A sample in a shard is `KEY.json` and its media, KEY being the
record's number in eight digits; the media keep their bytes:

    KEY.json             {"id": ..., "tools": [...], "boxes": [...], "messages": [MESSAGE, ...]}
    KEY.img0.jpg         the first picture
    KEY.vid0.mp4         the first video, where the source names a file (mp4, mov, m4v, webm, mkv, avi)
    KEY.vid1.00000.jpg   the first frame of the second video, where the source names a folder of frames
    KEY.vid1.00001.jpg   ...

A MESSAGE is {"role": "system" | "user" | "assistant" | "tool", "content": [PART, ...]}, an answer may also have "loss": false, which
takes it out of the loss, and "tool_calls". `id`, `tools` and `boxes` are there where the record has them; boxes are for `inspect` to draw:
{"picture": 0, "bbox": [x, y, x, y] from 0 to 1000, "label": ...}. A PART is one of

    {"type": "text", "text": "What is this?"}
    {"type": "image", "part": "img0.jpg"}
    {"type": "video", "part": "vid0.mp4"}
    {"type": "video", "part": "vid1", "frames": ["vid1.00000.jpg", "vid1.00001.jpg"], "fps": 2.0}

where a video may have "sampling": {fps, nframes, min_frames, max_frames, start, end, max_pixels}, which frames of it are taken.
Pictures are counted from 0 in the order of their `<image>` tags, videos from 0 in the order of their `<video>` tags.
`frames` is in the order of time and never empty; all frames of a video have one size. `fps` is frames a second, above 0,
from the record, from the file `fps` or `fps.txt` in the folder of frames, from the JSON beside it, and else FRAMES_PER_SECOND.
Parts always stand in the order of the text; parts of text are never empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qwen3vl_core import limits
from qwen3vl_core.data import dataset_info, layouts
from qwen3vl_core.data.dataset_info import Naming
from qwen3vl_core.data.errors import DataError, kind_of, listed
from qwen3vl_core.data.json_files import JsonRecords, loads, reason_of
from qwen3vl_core.data.records import PICTURE_SUFFIXES, SourceRecord
from qwen3vl_core.data.tables import ArrowTable, CaptionFiles, TextTable, caption_of, is_table
from qwen3vl_core.data.text_files import TextFile, file_kind, read_head, refuse_binary
from qwen3vl_core.data.webdataset import WebDatasetRecords
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small

TEXTS = ("jsonl", "ndjson", "json", "csv", "tsv")
ENDINGS = (*TEXTS, "parquet", "arrow")
"""Files of records by their names; in what they hold, they are told by looking."""
_COMPRESSED = (".gz", ".bz2", ".xz")
_METADATA = re.compile(r"metadata\.(jsonl|csv|parquet)")
_SPLIT = re.compile(r"(?:^|[-_./])(train|training|validation|valid|val|dev|test|testing)(?=[-_./]|$)")
_TRAINING = ("train", "training")
_DEPTH = 3
"""Levels of folders that are looked into."""
_NO_NAMING = Naming()


class Records(Protocol):
    """What reads one kind of file."""

    count: int | None

    def records(self) -> Iterator[Any]: ...


@dataclass
class RecordFile:
    """A source and its detected kind."""

    path: Path
    kind: str
    """For people: `LLaVA JSON Lines`."""
    reader: Records
    notes: tuple[str, ...] = ()
    """What of a folder is not read."""

    @property
    def count(self) -> int | None:
        """Number of records, where it is known without reading the file."""
        return self.reader.count

    def records(self) -> Iterator[tuple[int, Any]]:
        """(number from 0, record): an object; for JSON Lines (line from 1, its bytes), for `parse` to read.

        A JSON list can be iterated once only. Raises RequestError when reading fails.
        """
        return enumerate(self.reader.records())

    def stretches(self) -> list[tuple[int, str, int]] | None:
        """As `tables.ArrowTable` has them; None for other readers, whose records are read by one process."""
        return self.reader.stretches() if isinstance(self.reader, ArrowTable) else None

    def length(self) -> int:
        """Number of records, counted where it must be."""
        return self.count if self.count is not None else sum(1 for _ in self.reader.records())


@dataclass(frozen=True)
class Located:
    """The files of a source, and what they are."""

    kind: str
    """parquet, arrow, tar, captions or text"""
    paths: list[Path]
    root: Path
    """Folder that the media's names are relative to."""
    notes: tuple[str, ...] = ()


def locate(source: Path) -> Located:
    """The files that `source`, a file or folder, stands for. Raises RequestError when they hold no records."""
    if source.is_dir():
        return _in_folder(source)
    if source.exists() and not source.is_file():
        raise RequestError(f"{source}: no regular file; give a file or folder of records")
    kind = file_kind(read_head(source))
    refuse_binary(source, kind)
    return Located(kind if kind in ("parquet", "arrow", "tar") else "text", [source], source.parent)


def is_source(path: Path) -> bool:
    """Whether a path looks like a source: by its name, or a folder with files of records and no model's."""
    if path.is_file():
        return _ending(path) in ENDINGS
    if not path.is_dir() or (path / "config.json").is_file():
        return False
    return any(_ending(file) in ("parquet", "arrow", "tar") or _METADATA.fullmatch(file.name) for file in _files(path))


def open_records(path: Path, naming: Naming = _NO_NAMING, located: Located | None = None) -> RecordFile:
    """Open a source and detect its layout from the first record. Raises RequestError for an unsupported one."""
    located = located or locate(path)
    reader: Any
    if located.kind in ("parquet", "arrow"):
        reader, what = ArrowTable(located.paths, located.kind), {"parquet": "parquet", "arrow": "Arrow"}[located.kind]
    elif located.kind == "tar":
        reader, what = WebDatasetRecords(located.paths), "WebDataset shards"
    elif located.kind == "captions":
        reader, what = CaptionFiles(located.paths, located.root), "texts beside pictures"
    elif _ending(located.paths[0]) in ("csv", "tsv"):
        reader, what = TextTable(located.paths[0], naming.columns), _ending(located.paths[0]).upper()
    elif _ending(located.paths[0]) not in TEXTS and is_table(located.paths[0]):
        reader, what = TextTable(located.paths[0], naming.columns), "table"
    else:
        reader = JsonRecords(TextFile(located.paths[0]))
        what = "JSON Lines" if reader.lines else "JSON"
    first = reader.first() if isinstance(reader, JsonRecords) else next(iter(reader.records()), None)
    if first is None and not isinstance(reader, JsonRecords):
        raise RequestError(f"{path}: no record in it; give a file with some")
    naming.check_first(first, path)
    return RecordFile(path, f"{layouts.style_of(naming.applied(first))} {what}", reader, located.notes)


def parse(number: int, record: Any, naming: Naming = _NO_NAMING) -> SourceRecord:
    """Parse and check a record from `RecordFile.records`. Raises DataError that names the violated rule."""
    if isinstance(record, tuple):
        line_number, line = record
        try:
            record = loads(line)
        except UnicodeDecodeError as error:
            raise DataError("line-not-utf8", f"line {line_number}", byte=error.start) from None
        except json.JSONDecodeError as error:
            raise DataError("line-not-json", f"line {line_number}", column=error.colno, reason=error.msg) from None
        except (RecursionError, ValueError) as error:
            raise DataError("line-json-unreadable", f"line {line_number}", reason=reason_of(error)) from None
    if not isinstance(record, dict):
        packed = isinstance(record, list) and record and all(isinstance(each, dict) for each in record)
        hint = "; records that are packed already: write each alone (jq flatten), and use finetune --packing" if packed else ""
        raise DataError("record-not-an-object", found=kind_of(record), hint=hint)
    return layouts.parse(number, naming.applied(record))


def _ending(path: Path) -> str:
    """`jsonl` for `a.jsonl` and `a.jsonl.gz`."""
    name = path.name.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return name.rpartition(".")[2]


def _files(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """The files in a folder and those below it, without hidden ones, sorted."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise RequestError(f"{folder}: cannot be read ({error.strerror}); give another folder") from None
    files: list[Path] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += _files(entry, depth - 1) if depth else []
        else:
            files.append(entry)
    return files


def _in_folder(folder: Path) -> Located:
    files = _files(folder)
    metadata = [file for file in files if _METADATA.fullmatch(file.name)]
    if metadata:
        # Hugging Face's imagefolder: names are relative to the folder of the metadata
        (chosen, *_), notes = _training(metadata, folder)
        return Located("parquet" if chosen.suffix == ".parquet" else "text", [chosen], chosen.parent, notes)
    info = folder / dataset_info.FILE
    if info.is_file() and b"file_name" in read_small(info, limits.DATASET_INDEX):
        raise RequestError(f"{folder}: LLaMA-Factory's folder of datasets; give {info}, and choose one by --dataset")
    by_kind = {ending: [file for file in files if _ending(file) == ending] for ending in ("parquet", "arrow", "tar", *TEXTS)}
    # img2dataset writes a table of addresses beside each shard
    shards = set(by_kind["tar"])
    by_kind["parquet"] = [file for file in by_kind["parquet"] if file.with_suffix(".tar") not in shards]
    if by_kind["arrow"]:
        # beside the data, `datasets` leaves what it has computed once
        by_kind["arrow"] = [file for file in by_kind["arrow"] if not file.name.startswith("cache-")]
    for kind in ("parquet", "arrow", "tar"):
        if by_kind[kind]:
            chosen_files, notes = _training(by_kind[kind], folder)
            folders = sorted({str(file.parent.relative_to(folder)) for file in chosen_files})
            if len(folders) > 1 and kind != "tar" and not all(_SPLIT.search(name) for name in folders):
                raise RequestError(f"{folder}: {kind} files of several subsets ({listed(folders, 12)}); give one of these folders")
            return Located(kind, chosen_files, folder, notes)
    texts = [file for ending in TEXTS for file in by_kind[ending] if file.parent == folder and file.name not in _OTHER_JSON]
    chosen_files, notes = _training(texts, folder) if texts else ([], ())
    if not texts and (pictures := [file for file in files if file.suffix[1:].lower() in PICTURE_SUFFIXES]):
        captioned = [file for file in pictures if caption_of(file) is not None]
        if captioned:
            return Located("captions", pictures, folder)
        raise RequestError(
            f"{folder}: {len(pictures):,} pictures, but no file that says what to learn from them; write metadata.csv (file_name,text) "
            f"there, or a text of each picture's name ({pictures[0].name}, {pictures[0].stem}.txt)"
        )
    if len(chosen_files) != 1:
        way = f"it holds {listed([file.name for file in chosen_files])}; give one of them" if texts else "give a file of records"
        raise RequestError(f"{folder}: a folder; {way} (docs/data.md lists the layouts)")
    return Located("text", chosen_files, folder, notes)


_OTHER_JSON = ("dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json", "configuration.json", "config.json")
"""Files about a dataset, as hubs keep them beside it."""


def _training(files: list[Path], folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """(the files to read, notes): those of the training split where the names tell splits."""
    splits = {file: match[1] if (match := _SPLIT.search(str(file.relative_to(folder)).lower())) else "" for file in files}
    chosen = [file for file, split in splits.items() if split in _TRAINING]
    others = sorted({split for split in splits.values() if split and split not in _TRAINING})
    if not chosen or not others:
        return files, ()
    return chosen, (f"the files of {', '.join(others)} are not read, those of training are",)
