"""Incremental readers of growing files: the log, the metrics. Truncation and replacement are noticed by stat.

No file stays open between two reads, and no content of a file raises.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.files import open_regular

CHUNK = 4 << 20
_MARK = 64


class FileFollower:
    """Reads the bytes appended to a file, from `offset` on."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = Path(path), offset
        self._identity: tuple[int, int] | None = None
        self._seen: tuple[int, int, int] | None = None
        self._mark = b""

    def read(self, limit: int = CHUNK) -> tuple[bytes, bool]:
        """(up to `limit` new bytes, whether the file was replaced or truncated since the last call).

        If it was, the bytes begin at the start of the file. A file that was truncated and has grown past the old end
        since is detected by the last bytes before that end. A missing file counts as empty.
        """
        try:
            stat = os.stat(self.path)
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen == self._seen and stat.st_size == self.offset:
                return b"", False
            with open_regular(self.path) as file:
                stat = os.fstat(file.fileno())
                begin = self.offset - len(self._mark)
                file.seek(begin)
                data = file.read(len(self._mark) + limit)
                identity = (stat.st_dev, stat.st_ino)
                known = self._identity in (None, identity) and stat.st_size >= self.offset
                replaced = not (known and data.startswith(self._mark))
                if replaced:
                    self.offset, self._mark = 0, b""
                    file.seek(0)
                    data = file.read(limit)
        except FileNotFoundError:
            gone = self.offset > 0
            self.offset, self._mark, self._identity, self._seen = 0, b"", None, None
            return b"", gone
        except OSError:  # network storage does not respond now; a later call retries
            return b"", False
        new = data[len(self._mark) :]
        self.offset += len(new)
        self._mark = data[-_MARK:]
        self._identity, self._seen = identity, (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return new, replaced


class JsonlTail:
    """Reads complete rows of a JSON-lines file. An unterminated last line is read once it is complete."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._follower = FileFollower(path, offset)
        self._partial = bytearray()
        self._overlong = False
        self.limited = False
        """Whether the last `read` stopped at its limit."""
        self.replaced = False
        """Whether the last `read` started over, which invalidates the rows of earlier reads."""

    def read(self, limit: int | None = None) -> list[dict[str, Any]]:
        """New complete rows since the last call; lines that are not JSON objects are skipped.

        limit: about how many bytes to read at most; call again for the rest.
        """
        rows: list[dict[str, Any]] = []
        self.replaced = False
        budget = math.inf if limit is None else limit
        while budget > 0:
            data, replaced = self._follower.read(int(min(budget, CHUNK)))
            if replaced:
                rows, self.replaced, self._overlong = [], True, False
                self._partial.clear()
            if not data:
                break
            budget -= len(data)
            rows += self._rows(data)
        self.limited = budget <= 0
        return rows

    def _rows(self, data: bytes) -> list[dict[str, Any]]:
        *lines, rest = data.split(b"\n")
        rows = []
        for line in lines:
            if not self._overlong:
                row = _row(bytes(self._partial) + line if self._partial else line)
                if row is not None:
                    rows.append(row)
            self._partial.clear()
            self._overlong = False
        self._partial += rest
        if len(self._partial) > limits.RUN_ROW:  # longer than any row of ours: not buffered
            self._overlong = True
        if self._overlong:
            self._partial.clear()
        return rows


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < 300 else float(digits)


_DECODER = json.JSONDecoder(parse_int=_whole_number)


def parsed(text: bytes) -> Any:
    """The value of a row or file of a run. A whole number that is larger than any float is infinite, as all readers calculate with floats.
    Raises ValueError, RecursionError."""
    return _DECODER.decode(str(text, "utf-8"))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        value = parsed(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def last_rows(path: Path, size: int = 64 << 10) -> list[dict[str, Any]]:
    """The complete rows in the last `size` bytes of a JSON-lines file: enough for a table, whatever the file's length."""
    data, start = end_of(path, size)
    lines = data.split(b"\n")[1 if start else 0 : -1]
    return [row for line in lines if (row := _row(line)) is not None]


def last_row_with(path: Path, mark: bytes, kind: str, most: int) -> dict[str, Any] | None:
    """The last complete row of a kind in the last `most` bytes; None if there is none. mark: bytes that every such row contains."""
    size = 256 << 10
    while True:
        data, start = end_of(path, min(size, most))
        at = data.rfind(mark)
        while at >= 0:
            begin, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
            if end >= 0 and (begin or not start):
                row = _row(data[begin:end])
                if row is not None and row.get("kind") == kind:
                    return row
            at = data.rfind(mark, 0, begin)
        if not start or size >= most:
            return None
        size *= 8


def sampled_rows(path: Path, parts: int, each: int = 4 << 10) -> list[dict[str, Any]]:
    """Complete rows in order: all rows of a small file; of a larger one those in `parts` evenly spaced pieces of `each` bytes."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= parts * each:
                pieces = [b"\n" + file.read()]
            else:
                pieces = []
                for part in range(parts):
                    file.seek(max(part * (size - each) // max(parts - 1, 1), 0))
                    pieces.append((b"\n" if not file.tell() else b"") + file.read(each))
    except OSError:
        return []
    return [row for piece in pieces for line in piece.split(b"\n")[1:-1] if (row := _row(line)) is not None]


def end_of(path: Path, size: int) -> tuple[bytes, int]:
    """(the last `size` bytes, their offset); empty if the file cannot be read."""
    try:
        with open_regular(path) as file:
            start = max(0, os.fstat(file.fileno()).st_size - size)
            file.seek(start)
            return file.read(size), start
    except OSError:
        return b"", 0


# escape sequences (CSI; OSC and its like, which carry text; two characters), also one that is cut off at the end
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]{0,256}(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")
# C0 and C1 control characters, and characters that reverse or break a line
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(raw: bytes) -> str:
    """Bytes of a line as text that is safe for a terminal: without escape sequences and control characters, tabs as spaces."""
    text = raw.decode("utf-8", "replace")
    if not text.isprintable():
        text = _CONTROLS.sub("", _ESCAPES.sub("", text)).expandtabs(8)
    return text


@dataclass(frozen=True)
class LogView:
    """The last lines of a log at one moment."""

    lines: tuple[str, ...] = ()
    partial: str = ""
    """The last, incomplete line."""
    dropped: int = 0
    """Number of lines before the first of these."""
    resets: int = 0
    whole: bool = True
    """Whether the first of these lines is the log's first."""


class LogTail:
    """The last lines of a log as a terminal would show them.

    Of a progress bar, which uses carriage returns, only the last state is kept. A line is cut after `width`
    characters (with an ellipsis); an endless line does not take memory.
    """

    def __init__(self, path: Path, lines: int = 1000, width: int = 4000) -> None:
        self.width, self._most = width, lines
        self.lines: deque[str] = deque(maxlen=lines)
        """The last complete lines."""
        self.begin = 0
        """Offset of the first line that was read."""
        self.resets = 0
        """How often the log was truncated or replaced, which clears `lines`."""
        self._path = Path(path)
        self._follower: FileFollower | None = None
        self._drop_line()

    def _drop_line(self) -> None:
        self._segment, self._shown = bytearray(), ""

    @property
    def partial(self) -> str:
        """The last line while it is incomplete, such as a progress bar."""
        return self._text()

    @staticmethod
    def text_of(line: bytes, width: int) -> str:
        """The bytes of a complete line as displayed text."""
        shown = ""
        for part in line.split(b"\r"):
            shown = clean(part[: 8 * width]) or shown
        return shown if len(shown) <= width else shown[: width - 1] + "…"

    def read(self) -> list[str]:
        """Complete lines since the last call, at most the newest `lines`; the first call returns the last `lines` of the file."""
        if self._follower is None:
            self.begin = self._start()
            self._follower = FileFollower(self._path, self.begin)
        new: deque[str] = deque(maxlen=self.lines.maxlen)
        while True:
            data, replaced = self._follower.read()
            if replaced:
                self.resets += 1
                self.begin = 0
                self.lines.clear()
                new.clear()
                self._drop_line()
            if not data:
                break
            *complete, rest = data.split(b"\n")
            for piece in complete:
                self._add(piece)
                new.append(self._text())
                self._drop_line()
            self._add(rest)
        self.lines.extend(new)
        return list(new)

    def _start(self) -> int:
        """Offset of the last `lines` lines, at most 16 MB before the end."""
        size = 64 << 10
        while True:
            data, start = end_of(self._path, size)
            ends = data.count(b"\n")
            if not start or ends > self._most or size >= limits.RUN_ROW:
                break
            size *= 4
        at = len(data)
        for _ in range(min(self._most + 1, ends)):
            at = data.rfind(b"\n", 0, at)
        return start + at + 1 if ends > self._most else start

    def _add(self, piece: bytes) -> None:
        *done, rest = piece.split(b"\r")
        room = 8 * self.width  # number of bytes kept per line: more than `width` characters need
        for part in done:
            self._segment += part[: max(0, room - len(self._segment))]
            self._shown = clean(bytes(self._segment)) or self._shown
            self._segment.clear()
        self._segment += rest[: max(0, room - len(self._segment))]

    def _text(self) -> str:
        text = clean(bytes(self._segment)) or self._shown
        return text if len(text) <= self.width else text[: self.width - 1] + "…"
