"""What works beside a run without delaying or ending it: messages about it, and copies of its checkpoints.

Each is a process of its own that the supervisor starts and does not wait for; it may outlive the supervisor. All of them hold the lock of
the file `helpers` together, so that a command in the foreground can wait for them. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from console.runs.state import host, read_json
from console.runs.tail import JsonlTail, last_rows
from qwen3vl_core import notify
from qwen3vl_core.run_record import (  # fmt: skip
    CHECKPOINTS,
    EVENT,
    HELPERS,
    METRICS_FILE,
    MIRROR,
    NAN,
    RUN_VARIABLE,
    SAVED,
    TRAIN,
    VERSION,
    PlanRecord,
    checkpoint_step,
    finite,
)

NAN_SECONDS = 600.0
"""Between two messages about NaN."""
WAIT_SECONDS = 150.0
"""How long a command in the foreground waits for messages after the end of its run; a copy is waited for longer."""
MIRROR_SECONDS = 3600.0


class Companions:
    """The messages and copies of one run, for the holder of its lock."""

    def __init__(self, run_dir: Path, plan: PlanRecord) -> None:
        self.run_dir, self.pids = run_dir, set[int]()
        values = plan.get("options")
        options: Mapping[str, Any] = values if isinstance(values, dict) else {}
        self.plan = plan
        # of a job on several nodes the first one has the record
        silent = plan.get("kind") != "finetune" or (options.get("env") == "dlc" and os.environ.get("RANK", "0") != "0")
        listed, command = options.get("notify"), options.get("notify_command")
        self._notify = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
        self._command = command if isinstance(command, str) else None
        self.receivers = notify.Receivers() if silent else notify.receivers(self._notify, self._command)
        mirror, every = options.get("mirror"), options.get("mirror_every")
        self.mirrors = bool(isinstance(mirror, str) and mirror and not silent)
        self._every = every if isinstance(every, int) and every > 0 else 1
        self._unmirrored = 0
        self._copying = 0
        self._rows: JsonlTail | None = None
        self._nan_at = -NAN_SECONDS
        if self.receivers or self.mirrors:
            size = (run_dir / METRICS_FILE).stat().st_size if (run_dir / METRICS_FILE).exists() else 0
            self._rows = JsonlTail(run_dir / METRICS_FILE, size)
            # held for the life of the supervisor: who waits for helpers must not see the moment before the last one starts
            with contextlib.suppress(OSError):
                self._lock = _shared(run_dir)
        if self.mirrors:
            copied = read_json(run_dir / MIRROR).get("steps")
            newest = max((step for step in copied if isinstance(step, int)), default=0) if isinstance(copied, list) else 0
            self._unmirrored = sum(step > newest for step in _steps(run_dir))

    def look(self) -> None:
        """Read the new rows of the metrics: tell of NaN, copy checkpoints."""
        with _never_ends_a_run():
            self._look()

    def _look(self) -> None:
        if self._rows is None:
            return
        for row in self._rows.read(1 << 20):
            if row.get("kind") != EVENT:
                continue
            if row.get("event") == NAN and time.monotonic() >= self._nan_at + NAN_SECONDS:
                self._nan_at = time.monotonic()
                self.tell(notify.NAN, str(row.get("text") or ""))
            if row.get("event") == SAVED and self.mirrors:
                self._unmirrored += 1
        if self.mirrors and self._unmirrored >= self._every and not self._copying:
            self.copy()

    def tell(self, event: str, text: str, **more: Any) -> None:
        """Send a message, if anybody is to be told. event: a key of `notify.EVENTS`."""
        if not self.receivers:
            return
        with _never_ends_a_run():
            self._tell(event, text, more)

    def _tell(self, event: str, text: str, more: Mapping[str, Any]) -> None:
        message = self.message(event, text) | dict(more)
        given = {"notify": self._notify, "notify_command": self._command, "message": message}
        self._start("console.runs.send_message", stdin=json.dumps(given).encode())

    def message(self, event: str, text: str) -> dict[str, Any]:
        """The fields of a message: docs/reliability.md has them."""
        rows = last_rows(self.run_dir / METRICS_FILE)
        last: Mapping[str, Any] = next((row for row in reversed(rows) if row.get("kind") == TRAIN), {})
        options = self.plan.get("options")
        total = options.get("train_iters") if isinstance(options, dict) else None
        step = last.get("step")
        return {
            "v": VERSION, "event": event, "text": text, "run": self.run_dir.name, "name": str(self.plan.get("name", "")),
            "kind": str(self.plan.get("kind", "")), "path": str(self.run_dir), "host": host(), "time": round(time.time(), 3),
            "step": step if isinstance(step, int) else None, "train_iters": total if isinstance(total, int) else None,
            "loss": finite(last.get("loss")),
        }  # fmt: skip

    def copy(self) -> None:
        """Copy the newest checkpoint to the mirror."""
        self._unmirrored = 0
        self._copying = self._start("console.runs.mirror", str(self.run_dir))

    def ended(self) -> None:
        """The run has ended: copy its last checkpoint, too."""
        self.look()
        if self.mirrors and (self._unmirrored or self._copying):
            with _never_ends_a_run():
                self.copy()

    def reaped(self, pid: int) -> bool:
        """Note that a child has ended. Returns whether a copy has, whose result is then in `mirror.json`."""
        self.pids.discard(pid)
        if pid != self._copying:
            return False
        self._copying = 0
        return True

    def mirror_problem(self) -> str | None:
        """Why the last copy failed."""
        error = read_json(self.run_dir / MIRROR).get("error")
        return error if isinstance(error, str) else None

    def _start(self, module: str, *words: str, stdin: bytes = b"") -> int:
        """Start a module as a process that this one does not wait for. Returns its id, 0 where it could not be started."""
        # it is no process of the run: with its variable it would be taken for one
        environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
        with contextlib.suppress(OSError):
            lock = _shared(self.run_dir)
            try:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=2,
                    env=environment, start_new_session=True, pass_fds=(lock,), cwd="/",
                )  # fmt: skip
            finally:
                os.close(lock)
            self.pids.add(child.pid)
            child.returncode = 0  # reaped by the supervisor, together with all others
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.write(stdin)
                child.stdin.close()
            return child.pid
        return 0


def _shared(run_dir: Path) -> int:
    """A descriptor of the file `helpers`, locked together with others. Raises OSError."""
    lock = os.open(run_dir / HELPERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return lock


@contextlib.contextmanager
def _never_ends_a_run() -> Iterator[None]:
    """What fails beside a run is printed to its log; the supervisor goes on."""
    try:
        yield
    except Exception:
        traceback.print_exc()


def _steps(run_dir: Path) -> list[int]:
    try:
        names = os.listdir(run_dir / CHECKPOINTS)
    except OSError:
        return []
    return [step for name in names if (step := checkpoint_step(name)) is not None]


def wait_for_helpers(run_dir: Path, seconds: float, poll: float = 0.1) -> bool:
    """Wait until no message is being sent and no checkpoint copied. Returns whether that was so in time."""
    try:
        lock = os.open(run_dir / HELPERS, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True  # there were none
    until = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(poll)
            except OSError:
                return True
    finally:
        os.close(lock)


def unusable(options: Mapping[str, Any]) -> list[str]:
    """A line for each receiver in a run's options that cannot be used here."""
    listed, command = options.get("notify"), options.get("notify_command")
    texts = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
    return list(notify.receivers(texts, command if isinstance(command, str) else None, settings=False).problems)
