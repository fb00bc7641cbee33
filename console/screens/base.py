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
from qwen3vl_core.language import tr

if TYPE_CHECKING:
    from console.console_base import ConsoleBase

WIDE = 110
"""Width in columns from which the screens use their wide layout."""


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
        # Textual calls this and the subclass's on_mount; one that called super() would subscribe twice
        self.app.store_seen.subscribe(self, self._seen)
        self._seen(self.app.snapshot)

    def on_screen_resume(self) -> None:
        # a hidden screen gets every snapshot, but a new one has not had any
        self._seen(self.app.snapshot)

    def _seen(self, snapshot: Snapshot) -> None:
        if snapshot.seen and self.is_mounted and self.in_view and self in self.app.screen_stack:
            self.query_one(TopBar).show(snapshot.alive, self.app.store_root)
            self.show_snapshot(snapshot)
            self.keys_changed()

    @property
    def in_view(self) -> bool:
        """Whether it is on top, or under a dialog only."""
        return self.app.screen is self or self.app.screen.is_modal

    def _compositor_refresh(self) -> None:
        if self.in_view:
            super()._compositor_refresh()
            return
        # Textual would draw the screen that covers this one again, at every message that this one gets
        self._compositor._dirty_regions.clear()
        self._dirty_widgets.clear()

    def useful(self, action: str) -> bool:
        """Whether an action, by its id, would do something now: the key bar shows no other. Its key says why if it would not."""
        return True

    def keys_changed(self) -> None:
        """What `useful` returns may have changed."""
        if self.is_mounted:
            self.query_one(KeyBar).update()

    def show_snapshot(self, snapshot: Snapshot) -> None:
        """Show a newer snapshot of the store."""

    def in_thread(self, work: Callable[[], None], group: str) -> Worker[None]:
        """Run blocking work in a thread; it answers by posting messages."""
        return self.run_worker(work, group=group, thread=True, exclusive=True, exit_on_error=False)

    def copy(self, text: str, title: str) -> None:
        """Copy text to the clipboard of the user's terminal and show a notification with this title."""
        self.app.copy_to_clipboard(text)
        self.notify(one_line(text, 200), title=title, markup=False)

    def ask_to_stop(self, row: RunRow | None) -> None:
        """Stop a live run after confirmation, which names it and its last checkpoint."""
        if row is None:
            self.notify(tr("no run selected; 1 shows all runs"), severity="warning")
        elif not row.alive and row.status != "lost":
            self.notify(tr("{run}: {status} already; nothing to stop", run=row.id, status=tr(row.status)), severity="warning", markup=False)
        else:
            from console.screens.dialogs import ConfirmStop  # not before the first frame

            self.app.push_screen(ConfirmStop(row), lambda sure: self.app.stop_run(row.id) if sure else None)
