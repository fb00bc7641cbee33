"""The base class of the four screens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.screen import Screen
from textual.worker import Worker

from console.formatting import one_line
from console.readers.run_rows import RunRow, Snapshot
from console.widgets.bars import KeyBar, TopBar

if TYPE_CHECKING:
    from console.console_base import ConsoleBase

WIDE = 110
"""Columns from which the screens use their wide layout."""


class ConsoleScreen(Screen[None]):
    """Top bar, body, key bar; shows every new snapshot of the store."""

    MODE: ClassVar[str] = ""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012  Textual declares it without ClassVar
    app: ConsoleBase

    def compose(self) -> ComposeResult:
        yield TopBar(self.MODE)
        yield from self.body()
        yield KeyBar()

    def body(self) -> ComposeResult:
        """The widgets between the bars."""
        yield from ()

    def on_mount(self) -> None:
        # Textual calls this and a screen's own: one that called it too would be told of everything twice
        self.app.store_seen.subscribe(self, self._seen)
        self._seen(self.app.snapshot)

    def on_screen_resume(self) -> None:
        # a subscriber that is not on screen still gets every snapshot, but one that has just been made does not
        self._seen(self.app.snapshot)

    def _seen(self, snapshot: Snapshot) -> None:
        if snapshot.seen and self.is_mounted and self in self.app.screen_stack:
            self.query_one(TopBar).show(snapshot.alive)
            self.show_snapshot(snapshot)

    def show_snapshot(self, snapshot: Snapshot) -> None:
        """Show a newer look at the store."""

    def in_thread(self, work: Callable[[], None], group: str) -> Worker[None]:
        """Run blocking work off this thread; it answers by posting messages."""
        return self.run_worker(work, group=group, thread=True, exclusive=True, exit_on_error=False)

    def copy(self, text: str, what: str) -> None:
        """Put text on the clipboard of the user's terminal and say so."""
        self.app.copy_to_clipboard(text)
        self.notify(one_line(text, 200), title=f"{what} copied", markup=False)

    def ask_to_stop(self, row: RunRow | None) -> None:
        """Stop a live run, after a question that names it and its last checkpoint."""
        if row is None:
            self.notify("no run is chosen; 1 shows them all", severity="warning")
        elif not row.alive and row.status != "lost":
            self.notify(f"{row.id}: {row.status} already; nothing to stop", severity="warning", markup=False)
        else:
            from console.screens.dialogs import ConfirmStop  # not before the first frame

            self.app.push_screen(ConfirmStop(row), lambda sure: self.app.stop_run(row.id) if sure else None)
