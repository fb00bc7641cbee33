"""Reads what the screens show of the run store, outside the screen's thread. Blocking; imports no Textual."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console.formatting import sparkline
from console.readers.run_rows import RunRow, Snapshot
from console.runs.pace import pace
from console.runs.store import Run, RunStore
from console.runs.tail import LogTail, last_row_with, last_rows, sampled_rows
from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import open_regular
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.run_metrics import LOSS, listed
from qwen3vl_core.run_record import ALIVE, CHECKPOINTS, EVAL, LOG, METRICS_FILE, PLAN, QUEUED, STATE, TRACKER, TRAIN, version_problem

if TYPE_CHECKING:
    from console.runs.queue import QueueReader
    from console.runs.series import MetricSeries

SPARK_CELLS = 10
LOOK_SECONDS = 0.3
"""Time that one look may spend on runs that are not read yet, newest first; the others are read at the next look."""
LAST_BYTES = 64 << 10
"""Bytes at the end of the metrics that are read at each look at a live run: a few hundred rows."""
FEW = 60
"""Newest runs whose files are all checked at each look; of older ended runs only the state, and all files of a few of them in turn."""
LIST_SECONDS = 3.0
"""How long the list of runs is reused while the modification time of the store's folder does not change."""
SERIES = 6
"""Number of runs whose metrics are kept in memory: the ones that the monitor showed last."""
EVAL_BYTES = 8 << 20
"""Bytes at the end of the metrics in which an evaluation is searched."""
WHY_LINES = 400
"""Lines at the end of a failed run's log that are searched for the reason."""
WHY_SECONDS = 5.0
"""Shortest time between two searches of the log of a lost run that is still written to."""


def layout_of(run: Run) -> str:
    """Size, parallel layout and precision of a finetune in a few words: `8B TP2 PP2 bf16`."""
    if run.kind != "finetune":
        return ""
    get = run.options.get
    ways = {name: get(name) for name in ("tp", "pp", "cp", "ep")}
    sizes = [f"{name.upper()}{count}" for name, count in ways.items() if isinstance(count, int) and count > 1]
    return " ".join(str(word) for word in (get("size"), *sizes, get("precision")) if word)


def last_checkpoint(run: Run) -> str:
    """Step of the last checkpoint as text, or the name in the tracker file; empty if there is none."""
    try:
        with open_regular(run.path / CHECKPOINTS / TRACKER) as file:
            text = file.read(limits.RUN_FILE).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return str(int(text)) if text.isdecimal() else text[:40]


