"""The doctor's report: what is missing on this machine, and how to fix it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Label, OptionList, Static
from textual.widgets.option_list import Option

from console.formatting import one_line
from console.messages import ThreadAnswer, WorkFailed
from console.screens.dialog import Dialog
from console.widgets.key_hints import Hints
from qwen3vl_core.cells import padded, wrapped
from qwen3vl_core.cells import width as cell_width
from qwen3vl_core.formats import printable
from qwen3vl_core.language import phrase, tr
from qwen3vl_core.layout.doctor import Check, examine

LOOKS = {"ok": ("✓", "$text-success"), "warn": ("!", "$text-warning"), "fail": ("✗", "$text-error")}


class DoctorScreen(Dialog[None]):
    """`qwen3vl doctor` as a list: problems with a fix come first, and a key copies the command that fixes one."""

    BINDINGS: ClassVar = [
        Binding("escape,q", "dismiss", "close"),
        Binding("y,enter", "copy", "copy the fix", priority=True),
        Binding("r", "again", "look again"),
    ]
    CSS: ClassVar = """
    DoctorScreen .dialog { width: 120; max-width: 96%; max-height: 94%; }
    DoctorScreen OptionList { height: auto; max-height: 1fr; border: none; background: $surface; padding: 0; display: none; }
    DoctorScreen OptionList > .option-list--option-highlighted { background: $primary 22%; color: $foreground; text-style: none; }
    DoctorScreen #said { height: auto; }
    DoctorScreen .hint { margin-top: 1; }
    """

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self.runs = runs
        self.checks: list[Check] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(tr("Doctor"), classes="headline")
            yield Static(tr("checking Python, packages, GPUs, disk and ports …"), id="said")
            yield OptionList()
            yield Hints(("y", "copies the fix under the cursor"), ("r", "checks again"), ("escape", "closes"))

    def on_mount(self) -> None:
        self.action_again()

    def action_again(self) -> None:
        """Run all checks again."""

        def look() -> None:
            try:
                self.post_message(ThreadAnswer("checks", examine(self.runs)))
            except Exception as error:
                self.post_message(WorkFailed(f"doctor: {type(error).__name__}: {error}"))

        self.query_one("#said", Static).update(tr("checking Python, packages, GPUs, disk and ports …"))
        self.run_worker(look, thread=True, exclusive=True, exit_on_error=False)

    def on_work_failed(self, event: WorkFailed) -> None:
        self.query_one("#said", Static).update(Content("✗ " + one_line(event.text)).stylize("$text-error"))

    def on_thread_answer(self, event: ThreadAnswer) -> None:
        order = list(LOOKS)[::-1]
        self.checks = sorted(event.value, key=lambda check: order.index(check.status))
        bad, limits = (sum(check.status == status for check in self.checks) for status in ("fail", "warn"))
        words = tr("this machine has everything that runs need")
        if bad:
            words = tr("{bad} of {count} failed", bad=bad, count=len(self.checks))
        if limits:
            words += tr("; {count} warnings" if limits > 1 else "; {count} warning", count=limits)
        self.query_one("#said", Static).update(Content(words + "\n").stylize("$text-error" if bad else "$text-success"))
        choices = self.query_one(OptionList)
        choices.clear_options()
        width = max(cell_width(phrase(check.name)) for check in self.checks)
        room = min(int(self.size.width * 0.96), 120) - width - 12
        indent = "\n" + " " * (width + 4)
        for check in self.checks:
            glyph, colour = LOOKS[check.status]
            text = indent.join(wrapped(printable(phrase(check.text)), max(room, 20)))
            line = Content.assemble((f"{glyph} ", colour), (padded(phrase(check.name), width) + "  ", "bold"), text)
            if check.fix and check.status != "ok":
                fix = (indent + "  ").join(wrapped(printable(phrase(check.fix)), max(room - 2, 20)))
                line += Content.assemble(indent, ("→ ", colour), (fix, "$text-primary"))
            choices.add_option(Option(line))
        choices.display = True
        choices.highlighted = 0
        choices.focus()

    def action_copy(self) -> None:
        """Put the fix of the highlighted check on the clipboard."""
        index = self.query_one(OptionList).highlighted
        if index is None or not self.checks:
            return
        check = self.checks[index]
        if check.status == "ok" or not check.fix:
            self.notify(tr("{check}: nothing to fix", check=phrase(check.name)), markup=False)
            return
        self.app.copy_to_clipboard(check.fix)
        self.notify(check.fix, title="Fix copied", markup=False)
