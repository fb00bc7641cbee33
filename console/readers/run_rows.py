"""One look at the run store, as the screens pass it around. The first frame needs it, so it imports little."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from console.runs.state import ALIVE
from qwen3vl_core.errors import RequestError

if TYPE_CHECKING:
    from console.runs.store import Run

_PERCENT = re.compile(r"(\d{1,3})%")


@dataclass(frozen=True)
class RunRow:
    """One run as it stood at a look: a snapshot, free to be replaced by the next."""

    run: Run
    kind: str
    status: str
    exit_code: int | None = None
    error: str = ""
    step: int | None = None
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last finite value of each metric that the lists show."""
    spark: str = ""
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    layout: str = ""
    """Size, parallel layout and precision in a few words: `8B TP2 PP2 bf16`."""
    checkpoint: str = ""
    """The last one: its step, or the name that the tracker file has instead; empty where there is none."""
    last_line: str = ""
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Last metrics row of each kind."""
    step_seconds: float | None = None
    """Of the last steps, by their times."""

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def alive(self) -> bool:
        return self.status in ALIVE

    @property
    def options(self) -> dict[str, Any]:
        return self.run.options

    @functools.cached_property
    def command(self) -> str:
        """What a person types for this run."""
        return command_line(self.run)

    @property
    def saved(self) -> str:
        """`step 500` for the last checkpoint, `none yet` without one."""
        return f"step {self.checkpoint}" if self.checkpoint.isdecimal() else self.checkpoint or "none yet"

    @property
    def checkpoint_text(self) -> str:
        return f"checkpoint{' of' * self.checkpoint.isdecimal()} {self.saved}" if self.checkpoint else "no checkpoint yet"

    @property
    def percent(self) -> float | None:
        """0..1 where it is known: from the steps, else from the last progress line."""
        if self.step is not None and self.total:
            return min(self.step / self.total, 1.0)
        found = _PERCENT.findall(self.last_line) if self.alive else []
        return min(int(found[-1]) / 100, 1.0) if found else None

    @property
    def eta(self) -> float | None:
        """Seconds to the last step, of a live finetune whose pace is known."""
        if not self.alive or self.step is None or not self.total or not self.step_seconds:
            return None
        return max(self.total - self.step, 0) * self.step_seconds

    def age(self, now: float) -> float | None:
        """Seconds: of a live run since its start, of another since its end."""
        since = (self.started or self.created) if self.alive else (self.ended or self.started or self.created)
        return None if since is None else now - since


@dataclass(frozen=True)
class Snapshot:
    """The store at one look, newest run first."""

    rows: tuple[RunRow, ...] = ()
    error: str = ""
    """Why the store could not be read; one line."""
    seen: bool = True
    """False before the first look."""
    unread: int = 0
    """Runs at the end that were not read yet."""

    @property
    def alive(self) -> int:
        return sum(row.alive for row in self.rows)

    def get(self, run_id: str | None) -> RunRow | None:
        """The row of a run; None when it is not there."""
        return next((row for row in self.rows if row.id == run_id), None) if run_id is not None else None


def command_line(run: Run) -> str:
    """The command a person types for this run; the processes' own where the plan is not one of ours."""
    from qwen3vl_core.options import COMMANDS, from_mapping, shell_line, to_arguments  # not before the first frame

    try:
        return shell_line(["qwen3vl", run.kind, *to_arguments(from_mapping(COMMANDS[run.kind], run.options))])
    except (KeyError, RequestError):
        return shell_line(run.command)
