"""Which runs are shown, and in which order: the same words on the screen and on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from console.runs.state import ALIVE
from qwen3vl_core.errors import RequestError
from qwen3vl_core.run_metrics import listed_keys, title_of
from qwen3vl_core.run_record import finite


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
    """Orders by name, the listed metrics among them, lowest first; ties stay newest first."""
    return _SORTS | {title_of(key): _by_metric(key) for key in listed_keys()}


def _by_metric(key: str) -> Callable[[Any], float]:
    def value(row: Any) -> float:
        measured = finite(row.metrics.get(key))
        return math.inf if measured is None else measured

    return value


def matches(row: ListedRun, query: str) -> bool:
    """Whether a run passes the filter: every word must.

    `status:`, `kind:` and `name:` look at that field alone, any other name before the colon at the option of that name
    (`size:8B`, `lr:1e-5`, `tp:2`); a word without a colon at the id, the kind and the status.
    """
    for word in query.lower().split():
        field, colon, wanted = word.partition(":")
        if not colon:
            if not any(word in text.lower() for text in (row.id, row.kind, row.status)):
                return False
            continue
        if field in ("status", "kind", "name"):
            if wanted not in {"status": row.status, "kind": row.kind, "name": row.id}[field].lower():
                return False
        elif not _option_matches(row.options.get(field.replace("-", "_")), wanted):
            return False
    return True


def _option_matches(value: Any, wanted: str) -> bool:
    if value is None:
        return False
    if isinstance(value, bool):
        return wanted in (("true", "yes", "on", "1") if value else ("false", "no", "off", "0"))
    if isinstance(value, int | float):
        try:
            return math.isclose(value, float(wanted))
        except ValueError:
            return False
    return wanted in str(value).lower()


def select_runs(rows: Iterable[T], query: str = "", sort: str = "newest", reverse: bool = False) -> list[T]:
    """The rows (newest first) that pass, in this order. Raises RequestError for an unknown order."""
    known = orders()
    if sort not in known:
        raise RequestError(f"--sort {sort}: no such order; choose from {', '.join(known)}")
    found = [row for row in rows if matches(row, query)]
    if sort != "newest":
        found.sort(key=known[sort])
    if reverse:
        found.reverse()
    return found
