"""`runs metrics`: every value of a run's metrics, one metric after the other, in a memory that does not grow with the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from console.formatting import plain_json
from console.runs.series import MetricSeries

COLUMN_BYTES = 144 << 20
"""Of the arrays that are filled at once; for more metrics the file is read again."""
READ_BYTES = 4 << 20
WRITTEN = 1 << 14
"""Values that become text at once."""


class Column(NamedTuple):
    """A metric: steps int64 [n], values float64 [n], where NaN is a gap."""

    name: str
    steps: np.ndarray
    values: np.ndarray


class MetricColumns:
    """The metrics of a file, which is read once here to find their names, and again for their values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        first = _read(MetricSeries(path, only=()))
        self.names: list[str] = list(first.seen)
        """In order of appearance."""
        self.events: list[dict[str, Any]] = first.events
        self._counts = first.seen

    def columns(self, names: Sequence[str]) -> Iterator[Column]:
        """Each of these metrics that the file has. The arrays are valid until the next one."""
        left = [name for name in dict.fromkeys(names) if name in self._counts]
        while left:
            size = 0
            batch: list[str] = []
            while left and (not batch or size + self._bytes_of(left[0]) <= COLUMN_BYTES):
                size += self._bytes_of(left[0])
                batch.append(left.pop(0))
            # the space for all values at once: an array that grows is copied
            series = _read(MetricSeries(self.path, max(self._counts[name] for name in batch), only=batch))
            for name in batch:
                yield Column(name, *series.xy(name))
            del series

    def _bytes_of(self, name: str) -> int:
        """Of its values; one that is not in every row has steps of its own, too."""
        count = self._counts[name]
        return 8 * count if count == max(self._counts.values()) else 16 * count

    def json(self, run_id: str, names: Sequence[str]) -> Iterator[str]:
        """The pieces of one JSON object: {"id", "metrics": {name: {"step": [], "value": []}}, "events": []}."""
        yield f'{{"id": {json.dumps(run_id, ensure_ascii=False)}, "metrics": {{'
        separator = ""
        for column in self.columns(names):
            yield f"{separator}{json.dumps(column.name, ensure_ascii=False)}: {{"
            yield '"step": ['
            yield from _listed(column.steps)
            yield '], "value": ['
            yield from _listed(column.values)
            yield "]}"
            separator = ", "
        yield '}, "events": ['
        for place, event in enumerate(self.events):
            yield (", " if place else "") + json.dumps(plain_json(event), ensure_ascii=False)
        yield "]}"


def _read(series: MetricSeries) -> MetricSeries:
    series.update(READ_BYTES)
    while series.behind:
        series.update(READ_BYTES)
    return series


def _listed(values: np.ndarray) -> Iterator[str]:
    for begin in range(0, len(values), WRITTEN):
        part = [value if math.isfinite(value) else None for value in values[begin : begin + WRITTEN].tolist()]
        yield (", " if begin else "") + json.dumps(part)[1:-1]
