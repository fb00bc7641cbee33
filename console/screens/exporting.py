"""The part of the Compare screen that takes a comparison out of the console: its report, and its command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from console.formatting import error_text
from console.messages import WorkFailed
from console.runs import exports
from console.screens.base import ConsoleScreen
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import tr
from qwen3vl_core.run_record import CAPTIONS_PAGE

if TYPE_CHECKING:
    from pathlib import Path

    from console.readers.run_rows import RunRow


class Exporting(ConsoleScreen):
    """Exports of the comparison that a screen shows."""

    row: RunRow | None

    def action_report(self) -> None:
        """Write the HTML page and the JSON to the run's folder."""
        row = self.row
        if row is None:
            self.notify("there is no comparison to export yet", severity="warning")
            return

        def write() -> None:
            try:
                page, _ = exports.export(row.run)
            except (RequestError, WorkError, OSError) as error:
                self.post_message(WorkFailed(error_text(error)))
                return
            self.app.call_from_thread(self._exported, page)

        self.app.remember_command("runs", "captions", str(row.run.number), "--html", str(row.run.path / CAPTIONS_PAGE))
        self.in_thread(write, "export")

    def _exported(self, page: Path) -> None:
        if self.app.is_web:
            self.app.open_url(page.absolute().as_uri())
        self.copy(str(page), tr("HTML page and JSON written; path of the page copied"))

    def action_copy(self) -> None:
        if self.row is not None:
            self.copy(self.row.command, tr("Command copied"))
