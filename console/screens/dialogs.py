"""What lies over a screen for a moment: a question, the keys, a choice of runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Label, SelectionList, Static
from textual.widgets.selection_list import Selection

from console.actions import SCREENS, actions_of
from console.screens.watch import RunRow
from console.widgets.words import number, span


class ConfirmStop(ModalScreen[bool]):
    """Asks before a run is stopped. Gives True for yes."""

    BINDINGS: ClassVar = [
        Binding("y", "answer(True)", "stop it"),
        Binding("n,escape", "answer(False)", "keep it running"),
        Binding("left,right,up,down", "app.focus_next", show=False),
    ]

    def __init__(self, row: RunRow) -> None:
        super().__init__()
        self.row = row

    def question(self) -> tuple[str, str]:
        """(headline, what one should know)."""
        row = self.row
        if row.status == "lost":
            return f"End what is left of {row.id}?", "Its supervisor is gone. Processes that still carry its name are ended."
        step = f", step {row.step:,}" + (f" of {row.total:,}" if row.total else "") if row.step is not None else ""
        kept = f"Last: {row.checkpoint}." if row.kind == "finetune" else "It saves nothing on the way: a resume begins again."
        text = f"It runs for {span(row.age(time.time()))}{step}.\n{kept}\nIt is asked first, and gets a minute to end by itself."
        return f"Stop {row.id}?", text

    def compose(self) -> ComposeResult:
        head, text = self.question()
        with Vertical(classes="dialog"):
            yield Label(head, classes="headline", markup=False)
            yield Static(text, markup=False)
            with Horizontal(classes="buttons"):
                yield Button("y  Stop it", id="yes", variant="error", compact=True)
                yield Button("n  Keep it running", id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, sure: bool) -> None:
        self.dismiss(sure)


class KeysHelp(ModalScreen[None]):
    """The keys of one screen, then those that work everywhere; from the registry of actions."""

    BINDINGS: ClassVar = [Binding("escape,question_mark,q,enter", "dismiss", "close")]

    def __init__(self, screen: str) -> None:
        super().__init__()
        self.about = screen

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog keys"):
            for scope, title in ((self.about, SCREENS.get(self.about, self.about)), ("app", "Everywhere")):
                yield Label(title, classes="headline")
                yield Static(self._table(scope))
            yield Static("Letters are keys outside of fields; esc leaves a field. esc closes this.", classes="hint")

    @staticmethod
    def _table(scope: str) -> Content:
        lines = [
            Content.assemble((f"{action.keys:>9}", "$text-primary bold"), f"  {action.tooltip}") for action in actions_of(scope)
        ]
        return Content("\n").join(lines)


class PickRuns(ModalScreen[list[str] | None]):
    """A choice of runs to lay over another. Gives their ids, or None when left."""

    BINDINGS: ClassVar = [
        Binding("escape", "leave", "leave"),
        Binding("o", "done", "done"),
        Binding("enter", "done", "done", priority=True),
    ]

    def __init__(self, rows: Iterable[RunRow], chosen: Iterable[str]) -> None:
        super().__init__()
        self.rows, self.chosen = list(rows), set(chosen)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label("Runs over this one", classes="headline")
            yield SelectionList[str](
                *(Selection(Content(f"{row.id}  loss {number(row.loss)}"), row.id, row.id in self.chosen) for row in self.rows)
            )
            yield Static("space marks, enter shows, esc leaves", classes="hint")

    def action_done(self) -> None:
        self.dismiss(list(self.query_one(SelectionList).selected))

    def action_leave(self) -> None:
        self.dismiss(None)
