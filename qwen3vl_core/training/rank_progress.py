"""Where each rank stands: a file a rank in the run's folder, for who watches the run when no step comes any more."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from qwen3vl_core.run_record import RANKS, VERSION, rank_file

ROOM = 384
"""Bytes of a file: each note replaces the one before by one write, without a moment in which the file is empty."""


class RankProgress:
    """The file of this rank. A note takes some microseconds; one that cannot be written (a full disk) is left out."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._fixed = {"v": VERSION, "rank": rank, "pid": os.getpid(), "host": socket.gethostname()}
        self._count = 0
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            (run_dir / RANKS).mkdir(exist_ok=True)
            self._descriptor = os.open(run_dir / RANKS / rank_file(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        # a rank that hangs in a collective runs no Python handler; this one writes the stack all the same
        faulthandler.register(signal.SIGQUIT, sys.__stderr__ or 2, all_threads=True)

    def note(self, step: int, doing: str) -> None:
        """step: steps done. doing: one of `run_record.DOINGS`."""
        if self._descriptor is None:
            return
        self._count += 1
        text = json.dumps(self._fixed | {"step": step, "doing": doing, "count": self._count, "time": round(time.time(), 3)})
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, text[: ROOM - 1].ljust(ROOM - 1).encode() + b"\n", 0)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
