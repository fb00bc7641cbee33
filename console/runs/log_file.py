"""Random access to and search in a log of any length, with an index of its lines, as people read it: without the tags of our own.

Blocking; imports no Textual.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from console.runs.tail import LogTail
from qwen3vl_core.files import open_regular
from qwen3vl_core.log_lines import TagRemover, untagged

CHUNK = 8 << 20
BLOCK = 128
"""Number of lines read at once."""
BLOCKS = 64
"""Number of blocks kept in memory."""
MOST_HITS = 200_000
WIDTH = 4000


class WholeLog(Sequence[str]):
    """The lines of a log as it was when this object was created; `replaced` says whether the file has been replaced since."""

    def __init__(self, path: Path) -> None:
        """Reads the file once. Raises OSError."""
        self.path = Path(path)
        with open_regular(self.path) as file:
            stat = os.fstat(file.fileno())
            self._identity = (stat.st_dev, stat.st_ino)
            self.size = stat.st_size
            starts, at = [np.zeros(1, np.int64)], 0
            while at < self.size and (data := file.read(min(CHUNK, self.size - at))):
                starts.append(np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + (at + 1))
                at += len(data)
        self.size = at
        self._starts = np.concatenate(starts)
        if len(self._starts) > 1 and self._starts[-1] == self.size:
            self._starts = self._starts[:-1]  # the last line is complete: no empty one follows it
        self._count = len(self._starts) if self.size else 0
        self._blocks: OrderedDict[int, list[str]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    @property
    def replaced(self) -> bool:
        """Whether the file was truncated or replaced since, so that its lines are gone."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return True
        return (stat.st_dev, stat.st_ino) != self._identity or stat.st_size < self.size

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are not supported
        """A line without its tag, safe for a terminal, cut after 4000 characters; empty if the file can no longer be read."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        number = index // BLOCK
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = self._read(number * BLOCK)
            while len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return block[index - number * BLOCK]

    def _read(self, first: int) -> list[str]:
        end = min(first + BLOCK, self._count)
        edges = [*self._starts[first:end].tolist(), int(self._starts[end]) if end < self._count else self.size]
        lines: list[str] = []
        try:
            with open_regular(self.path) as file:
                for begin, after in pairwise(edges):
                    # of a very long line only the beginning, or if it is a progress bar, the end, which was drawn last
                    file.seek(begin)
                    data = file.read(min(after - begin, 8 * WIDTH))
                    if after - begin > 16 * WIDTH and b"\r" in data:
                        file.seek(after - 8 * WIDTH)
                        data = file.read(8 * WIDTH)
                    lines.append(untagged(LogTail.text_of(data.rstrip(b"\n"), WIDTH)))
        except OSError:
            lines += [""] * (len(edges) - 1 - len(lines))
        return lines

    def find(self, needle: str) -> list[int]:
        """Numbers of the lines that contain the text, ignoring the case of ASCII letters; at most MOST_HITS. Raises OSError."""
        pattern = needle.encode().lower()
        if not pattern:
            return []
        left, at, rest, tags = self.size, 0, b"", TagRemover(in_place=True)
        offsets: list[int] = []
        with open_regular(self.path) as file:
            while at < self.size and len(offsets) < MOST_HITS:
                piece = file.read(min(CHUNK, left))
                left -= len(piece)
                data = tags.removed(piece)
                if not data and not piece:
                    break
                text = rest + data.lower()
                begin = at - len(rest)
                hit = text.find(pattern)
                while hit >= 0 and len(offsets) < MOST_HITS:
                    offsets.append(begin + hit)
                    # one hit per line is enough
                    after = text.find(b"\n", hit)
                    hit = text.find(pattern, after) if after >= 0 else -1
                at += len(data)
                rest = text[-(len(pattern) - 1) :] if len(pattern) > 1 else b""
        lines = np.searchsorted(self._starts, np.array(offsets, np.int64), side="right") - 1
        return np.unique(lines).tolist()
