"""Records in tables: CSV, TSV, parquet, Arrow, with pictures as names or as bytes. Imports no torch, and pyarrow where it is needed."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.data.media_values import looks_like_media
from qwen3vl_core.data.text_files import TextFile
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import is_url

_GROUP = 4096
"""Rows of a parquet file's row group that one task reads; Hugging Face's `datasets` writes 100 pictures, or 1,000 rows without."""
_ROWS = 64
"""Rows read together: pictures within a table are a few hundred kilobytes each."""
_NAMES = {
    "image", "images", "image_path", "img", "file_name", "filename", "filepath", "path", "picture", "photo", "video", "videos", "caption",
    "captions", "text", "title", "description", "question", "answer", "query", "response", "prompt", "completion", "instruction", "input",
    "output", "conversations", "messages", "id", "url",
}  # fmt: skip
_CAPTIONS = (".txt", ".caption")
"""A first row with one of these, and no more cells than others, is the header of a table."""


class TextTable:
    """A CSV or TSV file. Raises RequestError for one without a header, unless columns are named by their numbers."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        csv.field_size_limit(limits.JSON_LINE)
        self.path, self.file = path, TextFile(path)
        self.count: int | None = None
        first = re.split(r"\r\n?|\n", self.file.head, maxsplit=1)[0]
        self._delimiter = _delimiter(path, first)
        try:
            self._header = [name.strip() for name in next(iter(csv.reader([first], delimiter=self._delimiter)), [])]
        except csv.Error as error:
            raise RequestError(f"{path}: not CSV (line 1: {error})") from None
        numbered = any(name.isdigit() for name in columns.values())
        known = {name.lower() for name in self._header} & _NAMES
        self._has_header = not numbered and bool(known or (columns and set(columns.values()) <= set(self._header)))
        if not numbered and not columns and not self._has_header:
            shown = self._delimiter.join(self._header)[:80]
            media = next((number for number, cell in enumerate(self._header, 1) if looks_like_media(cell) or is_url(cell)), 1)
            way = f"--columns image={media},caption={2 if media == 1 else 1}"
            raise RequestError(f"{path}: no header that names its columns (its first line: {shown}); name them by number: {way}")
        if numbered:
            self._header = [str(number + 1) for number in range(len(self._header))]
        elif columns:
            self._has_header = True

    def records(self) -> Iterator[dict[str, Any]]:
        """Each row as name -> text; empty cells are left out. Raises RequestError for a row that is no row."""
        with self.file.errors(), self.file.text() as text:
            reader = csv.reader(text, delimiter=self._delimiter, strict=True)
            try:
                for number, row in enumerate(reader):
                    if not row or (number == 0 and self._has_header):
                        continue
                    if len(row) > len(self._header):
                        line = reader.line_num
                        way = f"put cells with a {self._delimiter!r} in quotes"
                        raise RequestError(f"{self.path}: line {line} has {len(row)} cells for {len(self._header)} columns; {way}")
                    yield {name: _cell(value) for name, value in zip(self._header, row, strict=False) if value != ""}
            except csv.Error as error:
                raise RequestError(f"{self.path}: not CSV (line {reader.line_num}: {error})") from None
            except UnicodeDecodeError as error:
                raise self.file.not_utf8(error.start, error.object, reader.line_num + 1) from None


def _delimiter(path: Path, first: str) -> str:
    if ".tsv" in [suffix.lower() for suffix in path.suffixes] or ("\t" in first and "," not in first):
        return "\t"
    return ";" if ";" in first and "," not in first else ","


def _cell(value: str) -> Any:
    """A cell's text; lists and objects in JSON are read as such."""
    if value[:1] in "[{" and value[-1:] in "]}":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_table(path: Path) -> bool:
    """Whether a text's first line is a header, or lines have columns: Kaggle's Flickr8k keeps its CSV as captions.txt."""
    first, _, second = TextFile(path).head.partition("\n")
    if first.lstrip()[:1] in ("{", "["):
        return False
    mark = _delimiter(path, first)
    return bool({name.strip().lower() for name in first.split(mark)} & _NAMES) or (mark == "\t" and "\t" in first and "\t" in second)


