"""A progress line for long work: label, progress, rate, time left.

On a terminal the line is redrawn in place; in a log or a pipe a line is written every few seconds. The environment variable
`QWEN3VL_PROGRESS` (`bar`, `lines` or `none`) overrides that, so that a supervised run whose log is followed on a
terminal can draw a bar.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Self, TextIO

from qwen3vl_core.formats import duration, printable, quantity

ENVIRONMENT = "QWEN3VL_PROGRESS"
REDRAW_SECONDS = 0.1
LINE_SECONDS = 2.0


class Progress:
    """`with Progress("convert", total=bytes, unit="B") as progress: progress.update(n)`.

    total may be None: then only the count and the rate are shown. Writes to standard error, so that a command's
    own output on standard output stays clean.
    """

    def __init__(self, label: str, total: float | None, unit: str, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream if stream is not None else sys.stderr
        self.done = 0.0
        self.note = ""
        self.started = self.drawn = time.monotonic()
        mode = os.environ.get(ENVIRONMENT, "")
        self.mode = mode if mode in ("bar", "lines", "none") else "bar" if self.stream.isatty() else "lines"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._draw(last=True, failed=kind is not None)

    def update(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more units as done. note: a few words at the end of the line, such as a file name."""
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.drawn >= (REDRAW_SECONDS if self.mode == "bar" else LINE_SECONDS):
            self.drawn = now
            self._draw()

    def line(self, width: int = 100) -> str:
        """The current line, at most `width` columns."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = self.done / elapsed
        text = f"{quantity(rate, self.unit)}/s"
        if self.total:
            share = min(self.done / self.total, 1.0)
            # before the first update the rate is unknown; 3e9 s is shown as `?`
            left = min((self.total - self.done) / rate, 3e9) if rate else 3e9
            clock = f"ETA {duration(left) if left < 3e6 else '?'}" if self.done < self.total else f"in {duration(elapsed)}"
            text = f"{share:4.0%}  {quantity(self.done, self.unit)} of {quantity(self.total, self.unit)}  {text}  {clock}"
            cells = 20
            text = "━" * round(share * cells) + "─" * (cells - round(share * cells)) + " " + text
        else:
            text = f"{quantity(self.done, self.unit)}  {text}"
        return f"{self.label:10s} {text}  {printable(self.note)}".rstrip()[: max(width, 20)]

    def _draw(self, last: bool = False, failed: bool = False) -> None:
        if self.mode == "none":
            return
        width = shutil.get_terminal_size((100, 24)).columns - 1
        if self.mode == "bar":
            self.stream.write("\r\x1b[2K" + self.line(width) + ("\n" if last else ""))
        else:
            self.stream.write(self.line(max(width, 120)) + (" (stopped)" if failed else "") + "\n")
        self.stream.flush()
