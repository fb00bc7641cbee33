"""Run stores on this machine besides one. Blocking."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_core.locations import DEFAULT_DEMO, DEFAULT_RUNS, runs_directory

WORKSPACE = "workspace.json"
_RUN = re.compile(r"\d{4,}-")


@dataclass(frozen=True)
class StoreFolder:
    """A folder with runs."""

    path: Path
    runs: int
    newest: float
    """When the last run was added, in Unix seconds."""


def workspace_of(store: Path) -> Path | None:
    """The workspace, such as the demo's, that a store belongs to."""
    return store.parent if (store.parent / WORKSPACE).is_file() else None


def find_stores(shown: Path, more: Iterable[Path] = ()) -> list[StoreFolder]:
    """Other stores with at least one run, newest first: the default one, the demo's, `runs` in this folder, and `more`."""
    places = [runs_directory(None), DEFAULT_RUNS, DEFAULT_DEMO / "runs", Path("runs"), *more]
    stores: dict[Path, StoreFolder] = {}
    for place in places:
        folder = Path(place).expanduser().absolute()
        if folder == shown or folder in stores:
            continue
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if _RUN.match(entry.name)]
            if names:
                stores[folder] = StoreFolder(folder, len(names), folder.stat().st_mtime)
        except OSError:
            continue  # not there, or not ours to read
    return sorted(stores.values(), key=lambda store: -store.newest)


def elsewhere(root: Path) -> str:
    """`; ~/.qwen3vl/demo/runs has 5 (--runs ~/.qwen3vl/demo/runs)`: where there are runs besides an empty store; empty for nowhere."""
    stores = find_stores(root)
    if not stores:
        return ""
    home = str(Path.home())
    path = str(stores[0].path)
    short = "~" + path[len(home) :] if path.startswith(home + os.sep) else path
    return f"; {short} has {stores[0].runs} (--runs {shlex.quote(path) if short == path else short})"
