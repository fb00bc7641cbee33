"""Only one set of processes trains a run: a lock on its folder, and no process that outlives its parent."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path

from qwen3vl_core.errors import RequestError
from qwen3vl_core.process_death import death_with_parent
from qwen3vl_core.run_record import TRAINING_LOCK

# how long a process that was just killed may take to exit
PATIENCE_SECONDS = 20.0


def end_with_parent() -> None:
    """Ask Linux to kill this process when torchrun is killed: orphaned ranks would keep writing to the run's folder while
    the run is resumed. Does nothing on other systems, or in a process that torchrun did not start."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        death_with_parent()()


def end_forked_with_parent() -> None:
    """Let Linux kill every process forked from now on when this one ends. Otherwise, when a run is killed, its processes that write
    a checkpoint would wait forever and keep its memory. Does nothing on other systems."""
    if sys.platform != "linux":
        return
    die_with_parent, parent = death_with_parent(), 0

    def before() -> None:
        nonlocal parent
        parent = os.getpid()

    def in_child() -> None:
        die_with_parent()
        if os.getppid() != parent:
            # the parent ended before the child asked for the signal
            os.kill(os.getpid(), signal.SIGKILL)

    os.register_at_fork(before=before, after_in_child=in_child)


class RunLock:
    """Held by rank 0 until its process ends, however it ends. Forked processes do not hold it.

    Raises RequestError when another process is training the run. On a file system without locks nothing is checked.
    """

    def __init__(self, run_dir: Path, patience: float = PATIENCE_SECONDS) -> None:
        self._file = open(run_dir / TRAINING_LOCK, "a+")  # noqa: SIM115
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > end:
                    self._file.seek(0)
                    holder = self._file.read(200).strip() or "another process"
                    raise RequestError(f"{run_dir}: {holder} is already training it; stop that one first (qwen3vl runs stop)") from None
                time.sleep(0.1)
            except OSError:
                break
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
