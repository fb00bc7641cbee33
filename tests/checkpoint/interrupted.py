"""A conversion in a separate process that is stopped when it has written part of its target."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import wait
from pathlib import Path

from tests.ranks import _context

DEADLINE_SECONDS = 240


def _convert(source: Path, target: Path, told, asked, errors: Path) -> None:
    from qwen3vl_core.checkpoint import positional_io
    from qwen3vl_core.cli import main

    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    original, written = positional_io.write_at, []

    def write_at(handle, data, offset):
        original(handle, data, offset)
        written.append(len(data))
        if sum(written) > 4_000_000:
            told.set()
            # the rest waits until the signal has been sent, so that it arrives before the end
            wait([asked], DEADLINE_SECONDS)

    positional_io.write_at = write_at
    os._exit(main(["convert", str(source), str(target)]))


class Conversion:
    """`start` returns when it is half-way."""

    def __init__(self, source: Path, target: Path) -> None:
        self.target, self.errors = target, target.parents[1] / "errors"
        self._told = _context.Event()
        asked, self._asking = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_convert, args=(source, target, self._told, asked, self.errors))

    def start(self) -> None:
        self.process.start()
        assert self._told.wait(DEADLINE_SECONDS), self.errors.read_text()

    def stop(self, number: int) -> tuple[int | None, str]:
        """(exit code, what it wrote to stderr) after that signal."""
        os.kill(self.process.pid, number)
        self._asking.close()
        self.process.join(DEADLINE_SECONDS)
        return self.process.exitcode, self.errors.read_text()
