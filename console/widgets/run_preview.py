"""The run under the cursor, beside the list of runs: its curve, why it failed, options that differ, its last lines."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from console.formatting import GLYPHS, one_line
from console.readers.preview import Preview
from console.readers.run_rows import RunRow
from console.widgets.curve import Curve
from console.widgets.steady_text import SteadyText
from qwen3vl_core.language import tr

FLAG_WIDTH = 24
MOST_OPTIONS = 12


class PreviewCurve(Curve, can_focus=False):
    """A curve that leaves the keys to the list."""


class RunPreview(Vertical):
    """Shows a `Preview`; keeps the last one until the next is read."""

    DEFAULT_CSS = """
    RunPreview { padding: 0 1; background: $background; border-left: solid $primary 40%; }
    RunPreview #preview-head { height: auto; max-height: 5; }
    RunPreview PreviewCurve { height: 2fr; min-height: 6; max-height: 16; background: $background; }
    RunPreview #preview-body { height: 3fr; overflow: hidden; }
    """

    def __init__(self) -> None:
        super().__init__(id="preview")
        self.shown: Preview | None = None
        self._row: RunRow | None = None

    def compose(self) -> ComposeResult:
        yield SteadyText(id="preview-head", markup=False)
        yield PreviewCurve(id="preview-curve")
        yield SteadyText(id="preview-body", markup=False)

    def show(self, preview: Preview, row: RunRow) -> None:
        """Show a run's preview. row: its snapshot."""
        self.shown, self._row = preview, row
        if self.is_mounted:
            self._fill()

    def on_mount(self) -> None:
        self._fill()

    def on_resize(self) -> None:
        self._fill()

    def _fill(self) -> None:
        preview, row = self.shown, self._row
        if preview is None or row is None:
            return
        room = max(self.content_size.width, 20)
        head = [Content.assemble((f"{GLYPHS.get(row.status, '·')} {row.id}", "bold"), (f"  {tr(row.status)}", "$muted"))]
        if preview.cause:
            head.append(Content(one_line(preview.cause, 2 * room)).stylize("$text-error"))
        if preview.fix:
            head.append(Content.assemble((tr("fix") + "  ", "bold $text-success"), one_line(preview.fix, 2 * room)))
        self.query_one("#preview-head", SteadyText).update(Content("\n").join(head))
        curve = self.query_one(PreviewCurve)
        curve.display = bool(preview.lines)
        if preview.lines:
            curve.show(list(preview.lines), "")
        self.call_after_refresh(self._fill_body)  # the room that head and curve leave

    def _fill_body(self) -> None:
        if self.shown is not None:
            self.query_one("#preview-body", SteadyText).update(self._body(self.shown, max(self.content_size.width, 20)))

    def _body(self, preview: Preview, room: int) -> Content:
        """Options, then as many of the last lines as there is room for: the end is what matters."""
        options = [
            Content.assemble((f"{one_line(flag, FLAG_WIDTH):<{FLAG_WIDTH}} ", "$muted"), one_line(value, max(room - FLAG_WIDTH - 1, 8)))
            for flag, value in preview.options[:MOST_OPTIONS]
        ]  # fmt: skip
        if len(preview.options) > MOST_OPTIONS:
            options.append(Content(tr("and {count} more", count=len(preview.options) - MOST_OPTIONS)).stylize("$muted"))
        rows = max(self.query_one("#preview-body").size.height - len(options) - 1, 3)
        lines = [Content(one_line(line, room)).stylize("$muted") for line in preview.log[-rows:]]
        return Content("\n").join([*options, *([Content("")] if options and lines else []), *lines])
