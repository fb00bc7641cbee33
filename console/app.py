"""The terminal console: four screens over the run store. Imports no torch; what works runs in processes of its own."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.actions import parse
from textual.app import App
from textual.screen import Screen

from console.actions import ACTIONS, SCREENS, Action, bindings_of
from console.console_base import ConsoleBase
from console.runs.state import store_folder
from console.terminal import prepare_terminal
from qwen3vl_core.errors import EXIT_DONE, RequestError

WARM_SECONDS = 0.3
# module and class of each screen: only what is shown first is waited for before the first frame
_SCREENS = {
    "runs": ("console.screens.runs", "RunsScreen"), "launch": ("console.screens.launch", "LaunchScreen"),
    "monitor": ("console.screens.monitor", "MonitorScreen"), "compare": ("console.screens.compare", "CompareScreen"),
}  # fmt: skip


def _make_screen(mode: str) -> Screen:
    module, name = _SCREENS[mode]
    return getattr(importlib.import_module(module), name)()


def _warm() -> None:
    """What the other screens need, read while the first one is looked at."""
    for module, _ in _SCREENS.values():
        importlib.import_module(module)
    if not gc.isenabled():  # as `qwen3vl console` left it
        gc.freeze()
        gc.enable()


class ConsoleApp(ConsoleBase):
    """Runs, Launch, Monitor, Compare."""

    TITLE = "qwen3vl"
    CSS_PATH = "app.tcss"
    BINDINGS = bindings_of("app")
    MODES: ClassVar = {mode: partial(_make_screen, mode) for mode in SCREENS}
    DEFAULT_MODE = "runs"

    def on_mount(self) -> None:
        # beside the base's, which Textual calls too: the other screens are made ready while the first one is looked at
        self.set_timer(WARM_SECONDS, lambda: self.run_worker(_warm, thread=True, group="warm", exit_on_error=False))

    def action_start_page(self) -> None:
        """The first page: the demo, a model, a recipe line, the doctor; in a workspace the loop's steps."""
        if self.screen.id != "welcome":
            from console.screens.welcome import WelcomeScreen  # the first frame of every other day waits for none of it

            while len(self.screen_stack) > 1:
                self.pop_screen()
            self.push_screen(WelcomeScreen())

    def action_doctor(self) -> None:
        """What is missing on this machine."""
        from console.screens.doctor import DoctorScreen

        self.remember_command("doctor")
        self.push_screen(DoctorScreen(self.store_root))

    def action_keys_help(self) -> None:
        """The keys of this screen; what is chosen among them is done."""
        from console.screens.keys_help import KeysHelp  # not before the first frame

        screen = self.screen
        scope = screen.id or self.current_mode

        def chosen(name: str | None) -> None:
            action = next((action for action in ACTIONS if action.id == name), None)
            if action is not None:
                # once the help is away, and the focus where it was
                self.call_later(self._do, action, self if action.screen == "app" else screen)

        self.push_screen(KeysHelp(scope, getattr(screen.focused, "HELP", None) or "", self.keys), chosen)

    async def _do(self, action: Action, node: App | Screen) -> None:
        _, name, words = parse(action.action)
        if node.check_action(name, words):
            await node.run_action(action.action)
        else:
            self.notify(f"{action.label}: not here and now", severity="warning", markup=False)


def run(runs: Path, workspace: Path | None = None) -> int:
    """The console on the run store `runs`, until it is left. Gives the exit code.

    Raises RequestError when there is no terminal, or `runs` is no folder.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) and "TEXTUAL_DRIVER" not in os.environ:
        raise RequestError("the console needs a terminal; from a script use qwen3vl runs list")
    store_folder(runs)
    prepare_terminal()
    return ConsoleApp(runs, workspace, greet=True).run() or EXIT_DONE
