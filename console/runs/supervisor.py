"""`python -m console.runs.supervisor RUN_DIR [--resume | --queued] [--foreground]`: runs a run's command, detached from who started it.

It leaves the terminal's session, holds the run's lock for its life, keeps the state, and ends every process of the run
on request: by SIGTERM, or from another machine by a file `stop` in the run's folder. A file `save` there, or the signal of
--save-before-signal, asks for a checkpoint during training. A finetune that failed is started again as often as --max-restarts
says. A finetune whose GPUs are in use waits for them first. The command that was typed returns as soon as the run's process runs or the run
is queued (exit code 0), failed to start (1) or was refused (2, one line on standard error). Standard library only, beside this package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

from console.runs import processes
from console.runs.admission import Admission, tend
from console.runs.attempts import SAVE_SIGNALS, Supervisor
from console.runs.free_port import with_a_free_port
from console.runs.queue import WAITS, not_begun
from console.runs.state import FOREGROUND, MORE_STEPS, STALE_SECONDS, boot_id, hold, host, read_json, read_state, sign_of_life
from qwen3vl_core import log_lines
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import ALIVE, ENDED, LOG, PLAN, QUEUED, SAVE, STOP, PlanRecord, StateRecord


class Start(NamedTuple):
    """How a run starts."""

    resume: bool = False
    more: bool = False
    """A run that is done has more steps now."""
    queued: bool = False
    """It is in the queue, and the supervisor that waited for its GPUs has ended."""
    foreground: bool = False
    """Someone looks on."""


def claim(run_dir: Path, start: Start) -> None:
    """Check that this run may start or resume; only for the holder of the lock. Raises RequestError."""
    state, name = read_state(run_dir), run_dir.name
    status, resume = state.get("status"), start.resume
    if start.queued or status == QUEUED:
        if not start.queued:
            raise RequestError(filled("run {}: is queued already; qwen3vl runs queue shows when it starts", name))
        if status != QUEUED and not not_begun(state):
            raise RequestError(filled("run {}: is not queued any more", name))
        return
    fresh = status == "starting" and not state.get("supervisor_pid")
    if not resume and not fresh:
        written = status if status in ENDED else "lost"
        raise RequestError(filled("run {}: was started before ({}); resume it by qwen3vl runs resume {}", name, written, name))
    if resume and ((status == "done" and not start.more) or fresh):
        raise RequestError(filled("run {}: {}; nothing to resume", name, "is done" if status == "done" else "was not started yet"))
    if status in ALIVE and not fresh and state.get("boot_id") != boot_id():
        age = sign_of_life(run_dir)
        if age is not None and age <= STALE_SECONDS:
            raise RequestError(
                filled("run {}: it ran on {} {:.0f} s ago; stop it first, or wait {:.0f} s", name, state.get("host"), age, STALE_SECONDS)
            )
    left = processes.strays(run_dir)
    if left:
        pids = ", ".join(str(p.pid) for p in left[:8])
        raise RequestError(filled("run {}: processes of it are still there ({}); end them by qwen3vl runs stop {}", name, pids, name))


def supervise(run_dir: Path, start: Start, report: Callable[[str], None]) -> None:
    """Hold the lock, wait for the run's GPUs and run the command to its end. report: called with one line as soon as the run is queued, or
    the command has started or failed to."""
    plan = cast(PlanRecord, read_json(run_dir / PLAN))
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    supervisor = Supervisor(run_dir, plan)
    options = plan.get("options")
    warning = f"SIG{options.get('save_before_signal', 'USR1')}" if isinstance(options, dict) else "SIGUSR1"

    def ask_to_stop(number: int, frame: object) -> None:
        supervisor.stop_asked = True

    def ask_to_save(number: int, frame: object) -> None:
        if plan.get("kind") == "finetune" and signal.Signals(number).name == warning:
            supervisor.save_asked = True

    # handlers, not SIG_IGN: what is ignored here would stay ignored in the command
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)
    signal.signal(signal.SIGTERM, ask_to_stop)
    for number in SAVE_SIGNALS:
        signal.signal(number, ask_to_save)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    with hold(run_dir):
        claim(run_dir, start)
        for asked in () if start.queued else (STOP, SAVE):
            (run_dir / asked).unlink(missing_ok=True)
        if start.resume:
            supervisor.plan = with_a_free_port(run_dir)
        # a FIFO has no reader, and is an error
        log = os.open(run_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        os.set_blocking(log, True)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        supervisor.beat()
        starting: StateRecord = {
            "status": "starting", "supervisor_pid": os.getpid(), "supervisor_start": processes.start_of(os.getpid()), "pid": None,
            "host": host(), "boot_id": boot_id(), "exit_code": None, "started": time.time(), "ended": None, "error": None,
            "stalled": None, "restarts": 0, "mirror": None,
        }  # fmt: skip
        admission = Admission(supervisor, start.foreground)
        if not (admission.go_on(starting) if start.queued else admission.enter(starting)):
            report("ok")
            if not admission.wait(wake, starting):
                return
            supervisor.began = time.monotonic()
        # only now: another supervisor that this one lets go on while it waits must not be a process of this run
        processes.become_subreaper()
        supervisor.reserve()
        if start.resume:
            now = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(supervisor.state["started"]))
            supervisor.say(log_lines.RESUMED, f"resumed {now} on {host()}")
        supervisor.run(wake, report)
    if supervisor.state.get("gpus"):
        tend(run_dir.parent)


def main(arguments: list[str] | None = None) -> int:
    """Detach, and wait until the detached supervisor reports whether the command started."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    flags = ("--resume", MORE_STEPS, WAITS, FOREGROUND)
    start = Start(*(flag in words for flag in flags))
    words = [w for w in words if w not in flags]
    if len(words) != 1:
        print(f"usage: python -m console.runs.supervisor RUN_DIR [{'] ['.join(flags)}]", file=sys.stderr)
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
    _detached(run_dir, start, reader, writer)


def _detached(run_dir: Path, start: Start, reader: int, writer: int) -> NoReturn:
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
            supervise(run_dir, start, report)
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
