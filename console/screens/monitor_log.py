"""The pane below the monitor's curve: the log with its title line, search, and why a run failed."""

from __future__ import annotations

from typing import Any

from textual import on
from textual.content import Content
from textual.style import Style
from textual.widgets import Input, Static

from console.formatting import GLYPHS, one_line
from console.messages import LogRead, WorkFailed
from console.readers.monitor import FAILED_STATES, RunView
from console.readers.run_rows import RunRow
from console.runs.log_file import WholeLog
from console.screens.base import ConsoleScreen
from console.widgets.key_hints import packed
from console.widgets.log_pane import LogPane
from qwen3vl_core.language import tr
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.run_record import LOG

NO_CAUSE = "it ended without a known error; the end of its log is below"


class MonitorLog(ConsoleScreen):
    """The part of the monitor that handles the log; its widgets are `#logstate`, `#find`, `#diagnosis`, `#log`."""

    def __init__(self) -> None:
        super().__init__()
        self.run_id: str | None = None
        self.row: RunRow | None = None
        self.view: RunView | None = None
        """The last view of the run."""
        self.gone = False
        """Whether the run's folder was deleted while it was shown."""
        self._explained: tuple[Any, ...] | None = None
        """How the card of a failed run looks."""
        self._state: Content | None = None

    @on(LogPane.Changed)
    def _log_state(self) -> None:
        pane = self.query_one(LogPane)
        if self.has_class("-captions"):
            count = len(self.view.stories) if self.view is not None else 0
            pictures = tr("{count} pictures" if count != 1 else "{count} picture", count=count)
            words = Content.assemble(
                (tr(" captions during the run "), "bold"),
                (f"{pictures}  " + tr("{key} shows the log", key=self.app.key_of("monitor.captions")), "$muted"),
            )
            self._state = None
            self.query_one("#logstate", Static).update(words, layout=False)
            return
        parts = [Content(f" {LOG} ").stylize("bold")]
        if self.gone:
            text = Content(tr(" ✗ the run's folder was deleted; its last state is shown  1 shows the other runs")).stylize("$text-error")
            self._state = None
            self.query_one("#logstate", Static).update(text, layout=False)
            return
        if pane.all is not None:
            parts.append(Content(tr("all {count:,} lines", count=len(pane.lines)) + "  ").stylize("$text-accent"))
        parts.append(Content(tr("● following")).stylize("$text-success") if pane.follow else Content(tr("○ F follows")).stylize("$muted"))
        if pane.wrap and pane.all is None:
            parts.append(Content("  " + tr("lines wrap")).stylize("$muted"))
        elif pane.cuts:
            parts.append(Content("  " + tr("{key} wraps", key=self.app.key_of("monitor.wrap"))).stylize("$muted"))
        if pane.needle:
            count = len(pane.hits)
            position = tr("{place} of {count}", place=pane.hit + 1, count=count) if count else tr("nowhere")
            part = pane.all is not None or not pane.shown.whole or pane.shown.dropped or not count
            scope = (
                " " + tr("in all {count:,} lines" if pane.all is not None else "in the last {count:,} lines", count=len(pane.lines))
                if part
                else ""
            )
            parts.append(Content(f"   “{pane.needle}” {position}{scope}").stylize("$text-warning" if not count else ""))
            if count > 1:
                # letters are input while the field has the focus
                keys = "  enter" if self.query_one("#find").has_focus else "  n N"
                parts.append(Content(keys).stylize("$muted"))
        state = Content("").join(parts)
        if state != self._state:
            self._state = state
            self.query_one("#logstate", Static).update(state, layout=False)

    def action_follow(self) -> None:
        """Follow the end of the log, or no longer."""
        pane = self.query_one(LogPane)
        pane.set_follow(not pane.follow)

    def action_wrap(self) -> None:
        """Break the long lines of the log, or cut them."""
        pane = self.query_one(LogPane)
        pane.set_wrap(not pane.wrap)

    def action_find(self) -> None:
        """Show the search field."""
        field = self.query_one("#find", Input)
        field.display = True
        field.focus()

    def action_find_step(self, step: int) -> None:
        """To the next line that was found (1), or the previous (-1)."""
        self.query_one(LogPane).find_step(step)

    @on(Input.Submitted, "#find")
    def _find(self, event: Input.Submitted) -> None:
        pane = self.query_one(LogPane)
        if event.value and event.value == pane.needle:
            pane.find_step(-1)
        else:
            pane.find(event.value)
            if event.value and (pane.all is not None or not pane.hits) and not (pane.shown.whole and not pane.shown.dropped):
                self._read_all(event.value)
            if event.value and self.row is not None:
                self.app.remember_command("runs", "logs", str(self.row.run.number), "--grep", event.value)
        if not event.value:
            self._close_find()
            pane.focus()

    @on(LogPane.AllAsked)
    def _all_asked(self) -> None:
        self._read_all("")

    def _read_all(self, needle: str) -> None:
        """Read all of a long log in a thread, and search a text in it."""
        if self.row is None:
            return
        run = self.row.run

        def look() -> None:
            try:
                log = WholeLog(run.log)
                self.post_message(LogRead(run.id, log, needle, log.find(needle)))
            except OSError as error:
                self.post_message(WorkFailed(f"{run.log}: {error.strerror}"))

        self.notify("reading the whole log …", timeout=1.5)
        self.in_thread(look, "log")

    @on(LogRead)
    def _all_read(self, event: LogRead) -> None:
        pane = self.query_one(LogPane)
        if event.run_id == self.run_id and event.needle == (pane.needle if event.needle else ""):
            pane.show_all(event.whole, event.hits)

    def _close_find(self) -> None:
        self.query_one("#find").display = False
        self.call_after_refresh(self._log_state)

    # why it failed

    def _explain(self) -> None:
        """Show above the log why the run failed or was lost, and what to try."""
        row, view = self.row, self.view
        ended = row is not None and view is not None and row.status in FAILED_STATES
        card = self._card(row, view) if ended and row is not None and view is not None else None
        look = (card.plain, tuple(card.spans)) if card is not None else None
        if look == self._explained:
            return
        self._explained = look
        place = self.query_one("#diagnosis", Static)
        place.display = card is not None
        if card is not None:
            place.update(card)

    def _card(self, row: RunRow, view: RunView) -> Content:
        """The cause as headline, the keys that act on it, the log's line and the advice."""
        diagnosis = view.diagnosis
        cause = tr(diagnosis.headline) if diagnosis is not None else row.error or (view.lost if row.status == "lost" else tr(NO_CAUSE))
        beside = [view.lost] if row.status == "lost" and cause != view.lost else []
        beside += [tr("exit code {code}", code=row.exit_code)] if row.exit_code and row.status == "failed" else []
        lines = [Content.assemble(
            (f"{GLYPHS[row.status]} {one_line(cause, 400)}", "bold $text-error"), (f"  {', '.join(beside)}" if beside else "", "$muted"),
        )]  # fmt: skip
        where = " " + (tr("from {checkpoint}", checkpoint=row.checkpoint_text) if row.checkpoint else tr("from the beginning"))
        keys: list[tuple[str, str]] = []
        found = view.remedy
        if found is not None:
            lines.append(Content.assemble((tr("fix") + "  ", "bold $text-success"), (one_line(found.headline, 400), "bold")))
            how = tr("starts a new run with it")
            if found.resumes is not None:
                how = tr("resumes with it from step {step:,}", step=found.resumes)
            keys.append(("monitor.start_fixed", how if found.changes else tr("resumes") + where))
            keys += [("monitor.fix", tr("opens the form with it"))] if found.changes else []
        if found is None or found.changes:
            keys.append(("monitor.resume", tr("resumes unchanged" if found else "resumes") + (where if row.kind == "finetune" else "")))
        keys += [("monitor.clone", tr("clones, with other options"))] if found is None or not found.changes else []
        if diagnosis is not None and diagnosis.text and diagnosis.text != cause:
            lines.append(Content(f"  {one_line(diagnosis.text, 400)}").stylize("$muted"))
        if diagnosis is not None and diagnosis.advice and tr(diagnosis.advice) not in cause:
            lines.append(Content.assemble(("→ ", "$muted"), one_line(tr(diagnosis.advice), 400)))
        keys += [("monitor.stop", tr("ends what is left of it"))] if row.status == "lost" else []
        keys += [("monitor.trouble", tr("shows the line"))] if diagnosis is not None and diagnosis.line else []
        parts: list[Content] = []
        for action, words in keys:
            key = self.app.key_of(action)
            text = Content.assemble((key, "bold $text-primary"), f" {words}")
            parts.append(text.stylize(Style.from_meta({"key": self.app.pressed(action)})))
        head = 2 if found is not None else 1
        # a small terminal has room for the first ones
        return Content("\n").join([*lines[:head], packed(parts, self.size.width - 2), *lines[head:]])

    def action_trouble(self) -> None:
        """Go to the line of the log that says why the run failed."""
        diagnosis = self.view.diagnosis if self.view is not None else None
        if diagnosis is None or not diagnosis.line:
            self.notify("no known error was found in the log", severity="warning")
            return
        self.remove_class("-captions")
        pane = self.query_one(LogPane)
        pane.go_to(untagged(diagnosis.line))
        pane.focus()
