"""A form generated from an options class: no option is named here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets import Input, Label, Select, Static, Switch

from console.forms import help_of, text_of
from console.widgets.path_completion import complete
from qwen3vl_core.cells import width
from qwen3vl_core.language import tr
from qwen3vl_core.options import Option, options_of

PREFIX = "o-"
FLAG_WIDTH = 26
History = list[tuple[str, dict[str, str | bool]]]
"""(what was done, the fields before it that it changed)."""
REMEMBERED = 64
"""Number of texts whose completions a field caches."""


class Choice(Select[str], inherit_bindings=False):
    """A Select that leaves the arrow keys to the form."""

    BINDINGS: ClassVar = [Binding("enter,space", "show_overlay", "choose", show=False)]


class PathSuggester(Suggester):
    """Completes the last path of a field from the disk, in a thread."""

    def __init__(self, option: Option) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.option = option
        self._found: dict[str, list[str]] = {}

    def found(self, value: str) -> list[str]:
        """All completions of this text."""
        return self._found.get(value, [])

    async def get_suggestion(self, value: str) -> str | None:
        before, blank, last = value.rpartition(" ") if self.option.many else ("", "", value)
        if not last or "'" in value or '"' in value:
            return None
        completed, paths = await asyncio.to_thread(complete, last, self.option.path not in ("file", "model") and not self.option.many)
        # typing is faster than the disk, and results may arrive in any order: each is kept by its text
        self._found[value] = paths
        while len(self._found) > REMEMBERED:
            del self._found[next(iter(self._found))]
        return before + blank + completed if completed is not None else None


class PathField(Input):
    """An Input in which tab accepts the completion, as in a shell; without a completion it goes to the next field."""

    BINDINGS: ClassVar = [Binding("tab", "take_or_next", show=False)]

    def action_take_or_next(self) -> None:
        if self._suggestion and self.cursor_position == len(self.value) and self._suggestion != self.value:
            self.value = self._suggestion
            self.cursor_position = len(self.value)
        else:
            self.screen.focus_next()

    def watch__suggestion(self, value: str) -> None:
        self.post_message(OptionForm.Offered(self.suggester.found(self.value) if isinstance(self.suggester, PathSuggester) else []))


class OptionForm(VerticalScroll):
    """Fields of an options class, grouped."""

    DEFAULT_CSS = """
    OptionForm { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    OptionForm .group { color: $text-primary; text-style: bold; margin-top: 1; width: 1fr; }
    OptionForm .group.first { margin-top: 0; }
    OptionForm .row { height: 1; }
    OptionForm .flag { width: 26; color: $text-muted; }
    OptionForm .flag.changed { color: $text; }
    OptionForm .row:focus-within .flag { color: $text-primary; text-style: bold; }
    OptionForm .field { width: 1fr; background: $surface; }
    OptionForm .field:focus { background: $panel; }
    OptionForm Choice { height: 1; }
    OptionForm Choice > SelectCurrent { border: none; padding: 0; height: 1; background: $surface; }
    OptionForm Choice:focus > SelectCurrent { border: none; background: $panel; }
    OptionForm Switch.field { width: 6; height: 1; padding: 0 1; border: none; background: $surface; }
    OptionForm Switch.field:focus { border: none; background: $panel; }
    OptionForm .state { width: 1fr; padding-left: 1; color: $text-muted; }
    """

    BINDINGS: ClassVar = [
        Binding("up", "step(-1)", "field before", show=False),
        Binding("down", "step(1)", "next field", show=False),
    ]

    class Edited(Message):
        """A field's value has changed."""

    class Explained(Message):
        """The focus moved to another field."""

        def __init__(self, text: str) -> None:
            self.text = text
            super().__init__()

    class Offered(Message):
        """Possible completions of the path that is being typed."""

        def __init__(self, paths: list[str]) -> None:
            self.paths = paths
            super().__init__()

    def __init__(self, cls: type, values: Mapping[str, Any] | None = None, history: History | None = None) -> None:
        """cls: the options class. values: initial values by name, instead of the defaults. history: of an earlier form of this class."""
        super().__init__(can_focus=False)
        self.cls = cls
        asked = options_of(cls)
        groups = list(dict.fromkeys(o.group for o in asked))
        self.options = {o.name: o for group in groups for o in asked if o.group == group}
        self.begin = {name: text_of(o, (values or {}).get(name, o.default)) for name, o in self.options.items()}
        self._texts: dict[str, str | bool] = dict(self.begin)
        self._recorded = self.begin
        self.history: History = history if history is not None else []
        """Changes of many fields at once that can be undone, the last one at the end."""

    def compose(self) -> ComposeResult:
        group = ""
        for name, option in self.options.items():
            if option.group != group:
                yield Label(tr(option.group), classes="group" if group else "group first")
                group = option.group
            with Horizontal(classes="row"):
                yield Label(self._flag(name), classes="flag changed" if self._changed(name) else "flag", id=f"flag-{name}")
                yield from self._field(option)

    def _field(self, option: Option) -> Iterable[Widget]:
        text, id = self.begin[option.name], PREFIX + option.name
        if option.type is bool:
            yield Switch(bool(text), id=id, classes="field", animate=False, tooltip=option.shown_help)
            yield Static(tr("on" if text else "off"), classes="state", id=f"state-{option.name}")
        elif option.choices:
            blank = option.default is None
            value = str(text) if text in option.choices else Select.NULL if blank else option.default
            yield Choice(
                [(c, c) for c in option.choices], value=value, allow_blank=blank, prompt=tr("any"), id=id, classes="field", compact=True,
                tooltip=option.shown_help,
            )  # fmt: skip
        else:
            hint = tr("required") if option.required else "" if option.default in (None, "", []) else str(option.default)
            shared: dict[str, Any] = dict(
                placeholder=hint, id=id, classes="field", compact=True, select_on_focus=False, tooltip=option.shown_help,
            )  # fmt: skip
            if option.path:
                yield PathField(str(text), suggester=PathSuggester(option), **shared)
            else:
                yield Input(str(text), **shared)

    def texts(self) -> dict[str, str | bool]:
        """The text of each field by option name."""
        return dict(self._texts)

    def fill(self, values: Mapping[str, Any]) -> None:
        """Set the fields of these options; the others stay unchanged."""
        self.fill_texts({name: text_of(self.options[name], value) for name, value in values.items() if name in self.options})

    def fill_texts(self, texts: Mapping[str, str | bool]) -> None:
        """The same with texts, as returned by `texts`."""
        for name, text in texts.items():
            option, field = self.options[name], self.query_one(f"#{PREFIX}{name}")
            if isinstance(field, Switch):
                field.value = text = bool(text)
            elif isinstance(field, Select):
                text = str(text) if text in option.choices else ""
                field.value = text or Select.NULL
            elif isinstance(field, Input):
                field.value = text = str(text)
            self._set(field, text)  # now, not when the field's own message arrives

    def change(self, what: str, texts: Mapping[str, str | bool]) -> None:
        """Set fields in one step that `undo` takes back; `what` names it."""
        before = {name: self._texts[name] for name, text in texts.items() if self._texts[name] != text}
        if before:
            self.history.append((what, before))
        self.fill_texts(texts)

    def change_values(self, what: str, values: Mapping[str, Any]) -> None:
        """The same with values of options; those of other options are left out."""
        self.change(what, {name: text_of(self.options[name], value) for name, value in values.items() if name in self.options})

    def undo(self) -> str | None:
        """Take back the last `change`. Returns what it was; None if there is none."""
        if not self.history:
            return None
        what, before = self.history.pop()
        self.fill_texts(before)
        return what

    def reset(self) -> None:
        """Reset all fields to the initial values of the form."""
        self.change("the reset", self.begin)

    @property
    def edited(self) -> bool:
        """Whether the form holds input that is nowhere else."""
        return self._texts not in (self.begin, self._recorded)

    def keep(self) -> None:
        """The current texts are recorded elsewhere: in a run, or in a plan file."""
        self._recorded = dict(self._texts)

    def focus_first(self) -> None:
        """Focus the first field that is required and empty, else the first one."""
        empty = next((n for n, o in self.options.items() if o.required and not self._texts[n]), None)
        self.query_one(f"#{PREFIX}{empty or next(iter(self.options))}").focus()

    def focus_option(self, name: str) -> None:
        """Focus the field of an option."""
        self.query_one(f"#{PREFIX}{name}").focus()

    @property
    def focused_option(self) -> Option | None:
        """The option whose field has the focus, if any."""
        focused = self.screen.focused
        return self.options.get((focused.id or "").removeprefix(PREFIX)) if focused is not None else None

    def action_step(self, direction: int) -> None:
        """Focus the next (1) or the previous (-1) field; stay at the ends."""
        option = self.focused_option
        names = list(self.options)
        if option is not None and 0 <= (index := names.index(option.name) + direction) < len(names):
            self.query_one(f"#{PREFIX}{names[index]}").focus()

    def _changed(self, name: str) -> bool:
        option = self.options[name]
        return self._texts[name] != text_of(option, option.default)

    def _flag(self, name: str) -> str:
        """The label of a field, marked if its value is not the default; the word beside the flag where there is room for it."""
        option = self.options[name]
        label = ("• " if self._changed(name) else "  ") + option.flag.removeprefix("--")
        same = option.word.replace(" ", "-").lower() == option.flag.removeprefix("--")
        named = label if same or not option.word else f"{label} {option.word}"
        return named if width(named) < FLAG_WIDTH else label

    def _set(self, widget: Widget, value: str | bool) -> None:
        name = (widget.id or "").removeprefix(PREFIX)
        if name not in self.options or self._texts[name] == value:
            return
        self._texts[name] = value
        label = self.query_one(f"#flag-{name}", Label)
        label.set_class(self._changed(name), "changed")
        label.update(self._flag(name))
        self.post_message(self.Edited())

    @on(Input.Changed)
    def _input(self, event: Input.Changed) -> None:
        event.stop()
        self._set(event.input, event.value)

    @on(Select.Changed)
    def _select(self, event: Select.Changed) -> None:
        event.stop()
        self._set(event.select, "" if event.value is Select.NULL else str(event.value))

    @on(Switch.Changed)
    def _switch(self, event: Switch.Changed) -> None:
        event.stop()
        name = (event.switch.id or "").removeprefix(PREFIX)
        self.query_one(f"#state-{name}", Static).update(tr("on" if event.value else "off"))
        self._set(event.switch, event.value)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        option = self.options.get((event.widget.id or "").removeprefix(PREFIX))
        if option is not None:
            self.post_message(self.Explained(f"{option.flag}  {help_of(option)}"))
