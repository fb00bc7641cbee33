"""Start, follow, stop and resume runs. A run outlives the process that starts it."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from console.runs import processes, queue
from console.runs.attempts import SAVE_SIGNALS, grace_seconds
from console.runs.state import FOREGROUND, MORE_STEPS, hold, is_here, owner_name, read_state, runs_already, write_json
from console.runs.store import Run
from console.runs.tail import FileFollower
from qwen3vl_core import log_lines
from qwen3vl_core.errors import EXIT_FAILED, EXIT_REQUEST, RequestError, WorkError
from qwen3vl_core.files import write_text
from qwen3vl_core.language import filled
from qwen3vl_core.progress import ENVIRONMENT as PROGRESS_VARIABLE
from qwen3vl_core.run_record import ALIVE, QUEUED, RUN_VARIABLE, SAVE, STATE, STOP, StateRecord, version_problem

START_SECONDS = 120.0
POLL_SECONDS = 0.05


def start(run: Run, *, columns: int | None = None, foreground: bool = False) -> None:
    """Start a new run under its own supervisor. Returns when its command runs, or when it is queued as its GPUs are in use.

    columns: width of the terminal that follows its log, if there is one; progress is then drawn as a bar. foreground: it starts at once,
    except with --queue always. Raises RequestError if it is running or was started before, WorkError if its command cannot be executed.
    """
    _supervise(run, [FOREGROUND] * foreground, columns)


def resume(
    run: Run, *, columns: int | None = None, foreground: bool = False, changes: Mapping[str, Any] | None = None, foreign: bool = False,
) -> None:  # fmt: skip
    """Run the same command in the same folder again; a finetune resumes from its last checkpoint.

    For a failed, stopped or lost run. changes: new values for options of a finetune, such as more steps for one that is done.
    Raises RequestError if it is done or alive, if processes of a lost run still exist, or for a change that a run cannot resume
    with; WorkError if its command cannot be executed.
    """
    require_own(run, foreign)
    if not changes:
        _supervise(run, ["--resume", *[FOREGROUND] * foreground], columns)
        return
    from console.runs import plan_record

    if run.alive:
        raise runs_already(run.path)
    before = plan_record.change_options(run.path, run.plan, changes)
    try:
        _supervise(run, ["--resume", MORE_STEPS, *[FOREGROUND] * foreground], columns)
    except BaseException:
        # it did not start: restore its plan
        plan_record.write_record(run.path, before)
        raise


def _supervise(run: Run, flags: list[str], columns: int | None) -> None:
    if problem := version_problem(run.plan):
        raise RequestError(f"run {run.id}: {problem}")
    state = run.state
    if state["status"] in ALIVE and state.get("supervisor_pid") and is_here(state):
        raise runs_already(run.path)  # the supervisor would fail too, but only after waiting for the lock
    environment = {k: v for k, v in os.environ.items() if k != RUN_VARIABLE}
    from console.runs import plan_record  # imports the options' declarations, which a list of runs does not need

    environment["PYTHONPATH"] = plan_record.python_path(environment.get("PYTHONPATH", ""))
    environment[PROGRESS_VARIABLE] = "bar" if columns else "lines"
    if columns:
        environment["COLUMNS"] = str(columns)
    try:
        # -P: a file or folder in the current folder must not shadow a module
        done = subprocess.run(
            [sys.executable, "-P", "-m", "console.runs.supervisor", str(run.path), *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            env=environment, start_new_session=True, timeout=START_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise WorkError(filled("run {}: its supervisor did not answer in {:.0f} s; see {}", run.id, START_SECONDS, run.log)) from None
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["its supervisor ended without a message"])[-1]
        if done.returncode == EXIT_REQUEST:
            raise RequestError(line)
        raise WorkError(filled("run {}: {}; see {}", run.id, line, run.log))


def require_own(run: Run, foreign: bool) -> None:
    """Raises RequestError for a run of another user, unless `foreign` allows it: its folder may hold anything, its processes are theirs."""
    owner = run.path.lstat().st_uid
    if foreign or owner == os.geteuid():
        return
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=run.path.parent) as probe:
        if os.fstat(probe.fileno()).st_uid == owner:
            return  # network storage that gives every file another owner
    raise RequestError(filled("run {}: belongs to {}; ask them, or add --foreign if it is yours all the same", run.id, owner_name(owner)))


def stop(run: Run, grace: float | None = None, *, foreign: bool = False) -> None:
    """Ask a live run to stop, and return immediately (`wait` waits). A queued run leaves the queue; of a lost run, end what is left.

    The run's processes get SIGTERM, then the grace period, then SIGKILL; a checkpoint that is being written is waited for. grace:
    seconds in place of the run's own, also of a run that is stopping already; 0 kills at once, whatever is being written. A run
    on another machine is asked by a file in its folder. foreign: also a run of another user. Raises RequestError when it has ended, or is
    lost on another machine, and WorkError when SIGKILL does not end processes of a lost run.
    """
    require_own(run, foreign)
    state = run.state
    status = state["status"]
    pid = state.get("supervisor_pid")
    if status == QUEUED:
        _cancel(run, state)
    elif status in ALIVE and isinstance(pid, int) and pid > 1:
        if grace is None:
            (run.path / STOP).touch()
        else:
            write_text(run.path / STOP, f"{grace:g}")
        processes.signal_supervisor(run.path, state, signal.SIGTERM)
    elif status in ALIVE or (status == "lost" and (is_here(state) or "host" not in state)):
        _end_lost(run, grace_seconds(run.plan) if grace is None else grace)
    elif status == "lost":
        raise RequestError(
            filled(
                "run {}: lost on {}, and only that machine can end its remaining processes; there: qwen3vl runs stop {}",
                run.id,
                state.get("host"),
                run.number,
            )
        )
    else:
        raise RequestError(filled("run {}: {} already; nothing to stop", run.id, status))


def _cancel(run: Run, state: StateRecord) -> None:
    """Take a run out of the queue: its supervisor does, if one waits."""
    (run.path / STOP).touch()
    processes.signal_supervisor(run.path, state, signal.SIGCHLD)
    entry = queue.look(run.path.parent).get(run.id)
    if entry is None or entry.attended:
        return
    with contextlib.suppress(RequestError), hold(run.path), queue.lock(run.path.parent):  # else a supervisor has come, and sees the file
        if read_state(run.path).get("status") == QUEUED:
            write_json(run.path / STATE, {**read_state(run.path), "status": "stopped", "exit_code": None, "ended": time.time()})
            queue.forget(run.path.parent, run.id)
        (run.path / STOP).unlink(missing_ok=True)


def _end_lost(run: Run, grace: float) -> None:
    """End the processes of a run without a supervisor, and write that it is stopped."""
    with hold(run.path):
        state = read_state(run.path)
        if state.get("status") not in ALIVE and state:
            return  # it has ended by itself since
        left = processes.end(lambda: processes.strays(run.path), grace)
        if left:
            pids = ", ".join(str(p.pid) for p in left)
            raise WorkError(filled("run {}: processes that SIGKILL did not end: {}; only a reboot of the machine ends them", run.id, pids))
        write_json(run.path / STATE, {**state, "status": "stopped", "exit_code": None, "ended": time.time()})
        (run.path / STOP).unlink(missing_ok=True)
    queue.wake(queue.look(run.path.parent))


def save_now(run: Run) -> None:
    """Ask a live finetune for a checkpoint at its next step, and return immediately. Raises RequestError if it cannot save."""
    state = run.state
    if run.kind != "finetune":
        raise RequestError(filled("run {}: a {} saves no checkpoints; only a finetune does", run.id, run.kind))
    if state["status"] not in ("starting", "running"):
        raise RequestError(filled("run {}: {}; only a live finetune can save", run.id, state["status"]))
    try:
        (run.path / SAVE).touch()
    except OSError as error:
        raise WorkError(filled("{}: {}; free some space, or ask again later", run.path / SAVE, error.strerror)) from None
    processes.signal_supervisor(run.path, state, signal.SIGCHLD)  # wakes it; it would look within a second anyway


def disk_usage(path: Path) -> int:
    """Bytes that a folder takes on its disk; symbolic links are not followed, and hard links count once."""
    total, seen = 0, set()
    for folder, _, names in os.walk(path):
        for name in (*names, "."):
            with contextlib.suppress(OSError):
                stat = os.lstat(os.path.join(folder, name))
                if (stat.st_dev, stat.st_ino) not in seen:
                    seen.add((stat.st_dev, stat.st_ino))
                    total += stat.st_blocks * 512
    return total


def delete(run: Run, *, foreign: bool = False) -> int:
    """Delete a run's folder with its checkpoints; foreign: also of another user's run. Returns the number of bytes freed.

    It is renamed first, so that no reader sees half of it. Raises RequestError if it is alive, or if processes of a lost run
    still exist, WorkError if the folder cannot be removed.
    """
    require_own(run, foreign)
    if run.alive:
        raise RequestError(filled("run {}: {}; stop it first: qwen3vl runs stop {}", run.id, run.status, run.number))
    if run.path.is_symlink():
        run.path.unlink()  # its target is not ours to delete
        return 0
    try:
        with hold(run.path):
            left = processes.strays(run.path)
            if left:
                raise RequestError(
                    filled("run {}: some of its processes are still running; end them with qwen3vl runs stop {}", run.id, run.number)
                )
            size = disk_usage(run.path)
            gone = run.path.with_name(f".{run.id}-deleted")
            shutil.rmtree(gone, ignore_errors=True)
            run.path.rename(gone)
        shutil.rmtree(gone)
    except FileNotFoundError:
        raise RequestError(filled("run {}: was deleted already", run.id)) from None
    except OSError as error:
        raise WorkError(filled("{}: {}; delete it by hand, or ask who owns it", error.filename or run.path, error.strerror)) from None
    return size


def wait(run: Run, timeout: float | None = None) -> str:
    """Wait for a run's end. Returns its final status, or after `timeout` seconds its current one."""
    until = None if timeout is None else time.monotonic() + timeout
    while (status := run.status) in ALIVE and (until is None or time.monotonic() < until):
        time.sleep(POLL_SECONDS)
    return status


