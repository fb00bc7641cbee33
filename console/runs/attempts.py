"""The attempts at one run: start its command, watch it, stop it, save, start it again after a failure. Standard library only."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from console.runs import log_rotation, processes
from console.runs.companions import Companions
from console.runs.free_port import with_a_free_port
from console.runs.outcome import Attempt, Outcome, Saves, record_restart, silent_nodes
from console.runs.stall import StallWatch, least_seconds
from console.runs.state import write_json
from qwen3vl_core import log_lines, notify
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import open_regular
from qwen3vl_core.language import filled
from qwen3vl_core.layout.gpus import VISIBLE
from qwen3vl_core.run_record import (  # fmt: skip
    HEARTBEAT,
    OLD_LOG,
    PLAN,
    RESERVE,
    RUN_VARIABLE,
    SAVE,
    STARTED_VARIABLE,
    STATE,
    STOP,
    TORCHRUNS,
    PlanRecord,
    StateRecord,
)

SAVE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
GRACE_VARIABLE = "QWEN3VL_GRACE"
GRACE_SECONDS = 60.0
"""From the request to stop to SIGKILL, where neither the run's --grace nor the environment says otherwise."""
STUCK_SAVE_SECONDS = 600.0
"""A checkpoint whose files have not changed for this long is no longer waited for."""
STALL_LINE_SECONDS = 60.0
"""Between two lines about the same stall."""
STACK_SECONDS = 2.0
"""For the ranks to write their stacks, before a stalled attempt is killed."""
LONGEST_WAIT_SECONDS = 300.0
"""Before a restart."""
RESERVE_BYTES = 64 << 10
LEFTOVER_SECONDS = 5.0
"""The same for processes left behind by a command that ended by itself."""
TICK_SECONDS, BUSY_TICK_SECONDS = 1.0, 0.2
SAVE_SECONDS = 30.0
"""How long writing the final state is retried (a full disk)."""


def grace_seconds(plan: PlanRecord | None = None) -> float:
    """The grace period: from the environment where it is set, else the run's option. Raises RequestError."""
    text = os.environ.get(GRACE_VARIABLE, "")
    try:
        seconds = float(text or _option(plan or {}, "grace", GRACE_SECONDS))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 86400:
        raise RequestError(filled("{}={}: must be seconds from 0 to 86400; use {:g}", GRACE_VARIABLE, text, GRACE_SECONDS))
    return seconds


