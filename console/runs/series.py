"""A run's metrics as arrays that grow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from console.runs.tail import JsonlTail

FIRST = 256
"""Points that a new array has room for."""


class _Steps:
    """Steps of one kind of rows, int64, growing at their end: most columns have a value in each row and share them."""

    def __init__(self, x: np.ndarray | None = None) -> None:
        self.size = 0 if x is None else len(x)
        self.array = np.empty(self.size + FIRST, np.int64)
        if x is not None:
            self.array[: self.size] = x

    def append(self, x: int) -> None:
        self.array = _with_room(self.array, self.size)
        self.array[self.size] = x
        self.size += 1


class _Column:
    """Values float64 that grow at their end, over steps that are shared with others while it has a value at each of them."""

    def __init__(self, kind: str, steps: _Steps, y: np.ndarray | None = None) -> None:
        self.kind, self.steps = kind, steps
        self.size = 0 if y is None else len(y)
        self._y = np.empty(self.size + FIRST, np.float64)
        if y is not None:
            self._y[: self.size] = y

    def alone(self) -> None:
        """Steps of its own from now on: it has no value in some row."""
        self.steps = _Steps(self.steps.array[: self.size])

    def append(self, y: float) -> None:
        """The value at the step that `steps` has at this place."""
        self._y = _with_room(self._y, self.size)
        self._y[self.size] = y
        self.size += 1

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.steps.array[: self.size], self._y[: self.size]
        x.flags.writeable = y.flags.writeable = False
        return x, y


def _with_room(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or a longer one with the same beginning when it is full: by a quarter, so that a million appends copy little."""
    if size < len(array):
        return array
    longer = np.empty(size + max(FIRST, size // 4), array.dtype)
    longer[:size] = array
    return longer


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
        self._steps: dict[str, _Steps] = {}
        """Of each kind of rows: those that its columns share."""
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
        return self._columns.get(key, _Column("", _Steps())).view()

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
        prefix = "" if kind == "train" else f"{kind}/"
        values = {
            prefix + name: _finite(value) for name, value in row.items()
            if name not in ("v", "step", "time", "kind") and (value is None or isinstance(value, int | float))
        }  # fmt: skip
        if values:
            self._append(kind, step, values)

    def _append(self, kind: str, step: int, values: dict[str, float]) -> None:
        shared = self._steps.setdefault(kind, _Steps())
        if shared.size and shared.array[shared.size - 1] >= step:
            shared = self._cut(kind, step)
        shared.append(step)
        for key, value in values.items():
            column = self._columns.get(key)
            if column is None:
                column = self._columns[key] = _Column(kind, shared if shared.size == 1 else _Steps())
            if column.kind != kind:
                continue  # a name with a stroke in it, which another kind has taken
            if column.steps is shared and column.size + 1 < shared.size:
                column.alone()
            if column.steps is not shared:
                column.steps.append(step)
            column.append(value)

    def _cut(self, kind: str, step: int) -> _Steps:
        """Take the points from `step` on away from what rows of this kind have told. Gives the steps that are left."""
        self.version += 1
        old = self._steps[kind]

        def before(steps: _Steps, size: int) -> np.ndarray:
            x = steps.array[:size]
            return x[: np.searchsorted(x, step)]

        # new arrays: the old ones may be in a reader's hands
        left = self._steps[kind] = _Steps(before(old, old.size))
        for key, column in self._columns.items():
            if column.kind == kind:
                x = before(column.steps, column.size)
                self._columns[key] = _Column(kind, left if column.steps is old else _Steps(x), column.view()[1][: len(x)])
        return left


def _finite(value: Any) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
