"""A snapshot of the run store, as the screens pass it around. The first frame needs it, so it imports little."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import tr
from qwen3vl_core.run_record import ALIVE, QUEUED

if TYPE_CHECKING:
    from console.runs.store import Run

_PERCENT = re.compile(r"(\d{1,3})%")


@dataclass(frozen=True)
class RunRow:
    """Snapshot of one run; immutable, the next look makes a new one."""

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
    """Step of the last checkpoint, or the name in the tracker file; empty if there is none."""
    last_line: str = ""
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Last metrics row of each kind."""
    step_seconds: float | None = None
    """Average over the last steps; None if unknown."""
    place: str = ""
    """Of a queued run: its place in the queue, or `held`."""

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
        """The command that a user types for this run."""
        return command_line(self.run)

    @property
    def saved(self) -> str:
        """`step 500` for the last checkpoint, `none yet` if there is none."""
        return tr("step {step}", step=self.checkpoint) if self.checkpoint.isdecimal() else self.checkpoint or tr("none yet")

    @property
    def checkpoint_text(self) -> str:
        """`checkpoint of step 500`, `no checkpoint yet`."""
        if not self.checkpoint:
            return tr("no checkpoint yet")
        return tr("checkpoint of {step}" if self.checkpoint.isdecimal() else "checkpoint {step}", step=self.saved)

    @property
    def percent(self) -> float | None:
        """Progress 0..1 from the steps or the last progress line; None if unknown."""
        if self.step is not None and self.total:
            return min(self.step / self.total, 1.0)
        percentages = _PERCENT.findall(self.last_line) if self.alive else []
        return min(int(percentages[-1]) / 100, 1.0) if percentages else None

    @property
    def eta(self) -> float | None:
        """Seconds to the last step of a live finetune; None if unknown."""
        if not self.alive or self.step is None or not self.total or not self.step_seconds:
            return None
        return max(self.total - self.step, 0) * self.step_seconds

    def age(self, now: float) -> float | None:
        """Seconds since the start of a live run, since the end of another."""
        since = (self.started or self.created) if self.alive else (self.ended or self.started or self.created)
        return None if since is None else now - since


@dataclass(frozen=True)
class Snapshot:
    """Snapshot of the run store, newest run first."""

    rows: tuple[RunRow, ...] = ()
    error: str = ""
    """Why the store could not be read, in one line."""
    seen: bool = True
    """False before the first look."""
    unread: int = 0
    """Number of runs at the end of the list that are not read yet."""

    @property
    def alive(self) -> int:
        """Runs that work; queued ones wait."""
        return sum(row.alive and row.status != QUEUED for row in self.rows)

    def get(self, run_id: str | None) -> RunRow | None:
        """The row of a run; None if there is no such run."""
        return next((row for row in self.rows if row.id == run_id), None) if run_id is not None else None


def command_line(run: Run) -> str:
    """The command that a user types for this run; the recorded command of its processes if the plan is not one of ours."""
    from qwen3vl_core.options import COMMANDS, from_mapping, shell_line, to_arguments  # not before the first frame

    try:
        return shell_line(["qwen3vl", run.kind, *to_arguments(from_mapping(COMMANDS[run.kind], run.options))])
    except (KeyError, RequestError):
        return shell_line(run.command)
