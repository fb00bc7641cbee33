"""A run's metrics as arrays that grow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from console.runs.tail import JsonlTail


class _Column:
    """Two arrays that grow at their end, x int64 and y float64; doubling, so that a million appends copy little."""

    def __init__(self, x: np.ndarray | None = None, y: np.ndarray | None = None) -> None:
        self.size = 0 if x is None else len(x)
        self._x, self._y = np.empty(self.size + 256, np.int64), np.empty(self.size + 256, np.float64)
        if x is not None:
            self._x[: self.size], self._y[: self.size] = x, y

    def append(self, x: int, y: float) -> None:
        if self.size == len(self._x):
            self._x, self._y = (np.concatenate([a, np.empty_like(a)]) for a in (self._x, self._y))
        self._x[self.size], self._y[self.size] = x, y
        self.size += 1

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = self._x[: self.size], self._y[: self.size]
        x.flags.writeable = y.flags.writeable = False
        return x, y


class MetricSeries:
    """Every number of a run's metrics as arrays over the step.

    Keys: a train row's `loss` is `loss`, an eval row's is `eval/loss`. Steps rise strictly: a resumed run that goes back
    to its checkpoint takes the place of the steps after it. A null, or a number that is not finite, is NaN: a gap.
    """

    def __init__(self, path: Path) -> None:
        self._tail = JsonlTail(path)
        self.behind = False
        """Whether the last update stopped at its limit: there may be more."""
        self.version = 0
        """Grows when points that were there have changed or gone; while it stays, arrays only get longer."""
        self._clear()

    def _clear(self) -> None:
        self._columns: dict[str, _Column] = {}
        self.latest: dict[str, dict[str, Any]] = {}
        """The last row of each kind (`train`, `eval`, `event`)."""
        self.events: list[dict[str, Any]] = []
        self.train_iters: int | None = None

    def update(self, limit: int | None = None) -> int:
        """Take in what is new, about `limit` bytes at most. Gives the number of rows; 0: nothing is new."""
        rows = self._tail.read(limit)
        self.behind = self._tail.limited
        if self._tail.replaced:
            self._clear()
            self.version += 1
        for row in rows:
            self._take(row)
        return len(rows)

    @property
    def keys(self) -> list[str]:
        """Names of the series, in order of appearance."""
        return list(self._columns)

    def xy(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [n], values float64 [n]) of a series, read-only; empty for an unknown key.

        The arrays stay as they are when more points come: ask again for those.
        """
        return self._columns.get(key, _Column()).view()

    def _take(self, row: dict[str, Any]) -> None:
        kind, step = row.get("kind"), row.get("step")
        if not isinstance(kind, str):
            return
        self.latest[kind] = row
        if kind == "event":
            self.events.append(row)
            iters = row.get("train_iters")
            if isinstance(iters, int) and not isinstance(iters, bool):
                self.train_iters = iters
            return
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 62:
            return
        for name, value in row.items():
            if name in ("v", "step", "time", "kind") or not (value is None or isinstance(value, int | float)):
                continue
            column = self._column(name if kind == "train" else f"{kind}/{name}", step)
            column.append(step, _finite(value))

    def _column(self, key: str, step: int) -> _Column:
        """The series that gets a point at `step`, cut before that step when it went on beyond."""
        column = self._columns.setdefault(key, _Column())
        x, y = column.view()
        if column.size and x[-1] >= step:
            keep = int(np.searchsorted(x, step))
            # a new one: the old arrays may be in a reader's hands
            self._columns[key] = column = _Column(x[:keep], y[:keep])
            self.version += 1
        return column


def _finite(value: Any) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
