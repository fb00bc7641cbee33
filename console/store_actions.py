"""Actions on stores and workspaces: the console finds the stores of this machine and switches between them."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on
from textual.signal import Signal

from console.formatting import one_line
from console.messages import StoresFound
from console.readers.run_rows import Snapshot
from console.run_actions import RunActions
from qwen3vl_core.language import tr

if TYPE_CHECKING:
    from console.readers.store_watcher import StoreWatcher
    from console.runs.other_stores import StoreFolder


class StoreActions(RunActions):
    """Opens another store or workspace."""

    workspace_folder: Path | None
    workspace: dict[str, Any]
    demo_folder: Path | None
    snapshot: Snapshot
    comparison: str | None
    other_stores: tuple[StoreFolder, ...]
    store_seen: Signal[Snapshot]
    _watcher: StoreWatcher | None
    _went_on: float

    def open_workspace(self, folder: Path) -> None:
        """Switch to another workspace, with its own runs."""
        self.open_store(folder / "runs", folder)

    def open_store(self, root: Path, workspace: Path | None = None) -> None:
        """Show the runs of another store, and offer what its workspace holds."""
        if workspace is not None:
            self.workspace_folder = workspace
            self.workspace = importlib.import_module("console.readers.form_defaults").read_workspace(workspace)
        shown_before, self.store_root = self.store_root, root
        self._watcher, self.snapshot, self.comparison = None, Snapshot(seen=False), None
        self._went_on = -math.inf
        for stack in self._screen_stacks.values():
            for screen in stack:
                opened = getattr(screen, "workspace_opened", None)
                if opened is not None:
                    opened()
        self.look()
        self.find_stores(shown_before)

    def find_stores(self, *more: Path) -> None:
        """Look for other stores in a thread; screens then offer them."""
        root, known = self.store_root, [*more, *(store.path for store in self.other_stores)]
        known += [self.demo_folder / "runs"] if self.demo_folder is not None else []

        def work() -> None:
            self.post_message(StoresFound(tuple(importlib.import_module("console.runs.other_stores").find_stores(root, known))))

        self.run_worker(work, group="stores", thread=True, exclusive=True, exit_on_error=False)

    @on(StoresFound)
    def _stores_found(self, event: StoresFound) -> None:
        self.other_stores = event.stores
        if self.snapshot.seen and self.snapshot.rows == ():
            self.store_seen.publish(self.snapshot)

    def action_stores(self) -> None:
        """Choose another run store."""
        from console.runs.other_stores import workspace_of
        from console.screens.stores import PickStore

        def chosen(root: Path | None) -> None:
            if root is not None and root != self.store_root:
                self.remember_command("console", "--runs", str(root))
                self.open_store(root, workspace_of(root))
                self.notify(tr("runs of {folder}", folder=one_line(root)), title="Opened", markup=False, timeout=3)

        self.push_screen(PickStore(self.store_root, self.other_stores), chosen)
