"""A form made from an options class, without knowledge of any single option; `console.forms` parses and checks its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as W

from console.forms import help_of, text_of
from console.notebook.html import box, escape
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import Option, options_of


def field_of(option: Option, value: str | bool, *, hint: str = "", width: str = "340px", label: str = "170px") -> W.Widget:
    """The widget of an option. Raises RequestError for a value that is not one of its choices."""
    layout = W.Layout(width=width)
    common = {"description": option.flag.removeprefix("--"), "style": {"description_width": label}, "tooltip": help_of(option)}
    if option.type is bool:
        return W.Checkbox(value=bool(value), indent=True, layout=layout, **common)
    if option.choices:
        shown = [("any", ""), *((c, c) for c in option.choices)] if option.default is None else [(c, c) for c in option.choices]
        if value not in dict(shown).values():
            raise RequestError(f"{option.flag} {value}: must be one of {', '.join(option.choices)}")
        return W.Dropdown(options=shown, value=value, layout=layout, **common)
    hint = hint or ("required" if option.required else "" if option.default in (None, "", []) else str(option.default))
    return W.Text(value=str(value), placeholder=hint, layout=layout, **common)


class Form(W.Tab):
    """The fields of an options class, one tab per group; `changed` is called when a field changes."""

    titles: Sequence[str]
    """Titles of the tabs; a trait of `Tab`."""

    def __init__(self, cls: type, values: Mapping[str, Any], changed: Callable[[], None]) -> None:
        self.cls, self._changed = cls, changed
        self.options = {o.name: o for o in options_of(cls)}
        unknown = [name for name in values if name not in self.options]
        if unknown:
            raise RequestError(f"{unknown[0]}: no such option; choose from {', '.join(self.options)}")
        self.begin = {name: text_of(o, values.get(name, o.default)) for name, o in self.options.items()}
        self.fields: dict[str, W.Widget] = {name: self._field(o) for name, o in self.options.items()}
        """The widget of each option, by name."""
        self.groups = list(dict.fromkeys(o.group for o in self.options.values()))
        boxes = [W.VBox([self._row(o) for o in self.options.values() if o.group == group]) for group in self.groups]
        self._quiet = False
        super().__init__(children=boxes, titles=self._titles())
        for field in self.fields.values():
            field.observe(self._edited, names="value")

    def _field(self, option: Option) -> W.Widget:
        wide = "560px" if (option.path or option.type is str) and not option.choices else "340px"
        return field_of(option, self.begin[option.name], width=wide)

    def _row(self, option: Option) -> W.Widget:
        # a menu shows its choices itself
        text = f'<div class="dim" style="line-height:1.3">{escape(help_of(option, choices=False))}</div>'
        note = W.HTML(box(text), layout=W.Layout(flex="1 1 0%", min_width="0", margin="4px 0 0 8px"))
        return W.HBox([self.fields[option.name], note])

    def _titles(self) -> list[str]:
        """Names of the groups, with a dot if an option differs from its default."""
        differs = {o.group for name, o in self.options.items() if self.fields[name].value != text_of(o, o.default)}
        return [f"{group} •" if group in differs else group for group in self.groups]

    def _edited(self, change: Any) -> None:
        if not self._quiet:
            self._notify()

    def _notify(self) -> None:
        titles = self._titles()
        if list(self.titles) != titles:
            self.titles = titles
        self._changed()

    def texts(self) -> dict[str, str | bool]:
        """The content of every field."""
        return {name: field.value for name, field in self.fields.items()}

    def fill(self, values: Mapping[str, Any]) -> None:
        """Fill values into their fields; other fields are unchanged. Raises RequestError."""
        for name, value in values.items():
            option = self.options.get(name)
            if option is None:
                raise RequestError(f"{name}: no such option; choose from {', '.join(self.options)}")
            text = text_of(option, value)
            if option.choices and text not in (*option.choices, *([""] if option.default is None else [])):
                raise RequestError(f"{option.flag} {value}: must be one of {', '.join(option.choices)}")
        self._put({name: text_of(self.options[name], value) for name, value in values.items()})

    def reset(self) -> None:
        """Reset every field to its initial value."""
        self._put(self.begin)

    def _put(self, texts: Mapping[str, str | bool]) -> None:
        self._quiet = True
        try:
            for name, text in texts.items():
                self.fields[name].value = text
        finally:
            self._quiet = False
        self._notify()