def _option(plan: PlanRecord, name: str, default: float) -> float:
    """A number among the options of a plan; of an older or damaged plan the default."""
    options = plan.get("options")
    value = options.get(name) if isinstance(options, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


class Supervisor:
    """The attempts at one run, by the holder of its lock."""

    def __init__(self, run_dir: Path, plan: PlanRecord) -> None:
        self.run_dir, self.plan, self.grace = run_dir, plan, grace_seconds(plan)
        self.state: StateRecord = {}
        self.saved = True
        self.began = time.monotonic()
        self.longest_log = log_rotation.largest()
        self.said_stalled = 0.0
        self.companions = Companions(run_dir, plan)
        self.stop_asked = self.save_asked = self.stopping = False
        self._next_attempt()

    def _next_attempt(self) -> None:
        """Forget the attempt before."""
        self.child = 0
        self.is_torchrun = False
        self.exit_code: int | None = None
        self.kill_at: float | None = None
        self.killed = 0
        total = _option(self.plan, "train_iters", 0) if self.plan.get("kind") == "finetune" else 0
        self.attempt = Attempt(self.run_dir, int(total) or None)
        self.saves = Saves(self.run_dir)
        self.waits_for_save = False
        self.stall = StallWatch(self.run_dir, least_seconds()) if total else None
        self.hung: str | None = None

    # the state

    def save(self, **changes: Unpack[StateRecord]) -> None:
        """Update state.json; when it cannot be written now (a full disk), a later tick writes it."""
        self.state |= changes
        try:
            write_json(self.run_dir / STATE, self.state)
            self.saved = True
        except OSError:
            self.saved = False

    def reserve(self) -> None:
        """Keep some bytes of the disk for the last state and its reason."""
        with contextlib.suppress(OSError):
            (self.run_dir / RESERVE).write_bytes(os.urandom(RESERVE_BYTES))

    def say(self, tag: str, text: str) -> None:
        """Write one line of the supervisor to the run's log. tag: one of `log_lines.TAGS`."""
        with contextlib.suppress(OSError):
            os.write(2, f"{log_lines.written(text, tag)}\n".encode())

    # the child

    def start(self) -> str:
        """Start the command. Returns an error line when that fails, which is then in state.json and in the log too."""
        command = self.plan.get("command")
        try:
            if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
                raise ValueError(f"{self.run_dir / PLAN}: holds no command; start a new run")
            folder = self.plan.get("cwd")
            working_directory = folder if isinstance(folder, str) and os.path.isdir(folder) else str(self.run_dir)
            environment = {
                **os.environ,
                RUN_VARIABLE: str(self.run_dir),
                STARTED_VARIABLE: str(self.began),
                "PYTHONUNBUFFERED": "1",
                # when one worker of torchrun ends badly it gives the others this long, else half the grace period
                "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, round(self.grace))),
            }
            options = self.plan.get("options")
            if isinstance(options, dict) and isinstance(ids := options.get("gpu_ids"), str) and ids:
                environment[VISIBLE] = ids
            with _ignored(SAVE_SIGNALS):
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=1, stderr=2, cwd=working_directory, env=environment, start_new_session=True
                )
        except (OSError, ValueError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
            line = f"the command could not be started: {reason}".replace("\n", " ")
            self.say(log_lines.NOT_STARTED, line)
            code = 126 if isinstance(error, PermissionError) else 127
            self.finish(status="failed", exit_code=code, error=line)
            return line
        self.child, self.is_torchrun = child.pid, any(module in command for module in TORCHRUNS)
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
            if self.companions.reaped(pid):
                self.save(mirror=self.companions.mirror_problem())
            if pid == self.child:
                code = os.waitstatus_to_exitcode(status)
                self.exit_code = code if code >= 0 else 128 - code

    # the loop

    def watch(self, wake: int) -> None:
        """Watch until no process of the run is left. wake: a descriptor that is readable after a signal."""
        while True:
            self.reap()
            self.beat()
            self.rotate_log()
            self.companions.look()
            if not self.saved:
                self.save()
            if self.exit_code is None and not self.stopping and self.asked_to_stop():
                self.begin_stop()
            elif self.exit_code is None and (self.save_asked or (self.run_dir / SAVE).exists()):
                self.ask_to_save()
            if self.stopping:
                self.keep_deadline()
            elif self.exit_code is None and self.stall is not None:
                self.watch_steps(self.stall)
            busy = self.stopping or self.exit_code is not None or self.hung is not None
            if busy:
                left = self.below()
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

    def rotate_log(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: the log stays as it is
            if log_rotation.rotate(self.run_dir, 1, self.longest_log):
                self.say(log_lines.ROTATED, f"what came before is in {OLD_LOG}")

    def below(self) -> list[processes.Process]:
        """The processes of the run: those below this one, without the ones that send messages and copy checkpoints."""
        return processes.descendants(os.getpid(), self.companions.pids)

    def watch_steps(self, stall: StallWatch) -> None:
        """Say when no step comes any more, with the stacks of the ranks in the log; --restart-stalled then ends the attempt."""
        quiet = self.saves.quiet_seconds()
        stall.look(busy=quiet is not None and quiet < TICK_SECONDS)
        line, known = stall.stalled(), self.state.get("stalled")
        if line and (silent := silent_nodes(self.run_dir, self.attempt.began)):
            line = f"{line}; {silent}"
        if bool(line) == bool(known) and (not line or time.monotonic() < self.said_stalled + STALL_LINE_SECONDS):
            return
        self.said_stalled = time.monotonic()
        self.say(log_lines.STALLED, line or "steps come again")
        self.save(stalled=line or None)
        if bool(line) != bool(known):
            self.companions.tell(notify.STALLED if line else notify.MOVING, line or "steps come again")
        if not line or known:
            return
        ranks = stall.here(self.below())
        processes.send([p for p in ranks if processes.catches(p.pid, signal.SIGQUIT)], signal.SIGQUIT)
        options = self.plan.get("options")
        if isinstance(options, dict) and options.get("restart_stalled") is True and self.state.get("restarts", 0) < self.most_restarts:
            self.hung = line
            self.kill_at = time.monotonic() + STACK_SECONDS

    @property
    def most_restarts(self) -> int:
        return int(_option(self.plan, "max_restarts", 0)) if self.plan.get("kind") == "finetune" else 0

    def asked_to_stop(self) -> bool:
        return self.stop_asked or (self.run_dir / STOP).exists()

    def take_grace(self) -> bool:
        """Take the seconds that a request to stop names; whether it names any."""
        try:
            with open_regular(self.run_dir / STOP) as file:
                text = file.read(20)
            (self.run_dir / STOP).write_text("")
            seconds = float(text)
        except (OSError, ValueError):
            return False
        if not 0 <= seconds < 86400:
            return False
        self.grace = seconds
        return True

    def keep_deadline(self) -> None:
        """While stopping: take a new deadline from a later request, and put it off while a checkpoint is being written."""
        now = time.monotonic()
        if self.take_grace():
            self.kill_at = now + self.grace
            self.say(log_lines.STOP_ASKED, f"asked again to stop; {self.grace:g} s to end")
        quiet = self.saves.quiet_seconds() if self.grace else None
        if quiet is None or quiet > STUCK_SAVE_SECONDS or self.exit_code is not None or self.killed:
            return
        self.kill_at = max(self.kill_at or 0.0, now + self.grace)
        if not self.waits_for_save:
            self.waits_for_save = True
            self.say(log_lines.STOP_ASKED, "asked to stop while a checkpoint is being written; it is waited for")

    def begin_stop(self) -> None:
        """SIGTERM to the command's process group and to every other below it; of torchrun, to its workers alone."""
        self.stopping = True
        self.take_grace()
        self.kill_at = time.monotonic() + self.grace
        self.save(status="stopping")
        self.say(log_lines.STOP_ASKED, f"asked to stop; {self.grace:g} s to end")
        below = self.below()
        # torchrun would pass SIGTERM on a second time and kill its workers after 30 s, whatever they save (before
        # torch 2.12 that is fixed); left alone it waits for them and ends with them
        workers = [p for p in below if p.group != self.child]
        processes.terminate(workers if workers and self.is_torchrun else below)

    def ask_to_save(self) -> None:
        """SIGUSR1 to every descendant that has a handler for it."""
        self.save_asked = False
        with contextlib.suppress(OSError):
            (self.run_dir / SAVE).unlink(missing_ok=True)
        listening = [p for p in self.below() if processes.catches(p.pid, signal.SIGUSR1)]
        processes.send(listening, signal.SIGUSR1)
        early = "asked to save, but the training has not begun; nothing to save yet"
        self.say(log_lines.SAVE_ASKED, "asked to save a checkpoint" if listening else early)

    def finish(self, **final: Unpack[StateRecord]) -> None:
        """Write the final state. Nothing may follow: from then on others may start the run again."""
        with contextlib.suppress(OSError):
            (self.run_dir / STOP).unlink(missing_ok=True)
            (self.run_dir / SAVE).unlink(missing_ok=True)
        final["ended"] = time.time()
        self.save(**final)
        until = time.monotonic() + SAVE_SECONDS
        while not self.saved and time.monotonic() < until:
            with contextlib.suppress(OSError):
                (self.run_dir / RESERVE).unlink(missing_ok=True)
            time.sleep(0.5)
            self.save()

    # what follows an attempt

    def outcome(self) -> Outcome:
        return self.attempt.outcome(self.exit_code, self.stopping, self.state.get("error") or self.hung)

    def wait_to_restart(self, ended: Outcome, wake: int) -> bool:
        """Whether to start the command again, after the pause before it; everything is then ready for the next attempt."""
        most, done = self.most_restarts, self.state.get("restarts", 0)
        if ended.status != "failed" or ended.refused or self.state.get("error") or done >= most:
            return False
        pause = min(_option(self.plan, "restart_wait", 5.0) * 2**done, LONGEST_WAIT_SECONDS)
        why = ended.error or f"exit code {self.exit_code}"
        text = f"restart {done + 1} of {most} after {why}"
        self.say(log_lines.RESTARTED, f"{text}; in {pause:g} s, from the newest complete checkpoint")
        record_restart(self.run_dir, text)
        self.companions.tell(notify.RESTART, text, restarts=done + 1, exit_code=self.exit_code)
        self.save(status="starting", pid=None, exit_code=self.exit_code, restarts=done + 1, error=text, stalled=None)
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0 and not self.asked_to_stop():
            self.beat()
            with contextlib.suppress(BlockingIOError):
                if select.select([wake], [], [], min(left, TICK_SECONDS))[0]:
                    os.read(wake, 4096)
        if self.asked_to_stop():
            self.stopping = True
            self.state["error"] = None
            return False
        self.plan = with_a_free_port(self.run_dir, done + 1)
        self._next_attempt()
        self.state |= {"exit_code": None, "error": None}
        return True

    def run(self, wake: int, report: Callable[[str], None]) -> None:
        """Start the command, again after a failure as often as the run may, and write the final state."""
        for line in self.companions.receivers.problems:
            self.say(log_lines.NOT_TOLD, line)
        while True:
            failure = self.start()
            report(f"failed {failure}" if failure else "ok")
            if failure:
                self.companions.tell(notify.FAILED, failure, status="failed", error=failure)
                return
            try:
                self.watch(wake)
            except Exception as error:
                traceback.print_exc()
                processes.end(self.below, self.grace)
                self.state["error"] = f"the supervisor failed: {type(error).__name__}: {error}"
                self.reap()
            ended = self.outcome()
            if not self.wait_to_restart(ended, wake):
                break
        if self.stopping and ended.status == "failed":
            ended = Outcome("stopped")  # during the pause
        if ended.by_signal and ended.error:
            self.say(log_lines.BY_SIGNAL, ended.error)
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.run_dir).free > RESERVE_BYTES:
                (self.run_dir / RESERVE).unlink(missing_ok=True)
            elif ended.status == "failed" and not ended.error:
                # what the processes said of it did not fit into the log
                ended = Outcome("failed", f"the disk of {self.run_dir.parent} is full; free some space and resume the run")
        self.finish(status=ended.status, exit_code=self.exit_code, error=ended.error, stalled=None)
        # from here on others may start the run again; what follows changes nothing of it
        self.companions.ended()
        text = ended.error or (f"exit code {self.exit_code}" if ended.status == "failed" else notify.EVENTS[ended.status])
        self.companions.tell(ended.status, text, status=ended.status, exit_code=self.exit_code, error=ended.error)


@contextlib.contextmanager
def _ignored(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Signals that the processes started in the block ignore, until they have a handler of their own: a scheduler sends its warning to
    torchrun, too, which it would end."""
    handlers = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
