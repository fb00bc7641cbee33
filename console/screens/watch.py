"""What the screens show of the run store, gathered off the screen's thread. Blocking; imports no Textual."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console.runs.state import ALIVE
from console.runs.store import Run, RunStore
from console.runs.tail import LogTail, MetricSeries, last_rows
from console.widgets.raster import sparkline
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import COMMANDS, from_mapping, shell_line, to_arguments

SPARK_CELLS = 12
LOOK_SECONDS = 0.15
"""Time one look may spend on metrics it has not read yet; the rest waits for the next look."""
READ_BYTES = 1 << 20
TRACKER = "latest_checkpointed_iteration.txt"
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
    loss: float | None = None
    spark: str = ""
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    command: str = ""
    checkpoint: str = "no checkpoint yet"
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

    @property
    def alive(self) -> int:
        return sum(row.alive for row in self.rows)

    def get(self, run_id: str | None) -> RunRow | None:
        """The row of a run; None when it is not there."""
        return next((row for row in self.rows if row.id == run_id), None)


def command_line(run: Run) -> str:
    """The command a person types for this run; the processes' own where the plan is not one of ours."""
    try:
        return shell_line(["qwen3vl", run.kind, *to_arguments(from_mapping(COMMANDS[run.kind], run.options))])
    except (KeyError, RequestError):
        return shell_line(run.command)


def last_checkpoint(run: Run) -> str:
    """`checkpoint of step 500`, or that there is none."""
    try:
        text = (run.path / "checkpoints" / TRACKER).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "no checkpoint yet"
    return f"checkpoint of step {int(text)}" if text.isdecimal() else f"checkpoint {text[:40]}" if text else "no checkpoint yet"


def _pace(rows: list[dict[str, Any]]) -> float | None:
    """Seconds of one step over the last rows of one attempt."""
    steps = [(r["step"], r["time"]) for r in rows if isinstance(r.get("step"), int) and isinstance(r.get("time"), int | float)][-20:]
    # a resume goes back in steps or leaves a hole in time: only what follows it counts
    begin = max((i for i in range(1, len(steps)) if steps[i][0] <= steps[i - 1][0]), default=0)
    steps = steps[begin:]
    if len(steps) < 2:
        seconds = rows[-1].get("step_seconds") if rows else None
        return float(seconds) if isinstance(seconds, int | float) else None
    return max(steps[-1][1] - steps[0][1], 0.0) / (steps[-1][0] - steps[0][0])


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _number(value: Any, kind: type | tuple = (int, float)) -> Any:
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


class StoreWatcher:
    """Looks at the store again and again; reads only what has changed. One lock: looks may come from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.lock = threading.Lock()
        self._rows: dict[str, tuple[tuple, RunRow]] = {}
        self._series: dict[str, MetricSeries] = {}
        self._behind: set[str] = set()
        self._logs: dict[str, LogTail] = {}

    def look(self) -> Snapshot:
        """The store as it is now. Never raises because of what is in it."""
        with self.lock:
            try:
                runs = RunStore(self.root).list()
            except RequestError as error:
                return Snapshot(error=str(error))
            until = time.monotonic() + LOOK_SECONDS
            rows = []
            for run in runs:
                with contextlib.suppress(OSError):  # a run that is deleted while it is read
                    rows.append(self._row(run, until))
            gone = set(self._rows) - {run.id for run in runs}
            for table in (self._rows, self._series, self._logs):
                for run_id in gone:
                    table.pop(run_id, None)
            self._behind -= gone
            return Snapshot(tuple(rows))

    def series(self, run: Run, limit: int | None = None) -> MetricSeries:
        """All metrics of a run, taken in up to now. Only to be read under `lock`, which the caller holds."""
        series = self._series.setdefault(run.id, MetricSeries(run.metrics))
        series.update(limit)
        return series

    def _row(self, run: Run, until: float) -> RunRow:
        stamp = tuple(_stamp(run.path / name) for name in ("state.json", "plan.json", "metrics.jsonl", "output.log"))
        known = self._rows.get(run.id)
        if known and known[0] == stamp and not known[1].alive and run.id not in self._behind:
            return known[1]
        state = run.state
        status = state["status"]
        recent = last_rows(run.metrics) if stamp[2] else []
        latest = {row["kind"]: row for row in recent if isinstance(row.get("kind"), str)}
        train = [row for row in recent if row.get("kind") == "train"]
        last = latest.get("train", {})
        total = run.options.get("train_iters") if run.kind == "finetune" else None
        spark = self._spark(run, until) if stamp[2] else ""
        if stamp[2] and run.id not in self._behind:
            latest = self._series[run.id].latest | latest  # an evaluation may lie further back than the last rows
        row = RunRow(
            run=run, kind=run.kind, status=status,
            exit_code=_number(state.get("exit_code"), int), error=str(state.get("error") or ""),
            step=_number(last.get("step"), int), total=_number(total, int), loss=_number(last.get("loss")),
            spark=spark, created=run.created, started=_number(state.get("started")), ended=_number(state.get("ended")),
            command=known[1].command if known and known[0][1] == stamp[1] else command_line(run),
            checkpoint=last_checkpoint(run), last_line=self._last_line(run) if stamp[3] else "",
            latest=latest, step_seconds=_pace(train),
        )  # fmt: skip
        self._rows[run.id] = (stamp, row)
        return row

    def _spark(self, run: Run, until: float) -> str:
        if run.id not in self._series:
            self._behind.add(run.id)
        while run.id in self._behind and time.monotonic() < until:
            series = self._series.setdefault(run.id, MetricSeries(run.metrics))
            if not series.update(READ_BYTES):
                self._behind.discard(run.id)
        if run.id not in self._behind:
            series = self.series(run)
            return sparkline(series.xy("loss")[1], SPARK_CELLS)
        return "…"

    def _last_line(self, run: Run) -> str:
        """The last line with text in the log."""
        tail = self._logs.setdefault(run.id, LogTail(run.log, lines=20))
        tail.read()
        return next((line for line in (tail.partial, *reversed(tail.lines)) if line.strip()), "")
