"""The help: all keys of a screen, then those that work everywhere. A click or enter on a line runs its action."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from console.actions import SCREENS, Action, actions_of, shown
from console.screens.dialog import Dialog
from qwen3vl_core.cells import wrapped
from qwen3vl_core.language import tr

WIDTH = 104
"""Width of the help in columns."""
BESIDE = 11
"""Cells of the key and the gap behind it."""
TITLES = {**SCREENS, "welcome": "First page", "app": "Everywhere"}
NOTE = "Letters are keys outside of fields; esc leaves a field. The grey names are for your own keys: comma opens the settings."


class KeysHelp(Dialog[str | None]):
    """The keys of one screen, from the registry of actions. Returns the id of the chosen action, or None if cancelled."""

    BINDINGS: ClassVar = [Binding("escape,question_mark,q", "dismiss(None)", "close")]

    def __init__(self, screen: str, focused: str = "", keymap: Mapping[str, str] | None = None) -> None:
        """focused: help of the focused pane. keymap: keys from the user's settings, by the action's id."""
        super().__init__()
        self.about, self.pane, self.keymap = screen, focused, keymap or {}

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog keys"):
            yield OptionList(*self._options())

    def _options(self) -> Iterator[Option]:
        def words(content: Content | str) -> Option:
            return Option(content, disabled=True)

        room = min(WIDTH, self.app.size.width * 9 // 10) - 8

        def in_lines(text: str) -> str:
            return "\n".join(wrapped(tr(text), room))

        if self.pane:
            yield words(Content(tr("This pane")).stylize("bold"))
            yield words(in_lines(self.pane))
            yield words("")
        for scope in (self.about, "app"):
            yield words(Content(tr(TITLES.get(scope, scope))).stylize("bold"))
            for action in actions_of(scope):
                yield Option(self._line(action, room), id=action.id)
            yield words("")
        yield words(Content(in_lines(NOTE)).stylize("$text-muted"))

    def _line(self, action: Action, room: int) -> Content:
        keys = shown(self.keymap[action.id]) if action.id in self.keymap else action.keys
        about = ("\n" + " " * BESIDE).join(wrapped(action.shown_tooltip, max(room - BESIDE, 20)))
        line = Content.assemble((f"{keys:>9}", "$text-primary bold"), f"  {about}")
        fill = room - line.cell_length - len(action.id)
        return line + Content(" " * fill + action.id).stylize("$faint") if fill >= 2 and "\n" not in about else line

    def on_mount(self) -> None:
        self.query_one(".keys").border_title = tr("Keys")
        self.query_one(".keys").border_subtitle = tr("enter or a click runs it, esc closes")
        self.query_one(OptionList).focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)
