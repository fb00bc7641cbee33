"""Reading files that grow: the log, the metrics. Incremental; truncation and replacement are noticed by stat.

Nothing here holds a file open between two reads, and nothing raises because of what a file holds.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 4 << 20
LONGEST_ROW = 16 << 20
_MARK = 64


class FileFollower:
    """The bytes that are appended to one file, from `offset` on."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = Path(path), offset
        self._identity: tuple[int, int] | None = None
        self._seen: tuple[int, int, int] | None = None
        self._mark = b""

    def read(self, limit: int = CHUNK) -> tuple[bytes, bool]:
        """(up to `limit` new bytes, whether the file is another one since the last call).

        Another one: replaced, or truncated; its bytes then begin at its start. A file that was truncated and has
        grown past the old end in between is known by its last bytes before that end. A missing file is empty.
        """
        try:
            stat = os.stat(self.path)
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen == self._seen and stat.st_size == self.offset:
                return b"", False
            with open(self.path, "rb") as file:
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
        except OSError:  # network storage that does not answer now; a later call goes on
            return b"", False
        new = data[len(self._mark):]
        self.offset += len(new)
        self._mark = data[-_MARK:]
        self._identity, self._seen = identity, (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return new, replaced


class JsonlTail:
    """Complete rows of a JSON-lines file. An unterminated last line is left until it is complete."""

    def __init__(self, path: Path) -> None:
        self._follower = FileFollower(path)
        self._partial = bytearray()
        self._overlong = False
        self.limited = False
        """Whether the last `read` ended at its limit."""
        self.replaced = False
        """Whether the last `read` began at the start again: the rows of earlier reads are then void."""

    def read(self, limit: int | None = None) -> list[dict[str, Any]]:
        """New complete rows since the last call; lines that are no JSON object are skipped.

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
        if len(self._partial) > LONGEST_ROW:  # no row of ours: not kept while it grows
            self._overlong = True
        if self._overlong:
            self._partial.clear()
        return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def last_rows(path: Path, size: int = 64 << 10) -> list[dict[str, Any]]:
    """The complete rows in the last `size` bytes of a JSON-lines file: enough for a table, whatever the file's length."""
    data, start = _end_of(path, size)
    lines = data.split(b"\n")[1 if start else 0 : -1]
    return [row for line in lines if (row := _row(line)) is not None]


def last_row_with(path: Path, mark: bytes, kind: str, most: int) -> dict[str, Any] | None:
    """The last complete row of a kind in the last `most` bytes; `mark`: what every such row holds. None when there is none."""
    size = 256 << 10
    while True:
        data, start = _end_of(path, min(size, most))
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


def sampled_rows(path: Path, parts: int, whole: int = 256 << 10, each: int = 4 << 10) -> list[dict[str, Any]]:
    """Complete rows in their order: all of a small file; of a larger one those of `parts` evenly spread pieces."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= whole:
                pieces = [b"\n" + file.read()]
            else:
                pieces = []
                for part in range(parts):
                    file.seek(max(part * (size - each) // max(parts - 1, 1), 0))
                    pieces.append((b"\n" if not file.tell() else b"") + file.read(each))
    except OSError:
        return []
    return [row for piece in pieces for line in piece.split(b"\n")[1:-1] if (row := _row(line)) is not None]


def _end_of(path: Path, size: int) -> tuple[bytes, int]:
    """(the last `size` bytes, the offset where they begin); nothing when the file cannot be read."""
    try:
        with open(path, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - size)
            file.seek(start)
            return file.read(size), start
    except OSError:
        return b"", 0


class _Column:
    """Two arrays that grow at their end, x int64 and y float64; doubling, so that a million appends copy little."""

    def __init__(self, x: np.ndarray | None = None, y: np.ndarray | None = None) -> None:
        self.size = 0 if x is None else len(x)
        self._x, self._y = np.empty(self.size + 256, np.int64), np.empty(self.size + 256, np.float64)
        if x is not None:
            self._x[: self.size], self._y[: self.size] = x, y

    def append(self, x: int, y: float) -> None:
        if self.size == len(self._x):
            self._x, self._y = (np.concatenate([a, np.empty_like(a)]) for a in (self._x, self._y))
        self._x[self.size], self._y[self.size] = x, y
        self.size += 1

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = self._x[: self.size], self._y[: self.size]
        x.flags.writeable = y.flags.writeable = False
        return x, y


class MetricSeries:
    """Every number of a run's metrics as arrays over the step.

    Keys: a train row's `loss` is `loss`, an eval row's is `eval/loss`. Steps rise strictly: a resumed run that goes back
    to its checkpoint takes the place of the steps after it. A null, or a number that is not finite, is NaN: a gap.
    """

    def __init__(self, path: Path) -> None:
        self._tail = JsonlTail(path)
        self.behind = False
        """Whether the last update stopped at its limit: there may be more."""
        self.version = 0
        """Grows when points that were there have changed or gone; while it stays, arrays only get longer."""
        self._clear()

    def _clear(self) -> None:
        self._columns: dict[str, _Column] = {}
        self.latest: dict[str, dict[str, Any]] = {}
        """The last row of each kind (`train`, `eval`, `event`)."""
        self.events: list[dict[str, Any]] = []
        self.train_iters: int | None = None

    def update(self, limit: int | None = None) -> int:
        """Take in what is new, about `limit` bytes at most. Gives the number of rows; 0: nothing is new."""
        rows = self._tail.read(limit)
        self.behind = self._tail.limited
        if self._tail.replaced:
            self._clear()
            self.version += 1
        for row in rows:
            self._take(row)
        return len(rows)

    @property
    def keys(self) -> list[str]:
        """Names of the series, in order of appearance."""
        return list(self._columns)

    def xy(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [n], values float64 [n]) of a series, read-only; empty for an unknown key.

        The arrays stay as they are when more points come: ask again for those.
        """
        return self._columns.get(key, _Column()).view()

    def _take(self, row: dict[str, Any]) -> None:
        kind, step = row.get("kind"), row.get("step")
        if not isinstance(kind, str):
            return
        self.latest[kind] = row
        if kind == "event":
            self.events.append(row)
            iters = row.get("train_iters")
            if isinstance(iters, int) and not isinstance(iters, bool):
                self.train_iters = iters
            return
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 62:
            return
        for name, value in row.items():
            if name in ("v", "step", "time", "kind") or not (value is None or isinstance(value, int | float)):
                continue
            column = self._column(name if kind == "train" else f"{kind}/{name}", step)
            column.append(step, _finite(value))

    def _column(self, key: str, step: int) -> _Column:
        """The series that gets a point at `step`, cut before that step when it went on beyond."""
        column = self._columns.setdefault(key, _Column())
        x, y = column.view()
        if column.size and x[-1] >= step:
            keep = int(np.searchsorted(x, step))
            # a new one: the old arrays may be in a reader's hands
            self._columns[key] = column = _Column(x[:keep], y[:keep])
            self.version += 1
        return column


def _finite(value: Any) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


# escape sequences (CSI; OSC and its like, which carry text; two characters), also one that is cut off at the end
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]{0,256}(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")
# C0 and C1 controls, and the characters that reverse or break a line
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(raw: bytes) -> str:
    """Bytes of a line as text that may go to a terminal: no escape sequence, no control character, tabs as blanks."""
    text = raw.decode("utf-8", "replace")
    if not text.isprintable():
        text = _CONTROLS.sub("", _ESCAPES.sub("", text)).expandtabs(8)
    return text


class LogTail:
    """The last lines of a log as a terminal would show them.

    A progress bar that draws itself again after each carriage return is its last state. A line is cut after `width`
    characters (with an ellipsis); one that never ends costs no memory.
    """

    def __init__(self, path: Path, lines: int = 1000, width: int = 4000) -> None:
        self.width = width
        self.lines: deque[str] = deque(maxlen=lines)
        """The last complete lines."""
        self.begin = 0
        """Offset of the first line that was read."""
        self.resets = 0
        """How often the log was truncated or replaced; `lines` then began anew."""
        self._path, self._follower = Path(path), None
        self._drop_line()

    def _drop_line(self) -> None:
        self._segment, self._shown = bytearray(), ""

    @property
    def partial(self) -> str:
        """The last line, when it is not complete: a progress bar as it stands."""
        return self._text()

    @staticmethod
    def text_of(line: bytes, width: int) -> str:
        """One complete line's bytes as they are shown."""
        shown = ""
        for part in line.split(b"\r"):
            shown = clean(part[: 8 * width]) or shown
        return shown if len(shown) <= width else shown[: width - 1] + "…"

    def read(self) -> list[str]:
        """Complete lines since the last call, the newest `lines` of them; the first call begins that far from the end."""
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
            data, start = _end_of(self._path, size)
            ends = data.count(b"\n")
            if not start or ends > self.lines.maxlen or size >= LONGEST_ROW:
                break
            size *= 4
        at = len(data)
        for _ in range(min(self.lines.maxlen + 1, ends)):
            at = data.rfind(b"\n", 0, at)
        return start + at + 1 if ends > self.lines.maxlen else start

    def _add(self, piece: bytes) -> None:
        *done, rest = piece.split(b"\r")
        room = 8 * self.width  # bytes of one state that are kept: more than `width` characters need
        for part in done:
            self._segment += part[: max(0, room - len(self._segment))]
            self._shown = clean(bytes(self._segment)) or self._shown
            self._segment.clear()
        self._segment += rest[: max(0, room - len(self._segment))]

    def _text(self) -> str:
        text = clean(bytes(self._segment)) or self._shown
        return text if len(text) <= self.width else text[: self.width - 1] + "…"