def _stamp(path: Path | str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> Any:
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


class StoreWatcher:
    """Reads the store repeatedly, and only what has changed. Has a lock: several threads may call it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.lock = threading.Lock()
        self._runs: list[Run] = []
        self._listed: tuple[int, float] = (0, 0.0)
        self._rows: dict[str, tuple[tuple[Any, ...], RunRow]] = {}
        self._evals: dict[str, dict[str, Any]] = {}
        self._series: dict[str, MetricSeries] = {}
        self._logs: dict[str, LogTail] = {}
        self._states: dict[str, str] = {}
        self._whys: dict[str, tuple[tuple[Any, ...], float, str]] = {}
        self._turn = 0
        self._queue: QueueReader | None = None

    def look(self) -> Snapshot:
        """A snapshot of the store. Never raises because of the content of the store."""
        with self.lock:
            try:
                runs = self._list()
            except RequestError as error:
                return Snapshot(error=str(error))
            until = time.monotonic() + LOOK_SECONDS
            rows: list[RunRow] = []
            unread = fresh = 0
            many = len(runs) > 2 * FEW
            self._turn = self._turn + FEW if self._turn < len(runs) else FEW
            for index, run in enumerate(runs):
                known = self._rows.get(run.id)
                if known is None and fresh and time.monotonic() > until:
                    unread += 1
                    continue
                fresh += known is None
                try:
                    in_turn = index < FEW or self._turn - FEW <= index < self._turn
                    if many and known is not None and not known[1].alive and not in_turn and self._state(run) == known[0][0]:
                        rows.append(known[1])
                    else:
                        rows.append(self._row(run))
                except OSError:
                    continue  # deleted while it was read
            if any(row.status == QUEUED for row in rows):
                rows = self._with_places(rows)
            return Snapshot(tuple(rows), unread=unread)

    def _with_places(self, rows: list[RunRow]) -> list[RunRow]:
        """The rows, queued ones with their places."""
        if self._queue is None:
            from console.runs.queue import QueueReader  # most stores have no queue, and the first frame does not wait for it

            self._queue = QueueReader(self.root)
        try:
            entries = self._queue.look().entries
        except RequestError:
            return rows
        places = {entry.run.id: "held" if entry.held else str(place) for place, entry in enumerate(entries, 1)}
        return [dataclasses.replace(row, place=places[row.id]) if row.id in places else row for row in rows]

    def _state(self, run: Run) -> tuple[int, ...]:
        """Stamp of its state file. The path is cached, because thousands of stamps are taken at each look."""
        path = self._states.get(run.id)
        if path is None:
            path = self._states[run.id] = str(run.path / STATE)
        return _stamp(path)

    def _list(self) -> list[Run]:
        stamp = _stamp(self.root)
        changed = stamp[2] if stamp else 0
        # on network storage the modification time of a folder may be updated late
        if not changed or changed != self._listed[0] or time.monotonic() - self._listed[1] > LIST_SECONDS:
            known = {run.id: run for run in self._runs}
            self._runs = [known.get(run.id, run) for run in RunStore(self.root).list()]
            self._listed = (changed, time.monotonic())
            gone = set(self._rows) - {run.id for run in self._runs}
            for table in (self._rows, self._series, self._logs, self._evals, self._states, self._whys):
                for run_id in gone:
                    table.pop(run_id, None)
        return self._runs

    def series(self, run: Run, limit: int | None = None) -> MetricSeries:
        """The metrics of a run, updated; limit: about how many new bytes to read. The caller must hold `lock`."""
        series = self._series.pop(run.id, None)
        if series is None:
            from console.runs.series import MetricSeries, room_for  # numpy: not before the first frame

            alive = run.state["status"] in ALIVE
            series = MetricSeries(run.metrics, room_for(run.options.get("train_iters")) if alive else 0)
        self._series[run.id] = series  # ordered by last use
        while len(self._series) > SERIES:
            self._series.pop(next(iter(self._series)))
        series.update(limit)
        return series

    def _row(self, run: Run) -> RunRow:
        stamp = tuple(_stamp(run.path / name) for name in (STATE, PLAN, METRICS_FILE, LOG))
        known = self._rows.get(run.id)
        if known and known[0] == stamp and not known[1].alive:
            return known[1]
        if not stamp[1]:
            raise FileNotFoundError(run.path)
        state = run.state
        status = state["status"]
        recent = last_rows(run.metrics, LAST_BYTES) if stamp[2] else []
        latest = {row["kind"]: row for row in recent if isinstance(row.get("kind"), str)}
        train = [row for row in recent if row.get("kind") == TRAIN]
        last = latest.get(TRAIN, {})
        total = run.options.get("train_iters") if run.kind == "finetune" else None
        spark = known[1].spark if known is not None and known[0][2] == stamp[2] else self._spark(run, stamp[2], recent)
        if stamp[2] and EVAL not in latest:
            latest |= self._last_eval(run)
        if EVAL in latest:
            self._evals[run.id] = latest[EVAL]
        notes = (state.get("stalled"), f"not mirrored: {state['mirror']}" if state.get("mirror") else "")
        stalled = next(filter(None, notes), None) if status in ALIVE else None
        row = RunRow(
            run=run, kind=run.kind, status=status,
            exit_code=_number(state.get("exit_code"), int), error=str(state.get("error") or stalled or version_problem(run.plan)),
            step=_number(last.get("step"), int), total=_number(total, int), metrics=listed(last),
            spark=spark, created=run.created, started=_number(state.get("started")), ended=_number(state.get("ended")),
            layout=known[1].layout if known and known[0][1] == stamp[1] else layout_of(run),
            checkpoint=last_checkpoint(run), last_line=self._last_line(run, status in ALIVE) if stamp[3] else "",
            latest=latest, step_seconds=pace(train),
        )  # fmt: skip
        if status in ("failed", "lost") and not row.error and stamp[3]:
            about = (status, row.exit_code, stamp[0])
            why = self._whys.get(run.id)
            if why is None or why[0] != about or time.monotonic() - why[1] > WHY_SECONDS:
                why = self._whys[run.id] = (about, time.monotonic(), self._why(run, row.exit_code))
            else:
                stamp = (*stamp[:3], ())  # new lines of the log are searched at a later look
            row = dataclasses.replace(row, error=why[2])
        self._rows[run.id] = (stamp, row)
        return row

    @staticmethod
    def _why(run: Run, exit_code: int | None) -> str:
        """Why a run failed, in one line; empty if its log has no known error."""
        from console.runs.diagnosis import explain  # most runs end well, and the first frame does not wait for it

        tail = LogTail(run.log, lines=WHY_LINES)
        diagnosis = explain([*tail.read(), *filter(None, [tail.partial])], exit_code)
        if diagnosis is None:
            return ""
        return diagnosis.text if diagnosis.says_itself else f"{diagnosis.title}: {diagnosis.text}".rstrip(": ")

    @staticmethod
    def _spark(run: Run, stamp: tuple[int, ...], recent: list[dict[str, Any]]) -> str:
        if not stamp or not stamp[1]:
            return ""
        # a short run has no other rows
        rows = recent if stamp[1] <= LAST_BYTES else sampled_rows(run.metrics, 2 * SPARK_CELLS)
        values = [_number(row.get(LOSS)) for row in rows if row.get("kind") == TRAIN]
        losses = [float(value) for value in values if value is not None and math.isfinite(value)]
        if losses and min(losses) > 0:
            losses = [math.log(value) for value in losses]  # otherwise only the drop of the first steps is visible
        return sparkline(losses, SPARK_CELLS)

    def _last_eval(self, run: Run) -> dict[str, dict[str, Any]]:
        """The last evaluation, which may be further back than the last rows; searched once, then cached."""
        if run.id not in self._evals:
            row = last_row_with(run.metrics, f'"{EVAL}"'.encode(), EVAL, EVAL_BYTES)
            self._evals[run.id] = row or {}
        row = self._evals[run.id]
        return {EVAL: row} if row else {}

    def _last_line(self, run: Run, alive: bool) -> str:
        """The last line with text in the log."""
        tail = self._logs.pop(run.id, None) or LogTail(run.log, lines=20)
        if alive:
            self._logs[run.id] = tail
        tail.read()
        return next((untagged(line) for line in (tail.partial, *reversed(tail.lines)) if line.strip()), "")
