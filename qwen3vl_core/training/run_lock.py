"""One run is trained by one set of processes: a lock on its folder, and no process that outlives the one that started it."""

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

# what a run that was just killed may take to be gone
PATIENCE_SECONDS = 20.0


def end_with_parent() -> None:
    """Ask Linux to kill this process when torchrun is killed: ranks without it would go on and write to the run's folder while
    the run is resumed. Does nothing elsewhere, and for a process that torchrun did not start."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        death_with_parent()()


def end_forked_with_parent() -> None:
    """Let Linux kill every process that this one forks from now on when this one ends. The processes that write a checkpoint wait for
    the run's answer for ever when the run is killed, and keep its memory. Does nothing elsewhere."""
    if sys.platform != "linux":
        return
    die_with_parent, parent = death_with_parent(), 0

    def before() -> None:
        nonlocal parent
        parent = os.getpid()

    def in_child() -> None:
        die_with_parent()
        if os.getppid() != parent:
            # it ended before this was asked for
            os.kill(os.getpid(), signal.SIGKILL)

    os.register_at_fork(before=before, after_in_child=in_child)


class RunLock:
    """Held by the first rank as long as it lives, however it ends. Processes that it forks do not have it.

    Raises RequestError when another process trains the run. A file system without locks lets every process in.
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
                    raise RequestError(f"{run_dir}: {holder} trains it already; stop that one first (qwen3vl runs stop)") from None
                time.sleep(0.1)
            except OSError:
                break
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let the next one in."""
        self._file.close()
