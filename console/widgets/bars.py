"""The bar with the screens at the top, the bar with the keys at the bottom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.screen import Screen
from textual.style import Style
from textual.widget import Widget

from console.actions import BY_ID, SCREENS
from console.formatting import BLOCKS, short_path
from qwen3vl_core.language import tr

if TYPE_CHECKING:
    from console.console_base import ConsoleBase
    from qwen3vl_core.layout.gpus import GpuUse

GAP = "  "
NAMED = {"slash": "/", "question_mark": "?", "plus": "+", "minus": "-", "equals_sign": "="}
"""Characters of printable keys that have a name."""
TIGHT, WIDE = 72, 100
"""Widths from which the screens' names have room around them, and the program's name is shown."""
MOST_GPUS = 16
"""GPUs that the bar shows."""
LEAST_STORE, MOST_STORE = 8, 48
"""Cells of the run store's path in the bar."""
LAST = ("escape", "question_mark", "q", "ctrl+p", "ctrl+q")
"""Keys that are always shown, at the end."""
IN_FIELDS = ("app.palette", "app.quit")
"""Actions whose keys work in a field, which the bar shows there: letters are input."""


class TopBar(Widget):
    """The screens with their keys, the run store, and the number of live runs."""

    app: ConsoleBase

    def __init__(self, current: str) -> None:
        super().__init__()
        self.current = current
        self.alive = 0
        self.store: Path | None = None
        """The store that was looked at; None before the first look."""

    def show(self, alive: int, store: Path) -> None:
        """Show the number of live runs in a store."""
        if (alive, store) != (self.alive, self.store):
            self.alive, self.store = alive, store
            self.refresh()

    def render(self) -> Content:
        width = self.size.width
        pad = " " if width >= TIGHT else ""
        tabs = []
        for key, (mode, title) in enumerate(SCREENS.items(), 1):
            style = "$background on $primary bold" if mode == self.current else "$foreground"
            tabs.append(Content(f"{pad}{key} {tr(title)}{pad}").stylize(style).stylize(Style.from_meta({"screen": mode})))
        left = Content(" ").join(tabs)
        right = Content("")
        if self.store is not None:
            style = "$text-primary bold" if self.alive else "$muted"
            right = Content(f"{'●' if self.alive else '○'} {tr('{count} live', count=self.alive)} ").stylize(style)
        name = Content(" qwen3vl  ").stylize("$muted").stylize(Style.from_meta({"screen": "start"})) if width >= WIDE else Content(" ")
        room = width - name.cell_length - left.cell_length - right.cell_length
        if self.app.gpus and room > len(self.app.gpus) + 6:
            strip = Content.assemble(("GPU ", "$muted"), *map(self._gpu, self.app.gpus[:MOST_GPUS]), "  ")
            right = strip.stylize(Style.from_meta({"screen": "start"})) + right
            room -= strip.cell_length
        if room > LEAST_STORE + 4:
            store = Content(short_path(self.store or self.app.store_root, min(room - 4, MOST_STORE)) + "  ")
            right = store.stylize("$muted").stylize(Style.from_meta({"screen": "stores"})) + right
            room -= store.cell_length
        return name + left + Content(" " * max(room, 1)) + right

    @staticmethod
    def _gpu(gpu: GpuUse) -> tuple[str, str]:
        """A GPU in one cell: `·` free, a block as full as its memory for a run of ours, `x` for other processes."""
        if gpu.free:
            return "·", "$text-success"
        if not gpu.run:
            return "x", "$text-warning bold"
        return BLOCKS[min(int(gpu.used_gib / gpu.total_gib * len(BLOCKS)), len(BLOCKS) - 1)], "$text-primary"

    def on_click(self, event: events.Click) -> None:
        if (mode := event.style.meta.get("screen")) is not None:
            if mode == "start":
                self.app.action_start_page()
            elif mode == "stores":
                self.app.action_stores()
            else:
                self.app.action_show_screen(mode)


class KeyBar(Widget):
    """The keys that would do something now, as many as fit; `?` shows them all."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[tuple[str, str, str]] = []

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[Any]) -> None:
        if screen is self.screen:
            self.refresh()

    def update(self) -> None:
        """Show the keys again if they are others."""
        if self.items() != self._shown:
            self.refresh()

    def items(self) -> list[tuple[str, str, str]]:
        """(key as text, label, Textual's key) of each shown binding, the screen's before the app's."""
        keys: dict[str, tuple[str, str, str]] = {}
        useful = getattr(self.screen, "useful", None)
        focused = self.screen.focused
        for active in self.screen.active_bindings.values():
            binding = active.binding
            # Textual does this for letters, not for keys with names
            typed = focused is not None and focused.check_consume_key(binding.key, NAMED.get(binding.key))
            if useful is not None and binding.id and not binding.id.startswith("app.") and not useful(binding.id):
                continue
            show = binding.show or (binding.id in IN_FIELDS and self._types(focused))
            if show and active.enabled and binding.description and not typed:
                label = BY_ID[binding.id].shown_label if binding.id in BY_ID else tr(binding.description)
                keys.setdefault(binding.action, (self.app.get_key_display(binding), label, binding.key))
        return list(keys.values())

    @staticmethod
    def _types(focused: Widget | None) -> bool:
        """Whether letters go into a field."""
        return focused is not None and focused.check_consume_key("q", "q")

    def render(self) -> Content:
        items = self._shown = self.items()
        always = sorted((item for item in items if item[2] in LAST), key=lambda item: LAST.index(item[2]))
        others = [item for item in items if item not in always]

        def length(item: tuple[str, str, str]) -> int:
            return cell_len(item[0]) + 1 + cell_len(item[1]) + len(GAP)

        room = self.size.width - 2 - sum(map(length, always))
        chosen = []
        for item in others:
            if length(item) > room:
                break
            room -= length(item)
            chosen.append(item)
        parts = []
        for shown, label, key in [*chosen, *always]:
            pair = Content.assemble((shown, "$footer-key-foreground bold"), " ", (label, "$footer-description-foreground"))
            parts.append(pair.stylize(Style.from_meta({"key": key})))
        return Content(" ") + Content(GAP).join(parts)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """The tooltip of the key under the pointer."""
        key = event.style.meta.get("key", "")
        bindings = [active.binding for active in self.screen.active_bindings.values() if active.binding.key == key]
        self.tooltip = next((BY_ID[binding.id].shown_tooltip for binding in bindings if binding.id in BY_ID), None)

    def on_click(self, event: events.Click) -> None:
        if (key := event.style.meta.get("key")) is not None:
            self.app.simulate_key(key)
