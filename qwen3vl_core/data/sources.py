"""Files of records: one JSON list, or JSON Lines. What a record may look like is in `layouts`. Imports no torch.

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

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core.data import layouts
from qwen3vl_core.data.errors import DataError, kind_of, listed
from qwen3vl_core.data.records import SourceRecord
from qwen3vl_core.errors import RequestError

SHAPE = "LLaVA ({id, image, conversations: [{from, value}]}) and ShareGPT ({conversations or messages, images, videos}) are read"
LONGEST_LINE = 64 << 20
"""Maximum of bytes for one record in JSON Lines; a file with a longer line is not taken for JSON Lines."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RecordFile:
    """A file of records and its detected format."""

    path: Path
    lines: bool
    """JSON Lines: one record a line, read one at a time; otherwise one JSON list."""
    style: str
    """`LLaVA` or `ShareGPT`, detected from the first record."""
    count: int | None = None
    """Number of records, where it is known without reading the file."""
    loaded: list[Any] | None = None
    """The records of a JSON list; `records` releases each as it yields it."""

    @property
    def kind(self) -> str:
        return f"{self.style} JSON{' Lines' if self.lines else ''}"

    def records(self) -> Iterator[tuple[int, Any]]:
        """(number from 0, record): an object for a JSON list; for JSON Lines (line from 1, its bytes), for `parse` to read.

        A JSON list can be iterated once only. Raises RequestError when reading fails.
        """
        if not self.lines:
            loaded = self.loaded
            assert loaded is not None
            for number in range(len(loaded)):
                # released as it is used: the list is the largest object in memory
                record, loaded[number] = loaded[number], None
                yield number, record
            return
        number = 0
        for place, line in _lines(self.path):
            if line.strip():
                yield number, (place, line)
                number += 1


def open_records(path: Path) -> RecordFile:
    """Open `path` and detect its format from the first record. Raises RequestError for an unsupported one."""
    head = _head(path)
    if head.lstrip(b" \t\r\n")[:1] != b"{":
        loaded = load_list(path)
        return RecordFile(path, False, layouts.style_of(loaded[0]), len(loaded), loaded)
    line_number, line = next((line_number, line) for line_number, line in _lines(path) if line.strip())
    _check_no_wrapper(path, line)
    try:
        return RecordFile(path, True, layouts.style_of(_loads(line)))
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text (line {line_number}, byte {error.start:,}); {SHAPE}") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{path}: not JSON (line {line_number}, column {error.colno}: {error.msg}); a list [...] or one record a line; {SHAPE}"
        ) from None
    except (RecursionError, ValueError) as error:
        raise RequestError(f"{path}: not JSON that is read here ({_reason(error)}); {SHAPE}") from None


def _check_no_wrapper(path: Path, line: bytes) -> None:
    """Raises RequestError for an object that wraps the list of records, and is not a record in JSON Lines either."""
    wrapper = None
    for data in (line, path.read_bytes() if line.strip() == b"{" and path.stat().st_size <= LONGEST_LINE else b""):
        with contextlib.suppress(ValueError, RecursionError):
            wrapper = _loads(data)
            break
    if not isinstance(wrapper, dict) or any(key in wrapper for key in ("conversations", "messages")):
        return
    for key, value in wrapper.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and {"conversations", "messages"} & value[0].keys():
            raise RequestError(f"{path}: one object that holds the records as {key!r}; write that list alone: jq .{key} {path.name}")


def parse(number: int, record: Any) -> SourceRecord:
    """Parse and check a record from `RecordFile.records`. Raises DataError that names the violated rule."""
    if isinstance(record, tuple):
        line_number, line = record
        try:
            record = _loads(line)
        except UnicodeDecodeError as error:
            raise DataError("line-not-utf8", f"line {line_number}", byte=error.start) from None
        except json.JSONDecodeError as error:
            raise DataError("line-not-json", f"line {line_number}", column=error.colno, reason=error.msg) from None
        except (RecursionError, ValueError) as error:
            raise DataError("line-json-unreadable", f"line {line_number}", reason=_reason(error)) from None
    if not isinstance(record, dict):
        raise DataError("record-not-an-object", found=kind_of(record))
    return layouts.parse(number, record)


def load_list(file: Path) -> list[Any]:
    """The JSON list in `file`. Raises RequestError for anything else."""
    try:
        loaded = _loads(file.read_bytes())
    except UnicodeDecodeError as error:
        raise RequestError(f"{file}: not UTF-8 text (byte {error.start:,}); {SHAPE}") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"{file}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}); {SHAPE}") from None
    except (RecursionError, ValueError) as error:
        raise RequestError(f"{file}: not JSON that is read here ({_reason(error)}); {SHAPE}") from None
    except OSError as error:
        raise _unreadable(file, error) from None
    if not isinstance(loaded, list):
        raise RequestError(f"{file}: not a list but {kind_of(loaded)}; {SHAPE}")
    if not loaded:
        raise RequestError(f"{file}: an empty list; {SHAPE}")
    return loaded


def _loads(data: bytes) -> Any:
    return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _head(file: Path) -> bytes:
    """The first block with more than white space, or nothing. Raises RequestError when the file cannot be read."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(1 << 16).removeprefix(_BOM)
            while head and not head.strip():
                head = opened.read(1 << 16)
            return head
    except IsADirectoryError:
        candidates = sorted(p.name for ending in ("json", "jsonl") for p in file.glob(f"*.{ending}"))
        way_out = f"it holds {listed(candidates)}; give one of them" if candidates else "give the JSON list of conversations"
        raise RequestError(f"{file}: a folder; {way_out}") from None
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: OSError) -> RequestError:
    if isinstance(error, FileNotFoundError):
        return RequestError(f"{file}: no such file; give the JSON list of conversations")
    return RequestError(f"{file}: cannot be read ({error.strerror}); give the JSON list of conversations")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(line from 1, its bytes). Raises RequestError for a line that is too long for a record."""
    try:
        with open(file, "rb", buffering=1 << 20) as opened:
            place = 0
            while line := opened.readline(LONGEST_LINE):
                place += 1
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    raise RequestError(f"{file}: line {place} is over {LONGEST_LINE >> 20} MiB; JSON Lines have one record a line")
                yield place, line
    except OSError as error:
        raise _unreadable(file, error) from None
