"""Choice of the console's language, in both."""

from __future__ import annotations

import os
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Label, OptionList, Static
from textual.widgets.option_list import Option

from console.screens.dialog import Dialog
from qwen3vl_core.language import LANGUAGES, VARIABLE, language


class PickLanguage(Dialog[str | None]):
    """Returns `en` or `zh`, or None if the language stays as it is."""

    BINDINGS: ClassVar = [Binding("escape,q", "dismiss(None)", "leave")]

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label("界面语言 · Language", classes="headline")
            yield OptionList(*(Option(name, id=code) for code, name in LANGUAGES.items()))
            yield Static("L 随时切换 · L changes it at any time", classes="hint")
            if os.environ.get(VARIABLE):
                yield Static(f"{VARIABLE} 决定下次启动的语言 · {VARIABLE} decides at the next start", classes="hint")

    def on_mount(self) -> None:
        choices = self.query_one(OptionList)
        choices.highlighted = list(LANGUAGES).index(language())
        choices.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)