def follow(run: Run, stream: IO[Any], *, offset: int = 0, signals: list[int] | None = None) -> int:
    """Copy a run's log to `stream` (text or binary) as it grows, until the run has ended. Returns its exit code.

    Begins at byte `offset` of the log. Ctrl-C asks the run to stop and keeps following; a second Ctrl-C raises
    KeyboardInterrupt while the run stops by itself. SIGTERM asks it to stop, too, and never makes this function return early, however
    often it comes: its sender (docker stop, a scheduler) kills the remaining processes when this one ends. SIGUSR1 and SIGUSR2 ask for a
    checkpoint if the run's --save-before-signal names them. signals: the list of an enclosing `caught_signals`.
    The exit code of a run that has none (lost) is 1.
    """
    copier = _Copier(run.log, stream, offset)
    with caught_signals(signals) as came:
        asked = False
        while True:
            warning = f"SIG{run.options.get('save_before_signal', 'USR1')}"
            while (number := next((n for n in came if n in SAVE_SIGNALS), None)) is not None:
                came.remove(number)
                if signal.Signals(number).name == warning:
                    with contextlib.suppress(RequestError, WorkError):
                        save_now(run)
            if came and not asked:
                asked = True
                with contextlib.suppress(RequestError):  # it ended just now
                    stop(run)
            if came.count(signal.SIGINT) > 1:
                raise KeyboardInterrupt
            # checked before the read: if the run had ended by then, the read sees everything that it wrote
            state = run.state
            while copier.copy():
                pass
            if state["status"] not in ALIVE:
                code = state.get("exit_code")
                return code if isinstance(code, int) else EXIT_FAILED
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def caught_signals(outer: list[int] | None = None) -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 in a list, so that they neither raise in the middle of a copy nor end this process.

    Does nothing outside the main thread, the only one that gets signals. outer: the list of an enclosing block, which is used instead."""
    came: list[int] = [] if outer is None else outer
    if outer is not None or threading.current_thread() is not threading.main_thread():
        yield came
        return
    numbers = (signal.SIGINT, signal.SIGTERM, *SAVE_SIGNALS)
    before = [signal.signal(number, lambda number, frame: came.append(number)) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Copier:
    """Copies new output in a log to a stream, our own lines without their tags; as bytes if the stream has a binary buffer."""

    def __init__(self, path: Path, stream: IO[Any] | io.TextIOBase, offset: int) -> None:
        self.follower = FileFollower(path, offset)
        self.stream = stream
        self.binary = getattr(stream, "buffer", None) or (None if isinstance(stream, io.TextIOBase) else stream)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.tags = log_lines.TagRemover()

    def copy(self) -> bool:
        """Copy one piece. Returns whether there was any."""
        new, _ = self.follower.read()
        data = self.tags.removed(new)
        if not data:
            return bool(new)
        if self.binary is None:
            self.stream.write(self.decoder.decode(data))
        else:
            self.stream.flush()
            self.binary.write(data)
        self.stream.flush()
        return bool(new)
