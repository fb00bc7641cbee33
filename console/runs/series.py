"""A run's metrics as arrays that grow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from console.runs.tail import JsonlTail
from qwen3vl_core.run_metrics import key_of
from qwen3vl_core.run_record import EVENT, ROW_FIELDS, TRAIN

FIRST = 256
"""Capacity of a new array, in points."""
RESERVED, RESERVED_COLUMNS = 1 << 16, 32
"""Most steps that `room_for` preallocates (8 bytes per step and metric), and the number of metrics that get it: the first ones."""

_TIMES = "/time"
"""Key of the times among the metrics, which no metric has."""


def room_for(steps: Any) -> int:
    """The `room` of the series of a live run: for the steps of its plan, at most `RESERVED`."""
    return min(max(steps, 0), RESERVED) if isinstance(steps, int) and not isinstance(steps, bool) else 0


class _GrowingSteps:
    """Growing array of the steps (int64) of one kind of rows. Most metrics have a value in each row and share it."""

    def __init__(self, x: np.ndarray | None = None, room: int = 0) -> None:
        self.size, self.room = 0 if x is None else len(x), room
        self.array = _array(self.size, room, np.int64)
        if x is not None:
            self.array[: self.size] = x

    def append(self, x: int) -> None:
        self.array = _with_room(self.array, self.size)
        self.array[self.size] = x
        self.size += 1


class _GrowingValues:
    """Growing array of float64 values. Its steps are shared with other metrics as long as it has a value at each of them."""

    def __init__(self, kind: str, steps: _GrowingSteps, y: np.ndarray | None = None, room: int = 0) -> None:
        self.kind, self.steps, self.room = kind, steps, room
        self.size = 0 if y is None else len(y)
        self._y = _array(self.size, room, np.float64)
        if y is not None:
            self._y[: self.size] = y

    def own_steps(self) -> None:
        """Stop sharing steps: this metric is missing in some row."""
        self.steps = _GrowingSteps(self.steps.array[: self.size], self.room)

    def append(self, y: float) -> None:
        """Append the value of the next step of `steps`."""
        self._y = _with_room(self._y, self.size)
        self._y[self.size] = y
        self.size += 1

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.steps.array[: self.size], self._y[: self.size]
        x.flags.writeable = y.flags.writeable = False
        return x, y


def _array(size: int, room: int, kind: type) -> np.ndarray:
    """An array of `size` points with capacity for `room`, preallocated."""
    # filled once: the kernel maps pages only when they are written to
    return np.full(room, 0, kind) if room > size + FIRST else np.empty(size + FIRST, kind)


def _with_room(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or if it is full, a copy that is longer by a quarter, so that appending takes linear time in total."""
    if size < len(array):
        return array
    longer = np.empty(size + max(FIRST, size // 4), array.dtype)
    longer[:size] = array
    return longer


class MetricSeries:
    """Every number of a run's metrics as arrays over the step.

    Keys: a train row's `loss` is `loss`, an eval row's is `eval/loss`. Steps increase strictly: when a resumed run goes back
    to its checkpoint, its steps replace the later ones. A null, or a number that is not finite, is NaN: a gap.
    """

    def __init__(self, path: Path, room: int = 0, only: Collection[str] | None = None, times: bool = False) -> None:
        """room: number of training steps for which the memory of each metric is allocated at its first value. only: keep the values of
        these metrics alone, and count those of all in `seen`. times: keep the times of the train rows, too."""
        self.room, self._only, self._with_times = room, only, times
        self._tail = JsonlTail(path)
        self.behind = False
        """Whether the last update stopped at its limit, so that there may be more rows."""
        self.version = 0
        """Increases when earlier points were changed or removed; otherwise arrays only get longer."""
        self._clear()

    def _clear(self) -> None:
        self._columns: dict[str, _GrowingValues] = {}
        self._steps: dict[str, _GrowingSteps] = {}
        """By kind of rows: the steps that its metrics share."""
        self.latest: dict[str, dict[str, Any]] = {}
        """The last row of each kind (`train`, `eval`, `event`)."""
        self.events: list[dict[str, Any]] = []
        self.train_iters: int | None = None
        self.seen: Counter[str] = Counter()
        """Values of each metric; of earlier attempts at the same steps, too."""

    def update(self, limit: int | None = None) -> int:
        """Read new rows, about `limit` bytes at most. Returns their number."""
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
        return [key for key in self._columns if key != _TIMES]

    @property
    def times(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [n], Unix seconds float64 [n]) of the train rows, read-only."""
        return self.xy(_TIMES)

    def xy(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [n], values float64 [n]) of a series, read-only; empty for an unknown key.

        Later updates do not change these arrays; call again to see new points.
        """
        return self._columns.get(key, _GrowingValues("", _GrowingSteps())).view()

    def _take(self, row: dict[str, Any]) -> None:
        kind, step = row.get("kind"), row.get("step")
        if not isinstance(kind, str):
            return
        self.latest[kind] = row
        if kind == EVENT:
            self.events.append(row)
            iters = row.get("train_iters")
            if isinstance(iters, int) and not isinstance(iters, bool):
                self.train_iters = iters
            return
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 62:
            return
        prefix = key_of(kind, "")
        values = {
            prefix + name: _finite(value) for name, value in row.items()
            if name not in ROW_FIELDS and (value is None or isinstance(value, int | float))
        }  # fmt: skip
        if self._with_times and kind == TRAIN and isinstance(row.get("time"), int | float):
            values[_TIMES] = _finite(row["time"])
        if self._only is not None:
            self.seen.update(values.keys())
            values_kept = {key: value for key, value in values.items() if key in self._only}
        else:
            values_kept = values
        if values:
            # with none that is kept too: a step that is made again removes the later ones
            self._append(kind, step, values_kept)

    def _append(self, kind: str, step: int, values: dict[str, float]) -> None:
        shared = self._steps.get(kind)
        if shared is None:
            shared = self._steps[kind] = _GrowingSteps(room=self._room(kind))
        if shared.size and shared.array[shared.size - 1] >= step:
            shared = self._cut(kind, step)
        shared.append(step)
        for key, value in values.items():
            column = self._columns.get(key)
            if column is None:
                room = self._room(kind)
                steps = shared if shared.size == 1 else _GrowingSteps(room=room)
                column = self._columns[key] = _GrowingValues(kind, steps, room=room)
            if column.kind != kind:
                continue  # a metric name with a slash that is another kind's series
            if column.steps is shared and column.size + 1 < shared.size:
                column.own_steps()
            if column.steps is not shared:
                column.steps.append(step)
            column.append(value)

    def _room(self, kind: str) -> int:
        # evaluations are rare
        return self.room if kind == TRAIN and len(self._columns) < RESERVED_COLUMNS else 0

    def _cut(self, kind: str, step: int) -> _GrowingSteps:
        """Remove the points of this kind's rows from `step` on. Returns the steps that are left."""
        self.version += 1
        old = self._steps[kind]

        def before(steps: _GrowingSteps, size: int) -> np.ndarray:
            x = steps.array[:size]
            return x[: np.searchsorted(x, step)]

        # new arrays: a reader may hold the old ones
        left = self._steps[kind] = _GrowingSteps(before(old, old.size), old.room)
        for key, column in self._columns.items():
            if column.kind == kind:
                x = before(column.steps, column.size)
                steps = left if column.steps is old else _GrowingSteps(x, column.room)
                self._columns[key] = _GrowingValues(kind, steps, column.view()[1][: len(x)], column.room)
        return left


def _finite(value: Any) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
