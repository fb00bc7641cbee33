"""A run's state on disk, the lock that says it is alive, and how both are read. Standard library only.

A run is alive while its supervisor holds an exclusive lock on `RUN_DIR/lock`; the kernel releases it when the supervisor
ends, however it ends. The lock says nothing about runs of other machines on shared storage: for these the age of the last
heartbeat decides. Only the holder of the lock writes `state.json`, always atomically.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from console.runs.tail import parsed
from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import open_regular, write_text
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import ALIVE, ENDED, HEARTBEAT, HOLDING, LOCK, QUEUED, STATE, StateRecord

MORE_STEPS = "--more-steps"
"""Of the supervisor: a run that is done has more steps now."""
FOREGROUND = "--foreground"
"""Of the supervisor: someone looks on."""
STALE_SECONDS = 60.0
"""A run on another machine without a sign of life for this long is lost."""
_LOCK_SECONDS = 2.0
# readers hold a shared lock for microseconds while they check, and a supervisor that has written its last state is
# about to release it: retry that long
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


def boot_id() -> str:
    """Changes at every boot and distinguishes machines with the same name; empty if the kernel does not provide it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def owner_name(uid: int) -> str:
    """The name of a user of this machine, else the number."""
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when the file is missing, damaged, too large, no regular file, or holds something else."""
    for _ in range(3):
        try:
            with open_regular(path) as file:
                data = file.read(limits.RUN_JSON + 1)
            value = parsed(data) if len(data) <= limits.RUN_JSON else None
        except OSError as error:
            if error.errno == errno.ESTALE:  # network storage: replaced between open and read
                continue
            return {}
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}
    return {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically: a reader sees the old object or the new one, never a partial file. Raises OSError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_state(run_dir: Path) -> StateRecord:
    """The content of `state.json`."""
    return cast(StateRecord, read_json(run_dir / STATE))


def sign_of_life(run_dir: Path) -> float | None:
    """Seconds since the heartbeat or the state was last written; None if neither exists."""
    times = []
    for name in (HEARTBEAT, STATE):
        with contextlib.suppress(OSError):
            times.append((run_dir / name).stat().st_mtime)
    return time.time() - max(times) if times else None


def is_here(state: StateRecord) -> bool:
    """Whether the run's processes are, or were, on this machine since its last boot."""
    return state.get("boot_id", "") == boot_id() and state.get("host") == host()


def runs_already(run_dir: Path) -> RequestError:
    """The error for starting a run that is alive."""
    return RequestError(filled("run {}: is running already; qwen3vl runs logs {} --follow shows it", run_dir.name, run_dir.name))


@contextlib.contextmanager
def locked_file(file: Path, wait: float, busy: Exception, no_locks: Exception, mode: int = 0o644) -> Iterator[None]:
    """Hold the lock of a file, which is created, inside the block. Raises `busy` if it does not come free within `wait` seconds,
    `no_locks` where the file system has none."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise busy from None
                time.sleep(0.005)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise no_locks from error
                raise
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold(run_dir: Path, wait: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the run's lock inside the block.

    Raises RequestError if another process holds it, or if the file system has no locks.
    """
    why = "{}: this file system has no file locks, so a live run cannot be detected; choose another folder with --runs"
    with locked_file(run_dir / LOCK, wait, runs_already(run_dir), RequestError(filled(why, run_dir.parent))):
        yield


def lock_held(run_dir: Path) -> bool | None:
    """Whether a process of this machine holds the run's lock; None if unknown."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def judge(run_dir: Path) -> tuple[str, StateRecord]:
    """(status, state): the recorded status, or `lost` if it says alive but there is no supervisor."""
    state = read_state(run_dir)
    if state.get("status") == QUEUED or state.get("status") not in ALIVE:
        return _written(state), state
    held = lock_held(run_dir) if state.get("boot_id", "") == boot_id() else None
    if held:
        return state["status"], state
    age = sign_of_life(run_dir)
    fresh = age is not None and age <= STALE_SECONDS
    if held is None:
        return (state["status"] if fresh else "lost"), state
    # a supervisor writes its final state before it releases the lock, so the state read now is final
    state = read_state(run_dir)
    if state.get("status") == "starting" and not state.get("supervisor_pid") and fresh:
        return "starting", state  # created, not started yet
    return ("lost" if state.get("status") in HOLDING else _written(state)), state


def _written(state: StateRecord) -> str:
    status = state.get("status")
    return status if status in ENDED or status == QUEUED else "lost"
