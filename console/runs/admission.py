"""Before a finetune starts its GPUs are taken, or it waits for them in the queue. Part of the supervisor; standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from console.runs import queue
from console.runs.attempts import Supervisor
from console.runs.forecast import waits_for
from console.runs.free_port import with_a_free_port
from console.runs.state import read_state
from console.runs.store import Run
from qwen3vl_core import log_lines
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.layout import gpus
from qwen3vl_core.problems import Problem
from qwen3vl_core.run_record import QUEUED, STOP, StateRecord

AUTO, ALWAYS, NEVER = "auto", "always", "never"
"""Values of --queue."""
LOOK_SECONDS = 2.0
"""Between two looks at the store while waiting; a signal of who ends or changes the order comes first."""
MOST_PROBE_SECONDS = 8.0
"""Between two looks of the first entry at GPUs that others use, in the end; the first looks are sooner."""
LATE = 5
"""How much rarer entries that are further back look, by their place, at most."""
ATTEND_SECONDS = 30.0
"""Between two looks for queued runs without a supervisor."""


class Admission:
    """Takes the GPUs of a run, by the holder of its lock."""

    def __init__(self, supervisor: Supervisor, foreground: bool) -> None:
        """foreground: someone looks on while it starts, and --queue auto does not let it wait."""
        self.supervisor = supervisor
        self.run = Run(supervisor.run_dir)
        self.root = supervisor.run_dir.parent
        options = supervisor.plan.get("options")
        self.options: Mapping[str, Any] = options if isinstance(options, dict) else {}
        mode = self.options.get("queue", AUTO)
        self.waits = mode == ALWAYS or (mode != NEVER and not foreground)
        self.reader = queue.QueueReader(self.root)
        self.said = ""
        self.uses: list[gpus.GpuUse] = []
        self._probe_at, self._probe_pause = 0.0, 0.5

    def own_entry(self) -> queue.QueueEntry | None:
        """What the run waits for, as its options say; None if it uses no GPU of this machine."""
        self.uses = gpus.uses() if self.supervisor.plan.get("kind") == "finetune" else []
        wanted = queue.wanted(self.options, self.uses)
        return None if wanted is None else queue.QueueEntry(self.run, *wanted, time.time(), False, True, True)

    def enter(self, starting: StateRecord) -> bool:
        """Write the state `starting`, with the run's GPUs, or `queued`. Returns whether it may start. Raises RequestError and WorkError.

        starting: the fields of a start.
        """
        own = self.own_entry()
        if own is None:
            self._write(starting, gpus=None, any_gpus=None, queued=None)
            return True
        free = [gpu.index for gpu in self.uses if gpu.free]
        with queue.lock(self.root):
            queue.forget(self.root, self.run.id)
            seen = self.reader.look()
            waiting = dataclasses.replace(seen, entries=(*(e for e in seen.entries if e.run.id != self.run.id), own))
            got = waiting.granted(self.run.id, free) if self.waits or not own.gpus else own.gpus
            if got is None and not self.waits:
                needed = Problem(gpus.NOT_FREE, "gpu_ids", gpus.FREE, {"needed": own.count, "free": len(set(free) - {*seen.held_gpus})})
                self.supervisor.finish(status="failed", exit_code=None, error=str(needed))
                raise RequestError(needed)
            if got is not None:
                self._take(own, got, starting, queued=None)
                return True
            any_gpus = None if own.gpus else own.count
            self._write(starting, status=QUEUED, started=None, gpus=list(own.gpus), any_gpus=any_gpus, queued=own.since)
        self._say(self.reader.look(), self.uses)
        return False

    def go_on(self, starting: StateRecord) -> bool:
        """Wait on for a queued run in place of a supervisor that has ended. Returns False: `wait` says when it may start."""
        before = read_state(self.run.path)
        kept = {name: before.get(name) for name in ("gpus", "any_gpus", "queued")}
        self._write(starting, status=QUEUED, started=None, **kept)
        return False

    def _write(self, starting: StateRecord, **changes: Any) -> None:
        self.supervisor.save(**cast(StateRecord, {**starting, **changes}))

    def _take(self, entry: queue.QueueEntry, got: tuple[str, ...], starting: StateRecord, queued: float | None) -> None:
        """Write that the run holds these GPUs; before, into its plan, which names none of them if it took any."""
        if not entry.gpus:
            from console.runs.plan_record import with_gpus  # the options' declarations, which nothing else here needs

            self.supervisor.plan = with_gpus(self.run.path, self.supervisor.plan, ",".join(got))
        self._write(starting, gpus=list(got), any_gpus=None, queued=queued)

    def wait(self, wake: int, starting: StateRecord) -> bool:
        """Wait for the run's GPUs. Returns whether it has them; else it was stopped, or this process is to end and it stays queued."""
        supervisor, attended = self.supervisor, time.monotonic()
        while True:
            supervisor.beat()
            if (self.run.path / STOP).exists():
                supervisor.say(log_lines.QUEUED, "taken out of the queue")
                with contextlib.suppress(RequestError, WorkError), queue.lock(self.root):
                    queue.forget(self.root, self.run.id)
                supervisor.finish(status="stopped", exit_code=None, error=None)
                return False
            if supervisor.stop_asked:
                # the machine goes down, or someone ends this process: it is not the run that is to stop
                supervisor.say(log_lines.QUEUED, "nobody waits for its GPUs any more; qwen3vl runs queue --resume goes on")
                return False
            if not supervisor.saved:
                supervisor.save()
            with contextlib.suppress(RequestError, WorkError, OSError):  # a full disk, a store that is away: at a later look
                if self._try(starting):
                    return True
                if time.monotonic() - attended > ATTEND_SECONDS:
                    attended = time.monotonic()
                    for starter in map(queue.attend, queue.unattended(self.reader.look())):
                        starter.wait()
            if select.select([wake], [], [], LOOK_SECONDS)[0]:
                self._probe_at = 0.0
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)

    def _try(self, starting: StateRecord) -> bool:
        seen = self.reader.look(roughly=True)
        entry = seen.get(self.run.id)
        if entry is None:
            return False
        # while runs of this store hold its GPUs, or people hold it back, there is nothing to ask nvidia-smi
        if entry.held or any(gpu in seen.held_gpus for gpu in entry.gpus):
            self._probe_at, self._probe_pause = 0.0, 0.5
            self._say(seen, ())
            return False
        if time.monotonic() < self._probe_at:
            return False
        self.uses = gpus.uses()
        free = [gpu.index for gpu in self.uses if gpu.free]
        with queue.lock(self.root):
            got = self.reader.look().granted(self.run.id, free)
            if got is None:
                self._say(seen, self.uses)
                most = MOST_PROBE_SECONDS * min(seen.place(self.run.id) or 1, LATE)
                self._probe_pause = min(2 * self._probe_pause, most)
                self._probe_at = time.monotonic() + self._probe_pause
                return False
            queue.forget(self.root, self.run.id)
            # the port of the plan was free when the run was queued
            self.supervisor.plan = with_a_free_port(self.run.path)
            since = self.supervisor.state.get("queued")
            before = self.supervisor.state.copy()
            self._take(entry, got, {**starting, "started": time.time()}, queued=since if isinstance(since, int | float) else entry.since)
            if not self.supervisor.saved:
                # a full disk: nobody would see that it holds them
                self.supervisor.state = before
                return False
        if not self.options.get("gpu_ids"):
            # who has started this supervisor may see other GPUs than who queued the run
            os.environ[gpus.VISIBLE] = ",".join(got)
        self.supervisor.say(log_lines.QUEUED, f"starts on {gpus.named(got)}")
        return True

    def _say(self, seen: queue.Queue, uses: Sequence[gpus.GpuUse]) -> None:
        """Why it waits, into its log when the reason changes."""
        entry = seen.get(self.run.id)
        reason = waits_for(seen, entry, [], uses, estimate=False) if entry is not None else ""
        if reason and reason != self.said:
            self.said = reason
            self.supervisor.say(log_lines.QUEUED, reason)


def tend(root: Path) -> None:
    """After the end of a run: whoever waits in its store looks now."""
    with contextlib.suppress(RequestError, OSError):
        seen = queue.look(root)
        for starter in map(queue.attend, queue.unattended(seen)):
            starter.wait()
        queue.wake(seen)