def caption_of(picture: Path) -> Path | None:
    """The text of a picture's name beside it; None without one."""
    return next((file for ending in _CAPTIONS if (file := picture.with_suffix(ending)).is_file()), None)


class CaptionFiles:
    """A folder of pictures with a text of the same name each (a.jpg, a.txt), as kohya's trainers read it."""

    def __init__(self, pictures: list[Path], root: Path) -> None:
        self.pictures, self.root = pictures, root
        self.count: int | None = len(pictures)

    def records(self) -> Iterator[dict[str, Any]]:
        """A picture and its caption, empty where it has no text. Raises RequestError for a text that is not UTF-8."""
        for picture in self.pictures:
            file = caption_of(picture)
            text = ""
            if file is not None and file.stat().st_size:
                text = "".join(TextFile(file).blocks()).strip()
            yield {"image": str(picture.relative_to(self.root)), "caption": text}


class ArrowTable:
    """Parquet or Arrow files, whose rows are streamed. Raises RequestError for a damaged file, or without pyarrow."""

    def __init__(self, paths: list[Path], kind: str) -> None:
        self.paths, self._kind = paths, kind
        self.path = paths[0]
        self.count: int | None = None
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise RequestError(f"{self.path}: {kind} needs pyarrow; install it: pip install pyarrow") from None
        if kind == "parquet":
            self.count = sum(_opened_parquet(path).metadata.num_rows for path in paths)

    def records(self) -> Iterator[dict[str, Any]]:
        """Each row as name -> value; empty cells are left out."""
        for path in self.paths:
            yield from _rows(path, self._parquet_batches(path) if self._kind == "parquet" else self._arrow_batches(path))

    def stretches(self) -> list[tuple[int, str, int]] | None:
        """(number of its first row, path, row group) of pieces that any process reads by `row_group`. None: Arrow's rows
        are read in no time, and one process would be long alone with a row group of very many rows."""
        if self._kind != "parquet":
            return None
        pieces, first = list[tuple[int, str, int]](), 0
        for path in self.paths:
            metadata = _opened_parquet(path).metadata
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                if rows > _GROUP:
                    return None
                if rows:
                    pieces.append((first, str(path), group))
                first += rows
        return pieces

    def _parquet_batches(self, path: Path) -> Iterator[Any]:
        yield from _opened_parquet(path).iter_batches(batch_size=_ROWS, use_threads=False)

    def _arrow_batches(self, path: Path) -> Iterator[Any]:
        import pyarrow

        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                source.seek(0)
                opened = pyarrow.ipc.open_file(source)
                batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pyarrow.ipc.open_stream(source))
            for batch in batches:
                for begin in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(begin, _ROWS)


def row_group(path: str, group: int) -> Iterator[dict[str, Any]]:
    """The rows of one of `ArrowTable.stretches`. Raises RequestError when they are damaged."""
    status = os.stat(path)
    file = _last_parquet(path, (status.st_ino, status.st_size, status.st_mtime_ns))
    return _rows(Path(path), file.iter_batches(batch_size=_ROWS, row_groups=[group], use_threads=False))


@functools.lru_cache(maxsize=1)
def _last_parquet(path: str, identity: tuple[int, ...]) -> Any:
    return _opened_parquet(Path(path))


def _opened_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RequestError(f"{path}: not a whole parquet file ({_line(error)}); copy or download it again") from None


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """Each row of the batches. Raises RequestError for damaged ones."""
    import pyarrow

    try:
        for batch in batches:
            # damaged offsets would be followed out of the buffer
            batch.validate(full=True)
            plain = not any(_is_special(field.type) for field in batch.schema)
            for row in batch.to_pylist():
                yield {key: value if plain else _plain(value) for key, value in row.items() if value is not None}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read ({_line(error)}); copy or download it again") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_special(type_: Any) -> bool:
    """Whether values of a type are no plain Python values: dates, decimals, and what holds them."""
    import pyarrow.types as types

    if types.is_temporal(type_) or types.is_decimal(type_) or types.is_map(type_) or types.is_dictionary(type_):
        return True
    return any(_is_special(type_.field(i).type) for i in range(type_.num_fields))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (str, bytes, int, float, bool)) else str(value)
