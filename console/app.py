"""The terminal console: four screens on a run store. Imports no torch; work runs in separate processes."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from textual.actions import parse
from textual.app import App
from textual.screen import Screen

from console.actions import ACTIONS, SCREENS, Action, bindings_of
from console.console_base import ConsoleBase
from console.terminal import prepare_terminal, terminal_is_gone
from qwen3vl_core.errors import EXIT_DONE, RequestError
from qwen3vl_core.language import is_unclear, language, remember, tr, use
from qwen3vl_core.locations import store_folder

WARM_SECONDS = 0.3
AGAIN = -1
"""What the app returns to be shown anew, in another language."""
TERMINAL_SECONDS = 2.0
"""Between two looks whether the terminal is still there."""
# module and class of each screen: only the screen that is shown first is imported before the first frame
_SCREENS = {
    "runs": ("console.screens.runs", "RunsScreen"), "launch": ("console.screens.launch", "LaunchScreen"),
    "monitor": ("console.screens.monitor", "MonitorScreen"), "compare": ("console.screens.compare", "CompareScreen"),
}  # fmt: skip


def _make_screen(mode: str) -> Screen[Any]:
    module, name = _SCREENS[mode]
    return getattr(importlib.import_module(module), name)()


def _warm() -> None:
    """Import what the other screens need, while the user looks at the first one."""
    for module, _ in _SCREENS.values():
        importlib.import_module(module)
    if not gc.isenabled():  # disabled by `qwen3vl console`
        gc.freeze()
        gc.enable()


def _palette() -> Any:
    return importlib.import_module("console.palette").ConsoleProvider


class ConsoleApp(ConsoleBase):
    """Runs, Launch, Monitor, Compare."""

    TITLE = "qwen3vl"
    CSS_PATH = "app.tcss"
    BINDINGS = bindings_of("app")
    MODES: ClassVar = {mode: partial(_make_screen, mode) for mode in SCREENS}
    DEFAULT_MODE = "runs"
    COMMANDS = App.COMMANDS | {_palette}

    def on_mount(self) -> None:
        # Textual also calls the base class's
        self.set_timer(WARM_SECONDS, lambda: self.run_worker(_warm, thread=True, group="warm", exit_on_error=False))
        if not self.is_headless and sys.__stdin__ is not None and sys.__stdin__.isatty():
            self.set_interval(TERMINAL_SECONDS, self._end_without_terminal)

    def _end_without_terminal(self) -> None:
        if terminal_is_gone():
            self.exit()

    def action_start_page(self) -> None:
        """The first page: the demo, a model, a recipe line, the doctor; in a workspace the loop's steps. Asks once for the language."""
        if self.screen.id != "welcome":
            from console.screens.welcome import WelcomeScreen  # late: not needed for the first frame of another screen

            while len(self.screen_stack) > 1:
                self.pop_screen()
            self.push_screen(WelcomeScreen())
        if self.ask_language:
            self.ask_language = False
            self.action_language()

    def action_language(self) -> None:
        """Choose the language of the console, which is shown anew."""
        from console.screens.languages import PickLanguage

        def chosen(name: str | None) -> None:
            name = name or language()
            if name != language() and self.edited_forms:
                self.notify(tr("the form would be lost: start it, save its plan or reset it first"), severity="warning")
                return
            remember(name)
            if name != language():
                use(name)
                self.exit(AGAIN)

        self.push_screen(PickLanguage(), chosen)

    def action_gpu_queue(self) -> None:
        """GPUs against time, and the runs that wait for them."""
        from console.screens.queue import GpuQueue  # not before the first frame

        self.remember_command("runs", "queue")
        self.push_screen(GpuQueue(), lambda run_id: self.watch_run(run_id) if run_id else None)

    def action_doctor(self) -> None:
        """Check this machine."""
        from console.screens.doctor import DoctorScreen

        self.remember_command("doctor")
        self.push_screen(DoctorScreen(self.store_root))

    def action_keys_help(self) -> None:
        """The keys of this screen; an action that is chosen in the list is executed."""
        from console.screens.keys_help import KeysHelp  # not before the first frame

        screen = self.screen
        scope = screen.id or self.current_mode

        def chosen(name: str | None) -> None:
            action = next((action for action in ACTIONS if action.id == name), None)
            if action is not None:
                # after the help is closed and the focus is restored
                self.call_later(self._do, action, self if action.screen == "app" else screen)

        self.push_screen(KeysHelp(scope, getattr(screen.focused, "HELP", None) or "", self.keys), chosen)

    async def _do(self, action: Action, node: App[Any] | Screen[Any]) -> None:
        _, name, words = parse(action.action)
        if node.check_action(name, words):
            await node.run_action(action.action)
        else:
            self.notify(tr("{action}: not available now", action=action.shown_label), severity="warning", markup=False)


def run(runs: Path, workspace: Path | None = None) -> int:
    """Show the console on the run store `runs` until the user leaves it. Returns the exit code.

    Raises RequestError when there is no terminal, or `runs` is not a folder.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) and "TEXTUAL_DRIVER" not in os.environ:
        raise RequestError("the console needs a terminal; from a script use qwen3vl runs list")
    store_folder(runs)
    prepare_terminal()
    ask, few = is_unclear(), Console().color_system == "standard"
    while True:
        app = ConsoleApp(runs, workspace, greet=True, few_colours=few, ask_language=ask)
        if (code := app.run()) != AGAIN:
            return code or EXIT_DONE
        # every text is another one: the screens are made anew, on the store that was shown
        runs, workspace, ask = app.store_root, app.workspace_folder, False
