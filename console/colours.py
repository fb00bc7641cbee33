"""Colours of the console: what themes lack, terminals of 16 colours, the theme that was chosen last."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from textual.color import Color

from console import terminal
from qwen3vl_core.settings_path import settings_file

if TYPE_CHECKING:
    from textual.theme import Theme

DARK, LIGHT = "textual-dark", "textual-light"
LINES = {
    True: ("#57a5e2", "#ffc473", "#8ad4a1", "#e0788f", "#b59cf0", "#5fd7d7"),
    False: ("#0b5cad", "#a05a00", "#2e7d46", "#a8324e", "#6a3fb5", "#0f7c7c"),
}
"""Colours of the lines of a curve on a dark and on a light background."""
# the sixteen colours themselves: a theme's red and green would both become grey
_SIXTEEN = {
    True: {
        "text-error": "#ff5555", "text-success": "#55ff55", "text-warning": "#ffff55", "text-primary": "#55ffff", "text-accent": "#ff55ff",
        "error": "#aa0000", "success": "#00aa00", "warning": "#aa5500", "primary": "#00aaaa", "muted": "#aaaaaa", "faint": "#555555",
        "footer-key-foreground": "#ffff55",
    },
    False: {
        "text-error": "#aa0000", "text-success": "#00aa00", "text-warning": "#aa5500", "text-primary": "#0000aa", "text-accent": "#aa00aa",
        "error": "#aa0000", "success": "#00aa00", "warning": "#aa5500", "primary": "#0000aa", "muted": "#555555", "faint": "#aaaaaa",
        "footer-key-foreground": "#0000aa",
    },
}  # fmt: skip
_SIXTEEN_LINES = {
    True: ("#55ffff", "#ffff55", "#55ff55", "#ff5555", "#ff55ff", "#5555ff"),
    False: ("#0000aa", "#aa5500", "#00aa00", "#aa0000", "#aa00aa", "#00aaaa"),
}


def with_own_colours(theme: Theme, variables: Mapping[str, str], few: bool) -> dict[str, str]:
    """A theme's colours with two greys of fixed contrast for secondary text ($muted) and for lines ($faint), and the curves' colours.

    few: the terminal has sixteen colours.
    """
    background, text = Color.parse(variables["background"]), Color.parse(variables["foreground"])
    greys = {"muted": background.blend(text, 0.65).hex, "faint": background.blend(text, 0.3).hex}
    # a theme's own colours are not always distinct
    lines = (_SIXTEEN_LINES if few else LINES)[theme.dark]
    return {**variables, **greys, **{f"line-{i}": colour for i, colour in enumerate(lines)}, **(_SIXTEEN[theme.dark] if few else {})}


def first_theme(known: Collection[str]) -> str:
    """The theme that was chosen last; else the one for the terminal's background."""
    with contextlib.suppress(OSError, ValueError):
        file = settings_file().with_suffix(".theme")
        name = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        if name in known:
            return name
    return LIGHT if terminal.light_background else DARK


def remember_theme(name: str) -> None:
    """Begin with this theme the next time; the settings have precedence."""
    with contextlib.suppress(OSError):  # then it is chosen again
        file = settings_file().with_suffix(".theme")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name + "\n", encoding="utf-8")
