"""Resolves the `store` and `run` arguments of the notebook API."""

from __future__ import annotations

from pathlib import Path

from console.runs.store import Run, RunStore
from qwen3vl_core.errors import RequestError
from qwen3vl_core.locations import runs_directory
from qwen3vl_core.run_record import PLAN


def open_store(store: RunStore | Path | str | None = None) -> RunStore:
    """The run store: `store`, else $QWEN3VL_RUNS, else ~/.qwen3vl/runs. Raises RequestError."""
    return store if isinstance(store, RunStore) else RunStore(runs_directory(Path(store) if store else None))


def as_run(run: Run | str | int | Path, store: RunStore | Path | str | None = None) -> Run:
    """A run from its number, id or name in the store, or from its folder. Raises RequestError."""
    if isinstance(run, Run):
        return run
    if isinstance(run, Path) or (isinstance(run, str) and "/" in run):
        folder = Path(run).expanduser().absolute()
        if not (folder / PLAN).is_file():
            raise RequestError(f"{folder}: not a run ({PLAN} is missing); give the folder of a run, or its number")
        return open_store(folder.parent).get(folder.name)
    return open_store(store).get(run)
