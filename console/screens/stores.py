"""Choice of the run store that the console shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from console.formatting import runs_text, short_path
from console.runs.other_stores import StoreFolder
from console.screens.dialog import Dialog
from console.widgets.key_hints import Hints
from qwen3vl_core.cells import width as cell_width
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import span
from qwen3vl_core.language import tr
from qwen3vl_core.locations import store_folder


class PickStore(Dialog[Path | None]):
    """Returns the folder of a run store, or None if cancelled."""

    BINDINGS: ClassVar = [Binding("escape", "dismiss(None)", "leave")]

    def __init__(self, shown: Path, others: Sequence[StoreFolder]) -> None:
        super().__init__()
        self.shown, self.others = shown, list(others)

    def compose(self) -> ComposeResult:
        width = max(min(int(self.app.size.width * 0.9), 64) - 8, 20)
        with Vertical(classes="dialog"):
            yield Label(tr("Run stores"), classes="headline")
            yield Static(Content.assemble((tr("shown now: "), "$muted"), short_path(self.shown, max(width - 11, 12))))
            yield OptionList(*(Option(self._line(store, width)) for store in self.others))
            yield Static(tr("no other store was found"), id="none", classes="hint")
            yield Input(placeholder=tr("another folder, as in /data/runs"), id="folder", compact=True, select_on_focus=False)
            yield Static(id="refused", markup=False)
            yield Hints(("enter", "opens it"), ("tab", "to the field"), ("escape", "leaves"))

    @staticmethod
    def _line(store: StoreFolder, width: int) -> Content:
        facts = f"{runs_text(store.runs)}, " + tr("{time} ago", time=span(time.time() - store.newest))
        name = short_path(store.path, max(width - cell_width(facts) - 2, 12))
        return Content.assemble((name, "bold"), "  ", (facts, "$muted"))

    def on_mount(self) -> None:
        self.query_one(OptionList).display = bool(self.others)
        self.query_one("#none").display = not self.others
        (self.query_one(OptionList) if self.others else self.query_one(Input)).focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.others[event.option_index].path)

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        if not text:
            return
        try:
            self.dismiss(store_folder(Path(text)))
        except RequestError as error:
            self.query_one("#refused", Static).update(Content(f"✗ {error.problems[0].shown}").stylize("$text-error"))
