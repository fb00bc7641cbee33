"""Waits for a run in a cell. The widgets answer meanwhile, and an interrupt ends the wait, not the run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from console.notebook.serving import serving
from console.notebook.stores import as_run
from console.runs.store import Run, RunStore
from console.runs.tail import LogTail
from qwen3vl_core.errors import WorkError
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.run_record import ALIVE

END_OF_LOG = 20
LOOK_SECONDS = 0.25


class WaitInterrupted(KeyboardInterrupt):
    """A wait that was interrupted: in a notebook one line; the cells after it do not run."""

    def __init__(self, runs: Sequence[Run]) -> None:
        names = ", ".join(f"run {run.id}: {run.status}" for run in runs)
        numbers = " ".join(str(run.number) for run in runs)
        rest = "continue" if len(runs) > 1 else "continues"
        super().__init__(f"{names}; the wait was interrupted, the run {rest}; to stop: qwen3vl runs stop {numbers}")

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class RunFailed(WorkError):
    """A run that failed, with the end of its log."""

    def __init__(self, run: Run) -> None:
        tail = LogTail(run.log, lines=END_OF_LOG)
        self.log = list(map(untagged, [*tail.read(), *filter(None, [tail.partial])]))
        """The last lines of its log."""
        super().__init__(f"run {run.id}: failed, {run.error or f'exit code {run.exit_code}'}; its log is {run.log}")

    def _render_traceback_(self) -> list[str]:
        return [*super()._render_traceback_(), *self.log]


def wait(
    run: Run | str | int | Path, *, store: RunStore | Path | str | None = None, timeout: float | None = None, show: bool = True
) -> str:
    """Wait until a run has ended, showing the last line of its log meanwhile. Returns its status. Widgets answer while it waits.

    An interrupt ends the wait with WaitInterrupted, a KeyboardInterrupt; the run continues. timeout: seconds after which to return the
    current status. Raises RunFailed, a WorkError with the end of the log.
    """
    waited = as_run(run, store)
    tail, before = LogTail(waited.log, lines=1), ""

    def look() -> None:
        nonlocal before
        tail.read()
        line = untagged(tail.partial or (tail.lines[-1] if tail.lines else ""))
        if line != before:
            before = line
            print(f"\r{line[:120]:<120}", end="", flush=True)

    (status,) = wait_for([waited], look if show else None, timeout)
    if show:
        print(f"\r{f'run {waited.id}: {status}':<120}")
    if status == "failed":
        raise RunFailed(waited)
    return status


def wait_for(runs: Sequence[Run], look: Callable[[], None] | None = None, timeout: float | None = None) -> list[str]:
    """Wait until the runs have ended, at most `timeout` seconds. Returns their statuses. look: called every quarter of a second.

    Widgets answer meanwhile. Raises WaitInterrupted.
    """
    until = math.inf if timeout is None else time.monotonic() + timeout
    try:
        with serving() as pause:
            while True:
                statuses = [run.status for run in runs]
                left = until - time.monotonic()
                if not any(status in ALIVE for status in statuses) or left <= 0:
                    if "console.notebook.live" in sys.modules:
                        # the last cell of a notebook that nobody watches ends now
                        sys.modules["console.notebook.live"].renew_all()
                    return statuses
                if look is not None:
                    look()
                pause(min(left, LOOK_SECONDS))
    except KeyboardInterrupt:
        raise WaitInterrupted(runs) from None
