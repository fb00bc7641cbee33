"""Filters and orders of lists of runs, with the same syntax on the screen and on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import filled
from qwen3vl_core.run_metrics import listed_keys, title_of
from qwen3vl_core.run_record import ALIVE, finite


class ListedRun(Protocol):
    """The fields of a run that filters and orders use."""

    @property
    def id(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def step(self) -> int | None: ...

    @property
    def created(self) -> float | None: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...


T = TypeVar("T", bound=ListedRun)

_SORTS: dict[str, Callable[[Any], Any]] = {
    "newest": lambda row: -(row.created or 0.0),
    "name": lambda row: row.id.partition("-")[2],
    "status": lambda row: (row.status not in ALIVE, row.status),
    "step": lambda row: -(row.step or 0),
    "kind": lambda row: row.kind,
}


def orders() -> dict[str, Callable[[Any], Any]]:
    """Sort keys by name, including the listed metrics (lowest first); ties stay newest first."""
    return _SORTS | {title_of(key): _by_metric(key) for key in listed_keys()}


def _by_metric(key: str) -> Callable[[Any], float]:
    def value(row: Any) -> float:
        measured = finite(row.metrics.get(key))
        return math.inf if measured is None else measured

    return value


def matches(row: ListedRun, query: str) -> bool:
    """Whether a run matches every word of the filter.

    `status:`, `kind:` and `name:` match that field; any other name before the colon matches the option of that name
    (`size:8B`, `lr:1e-5`, `tp:2`); a word without a colon matches the id, the kind or the status.
    """
    for word in query.lower().split():
        field, colon, pattern = word.partition(":")
        if not colon:
            if not any(word in text.lower() for text in (row.id, row.kind, row.status)):
                return False
            continue
        if field in ("status", "kind", "name"):
            if pattern not in {"status": row.status, "kind": row.kind, "name": row.id}[field].lower():
                return False
        elif not _option_matches(row.options.get(field.replace("-", "_")), pattern):
            return False
    return True


def _option_matches(value: Any, pattern: str) -> bool:
    if value is None:
        return False
    if isinstance(value, bool):
        return pattern in (("true", "yes", "on", "1") if value else ("false", "no", "off", "0"))
    if isinstance(value, int | float):
        try:
            return math.isclose(value, float(pattern))
        except ValueError:
            return False
    return pattern in str(value).lower()


def select_runs(rows: Iterable[T], query: str = "", sort: str = "newest", reverse: bool = False) -> list[T]:
    """The rows (newest first) that match, in this order. Raises RequestError for an unknown order."""
    known = orders()
    if sort not in known:
        raise RequestError(filled("--sort {}: no such order; choose from {}", sort, ", ".join(known)))
    selected = [row for row in rows if matches(row, query)]
    if sort != "newest":
        selected.sort(key=known[sort])
    if reverse:
        selected.reverse()
    return selected
