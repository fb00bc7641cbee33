"""`python -m console.runs.supervisor RUN_DIR [--resume]`: runs a run's command, detached from the process that started it.

It leaves the terminal's session, holds the run's lock for its life, keeps the state, and ends every process of the run
on request: by SIGTERM, or from another machine by a file `stop` in the run's folder. A file `save` there asks
for a checkpoint during training. The command that was
typed returns as soon as the run's process runs (exit code 0), failed to start (1) or was refused (2, one line on
standard error). Standard library only, beside this package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Unpack, cast

from console.runs import processes
from console.runs.state import (
    ALIVE,
    ENDED,
    STALE_SECONDS,
    boot_id,
    hold,
    host,
    read_json,
    read_state,
    sign_of_life,
    write_json,
)  # fmt: skip
from qwen3vl_core import log_lines
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError
from qwen3vl_core.run_record import HEARTBEAT, LOG, PLAN, RUN_VARIABLE, SAVE, STATE, STOP, PlanRecord, StateRecord

GRACE_VARIABLE = "QWEN3VL_GRACE"
GRACE_SECONDS = 60.0
"""From the request to stop to SIGKILL: a checkpoint can finish."""
LEFTOVER_SECONDS = 5.0
"""The same for processes left behind by a command that ended by itself."""
TICK_SECONDS, BUSY_TICK_SECONDS = 1.0, 0.2
SAVE_SECONDS = 30.0
"""How long writing the final state is retried (a full disk)."""


def grace_seconds() -> float:
    """The grace period, from the environment where it is set. Raises RequestError."""
    text = os.environ.get(GRACE_VARIABLE, "")
    try:
        seconds = float(text or GRACE_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 86400:
        raise RequestError(f"{GRACE_VARIABLE}={text}: must be seconds from 0 to 86400; use {GRACE_SECONDS:g}")
    return seconds


class Supervisor:
    """One attempt at one run, by the holder of its lock."""

    def __init__(self, run_dir: Path, grace: float) -> None:
        self.run_dir, self.grace = run_dir, grace
        self.state: StateRecord = {}
        self.saved = True
        self.child = 0
        self.is_torchrun = False
        self.exit_code: int | None = None
        self.stop_asked = self.stopping = False
        self.kill_at: float | None = None
        self.killed = 0

    # the state

    def save(self, **changes: Unpack[StateRecord]) -> None:
        """Update state.json; when it cannot be written now (a full disk), a later tick writes it."""
        self.state |= changes
        try:
            write_json(self.run_dir / STATE, self.state)
            self.saved = True
        except OSError:
            self.saved = False

    def say(self, tag: str, text: str) -> None:
        """Write one line of the supervisor to the run's log. tag: one of `log_lines.TAGS`."""
        with contextlib.suppress(OSError):
            os.write(2, f"{log_lines.written(text, tag)}\n".encode())

    # the child

    def start(self) -> str:
        """Start the command. Returns an error line when that fails, which is then in state.json and in the log too."""
        plan = cast(PlanRecord, read_json(self.run_dir / PLAN))
        command = plan.get("command")
        try:
            if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
                raise ValueError(f"{self.run_dir / PLAN}: holds no command; start a new run")
            folder = plan.get("cwd")
            where = folder if isinstance(folder, str) and os.path.isdir(folder) else str(self.run_dir)
            environment = {
                **os.environ,
                RUN_VARIABLE: str(self.run_dir),
                "PYTHONUNBUFFERED": "1",
                # when one worker of torchrun ends badly it gives the others this long, else half the grace period
                "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, round(self.grace))),
            }
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=1, stderr=2, cwd=where, env=environment, start_new_session=True
            )
        except (OSError, ValueError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
            line = f"the command could not be started: {reason}".replace("\n", " ")
            self.say(log_lines.NOT_STARTED, line)
            code = 126 if isinstance(error, PermissionError) else 127
            self.finish(status="failed", exit_code=code, error=line)
            return line
        self.child, self.is_torchrun = child.pid, "torch.distributed.run" in command
        child.returncode = 0  # reaped below, together with the orphans that become this process's children
        self.save(status="running", pid=child.pid)
        return ""

    def reap(self) -> None:
        """Reap every ended child; keep the exit code of the command."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.child:
                code = os.waitstatus_to_exitcode(status)
                self.exit_code = code if code >= 0 else 128 - code

    # the loop

    def watch(self, wake: int) -> None:
        """Watch until no process of the run is left. wake: a descriptor that is readable after a signal."""
        me = os.getpid()
        while True:
            self.reap()
            self.beat()
            if not self.saved:
                self.save()
            if self.exit_code is None and not self.stopping and (self.stop_asked or (self.run_dir / STOP).exists()):
                self.begin_stop()
            elif self.exit_code is None and (self.run_dir / SAVE).exists():
                self.ask_to_save()
            busy = self.stopping or self.exit_code is not None
            if busy:
                left = processes.descendants(me)
                if self.exit_code is not None and not left:
                    return
                if self.kill_at is None:  # the command ended by itself and left processes behind
                    processes.terminate(left)
                    self.kill_at = time.monotonic() + min(self.grace, LEFTOVER_SECONDS)
                elif time.monotonic() > self.kill_at + processes.KILL_SECONDS:
                    self.state["error"] = f"processes that SIGKILL did not end: {', '.join(str(p.pid) for p in left)}"
                    return
                elif time.monotonic() >= self.kill_at:
                    if not self.killed and left:
                        self.killed = len(left)
                        self.say(log_lines.KILLED, f"{len(left)} process{'es' if len(left) > 1 else ''} did not end in time; killed")
                    processes.kill(left)
            with contextlib.suppress(BlockingIOError):
                if select.select([wake], [], [], BUSY_TICK_SECONDS if busy else TICK_SECONDS)[0]:
                    os.read(wake, 4096)

    def beat(self) -> None:
        with contextlib.suppress(OSError):
            (self.run_dir / HEARTBEAT).touch()

    def begin_stop(self) -> None:
        """SIGTERM to the command's process group and to every other below it; of torchrun, to its workers alone."""
        self.stopping = True
        self.kill_at = time.monotonic() + self.grace
        self.save(status="stopping")
        self.say(log_lines.STOP_ASKED, f"asked to stop; {self.grace:g} s to end")
        below = processes.descendants(os.getpid())
        # torchrun would pass SIGTERM on a second time and kill its workers after 30 s, whatever they save (before
        # torch 2.12 that is fixed); left alone it waits for them and ends with them
        workers = [p for p in below if p.group != self.child]
        processes.terminate(workers if workers and self.is_torchrun else below)

    def ask_to_save(self) -> None:
        """SIGUSR1 to every descendant that has a handler for it; it would end the others, torchrun among them."""
        with contextlib.suppress(OSError):
            (self.run_dir / SAVE).unlink(missing_ok=True)
        listening = [p for p in processes.descendants(os.getpid()) if processes.catches(p.pid, signal.SIGUSR1)]
        processes.send(listening, signal.SIGUSR1)
        text = "asked to save a checkpoint" if listening else "asked to save, but the training has not begun; nothing to save yet"
        self.say(log_lines.SAVE_ASKED, text)

    def finish(self, **final: Unpack[StateRecord]) -> None:
        """Write the final state. Nothing may follow: from then on others may start the run again."""
        with contextlib.suppress(OSError):
            (self.run_dir / STOP).unlink(missing_ok=True)
            (self.run_dir / SAVE).unlink(missing_ok=True)
        final["ended"] = time.time()
        self.save(**final)
        until = time.monotonic() + SAVE_SECONDS
        while not self.saved and time.monotonic() < until:
            time.sleep(0.5)
            self.save()

    def finish_from_exit_code(self) -> None:
        code, error = self.exit_code, self.state.get("error")
        status = "stopped" if self.stopping else "failed" if code or error else "done"
        if status == "failed" and code is not None and code > 128 and error is None:
            with contextlib.suppress(ValueError):
                error = f"ended by {signal.Signals(code - 128).name}"
        self.finish(status=status, exit_code=code, error=error)


def claim(run_dir: Path, resume: bool) -> None:
    """Check that this run may start or resume; only for the holder of the lock. Raises RequestError."""
    state, name = read_state(run_dir), run_dir.name
    status = state.get("status")
    fresh = status == "starting" and not state.get("supervisor_pid")
    if not resume and not fresh:
        written = status if status in ENDED else "lost"
        raise RequestError(f"run {name}: was started before ({written}); resume it by qwen3vl runs resume {name}")
    if resume and (status == "done" or fresh):
        raise RequestError(f"run {name}: {'is done' if status == 'done' else 'was not started yet'}; nothing to resume")
    if status in ALIVE and not fresh and state.get("boot_id") != boot_id():
        age = sign_of_life(run_dir)
        if age is not None and age <= STALE_SECONDS:
            raise RequestError(f"run {name}: it ran on {state.get('host')} {age:.0f} s ago; stop it first, or wait {STALE_SECONDS:.0f} s")
    left = processes.strays(run_dir)
    if left:
        pids = ", ".join(str(p.pid) for p in left[:8])
        raise RequestError(f"run {name}: processes of it are still there ({pids}); end them by qwen3vl runs stop {name}")


def supervise(run_dir: Path, resume: bool, report: Callable[[str], None]) -> None:
    """Hold the lock and run the command to its end. report: called with one line as soon as the command has started or failed to."""
    grace = grace_seconds()
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    supervisor = Supervisor(run_dir, grace)

    def ask_to_stop(number: int, frame: object) -> None:
        supervisor.stop_asked = True

    # handlers, not SIG_IGN: what is ignored here would stay ignored in the command
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)
    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    with hold(run_dir):
        claim(run_dir, resume)
        for asked in (STOP, SAVE):
            (run_dir / asked).unlink(missing_ok=True)
        if resume:
            _take_a_free_port(run_dir)
        log = os.open(run_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        processes.become_subreaper()
        now = time.time()
        supervisor.beat()
        supervisor.save(
            status="starting", supervisor_pid=os.getpid(), pid=None, host=host(), boot_id=boot_id(),
            exit_code=None, started=now, ended=None, error=None,
        )  # fmt: skip
        if resume:
            supervisor.say(log_lines.RESUMED, f"resumed {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))} on {host()}")
        failure = supervisor.start()
        report(f"failed {failure}" if failure else "ok")
        if failure:
            return
        try:
            supervisor.watch(wake)
        except Exception as error:
            traceback.print_exc()
            processes.end(lambda: processes.descendants(os.getpid()), grace)
            supervisor.state["error"] = f"the supervisor failed: {type(error).__name__}: {error}"
            supervisor.reap()
        supervisor.finish_from_exit_code()


def _take_a_free_port(run_dir: Path) -> None:
    """A resumed torchrun gets a port that is free now; the rest of the command stays as it was."""
    plan = cast(PlanRecord, read_json(run_dir / PLAN))
    command = plan.get("command")
    if isinstance(command, list) and "torch.distributed.run" in command and "--master-port" in command[:-1]:
        from console.runs.plan_record import write_record
        from qwen3vl_core.layout.torchrun_command import free_port

        command[command.index("--master-port") + 1] = str(free_port())
        write_record(run_dir, plan)


def main(arguments: list[str] | None = None) -> int:
    """Detach, and wait until the detached supervisor reports whether the command started."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    resume = "--resume" in words
    words = [w for w in words if w != "--resume"]
    if len(words) != 1:
        print("usage: python -m console.runs.supervisor RUN_DIR [--resume]", file=sys.stderr)
        return EXIT_REQUEST
    run_dir = Path(words[0]).absolute()
    if not (run_dir / PLAN).is_file():
        print(f"{run_dir}: no run: {PLAN} is missing", file=sys.stderr)
        return EXIT_REQUEST
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with open(reader, encoding="utf-8", errors="replace") as answers:
            verdict, _, line = answers.read().partition(" ")
        os.waitpid(child, 0)
        if verdict != "ok":
            print(line or f"run {run_dir.name}: the supervisor ended before the command started", file=sys.stderr)
        return {"ok": EXIT_DONE, "refused": EXIT_REQUEST}.get(verdict, EXIT_FAILED)
    _detached(run_dir, resume, reader, writer)


def _detached(run_dir: Path, resume: bool, reader: int, writer: int) -> NoReturn:
    """In the grandchild: supervise, then end the process; never returns to the caller's frames."""
    code = EXIT_FAILED
    try:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(EXIT_DONE)  # a session's leader could get a terminal again; the grandchild is none
        os.chdir("/")
        quiet = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(quiet, standard)
        os.close(quiet)

        def report(text: str) -> None:
            nonlocal writer
            if writer >= 0:
                with contextlib.suppress(OSError):  # who started it may be gone by now
                    os.write(writer, text.encode(errors="replace"))
                os.close(writer)
                writer = -1

        try:
            supervise(run_dir, resume, report)
            code = EXIT_DONE
        except RequestError as error:
            report(f"refused {error}")
            code = EXIT_REQUEST
        except BaseException as error:
            traceback.print_exc()
            report(f"failed run {run_dir.name}: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
