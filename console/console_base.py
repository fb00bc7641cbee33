"""What every screen of the console uses: snapshots of the store, the workspace, settings, colours, switching between screens.

`ConsoleApp` adds the screens themselves, so that there is no import cycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import SystemCommand
from textual.css.stylesheet import Stylesheet
from textual.screen import Screen
from textual.signal import Signal

from console.actions import ACTIONS, BY_ID, SCREENS, actions_of, clashes, shown
from console.colours import DARK, LIGHT, first_theme, remember_theme, with_own_colours
from console.formatting import error_text, one_line
from console.messages import GpusSeen, RunStarted, StoreSeen
from console.readers.run_rows import RunRow, Snapshot
from console.run_actions import number_of
from console.store_actions import StoreActions
from console.terminal import edit
from qwen3vl_core.errors import EXIT_DONE, RequestError
from qwen3vl_core.language import filled, phrase, tr
from qwen3vl_core.run_record import QUEUED
from qwen3vl_core.settings_path import settings_file

if TYPE_CHECKING:
    from textual.theme import Theme

    from console.readers.store_watcher import StoreWatcher
    from console.runs.other_stores import StoreFolder
    from qwen3vl_core.layout.gpus import GpuUse

LOOK_SECONDS = 0.5
GPU_SECONDS = 5.0
"""Time between two looks at the GPUs."""
GO_ON_SECONDS = 30.0
"""Time between two looks for queued runs without a supervisor."""
INTERRUPT_SECONDS = 2.0
"""Time between two ctrl+c that leave the console."""


def _has_settings() -> bool:
    """Whether the user has a settings file, readable or not."""
    try:
        settings_file().lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # reading it says why it cannot be read
    return True


class _Sheet(Stylesheet):
    """Parses the CSS again only when the colours change: Textual asks for it once at its start, which would delay the first frame."""

    def __init__(self, colours: dict[str, str]) -> None:
        super().__init__(variables=colours)
        self._colours, self._changed = colours, False

    def set_variables(self, variables: dict[str, str]) -> None:
        if variables != self._colours:
            self._colours, self._changed = variables, True
            super().set_variables(variables)

    def reparse(self) -> None:
        if self._changed:
            super().reparse()
            self._changed = False


class ConsoleBase(StoreActions):
    """The console without its screens."""

    def __init__(self, store_root: Path, workspace: Path | None = None, *, greet: bool = False, few_colours: bool = False,
                 ask_language: bool = False) -> None:  # fmt: skip
        """store_root: folder of the runs, which need not exist. workspace: the demo's folder; fills the forms. greet: show the first
        page when the store is empty. few_colours: the terminal has sixteen. ask_language: ask for the language on the first page."""
        self.store_root = Path(store_root).expanduser().absolute()
        self.workspace_folder = Path(workspace).expanduser().absolute() if workspace is not None else None
        self.workspace: dict[str, Any] = {}
        if self.workspace_folder is not None:
            self.workspace = importlib.import_module("console.readers.form_defaults").read_workspace(self.workspace_folder)
        self._watcher: StoreWatcher | None = None
        self.snapshot = Snapshot(seen=False)
        self.other_stores: tuple[StoreFolder, ...] = ()
        """Other stores with runs on this machine, newest first."""
        self.gpus: tuple[GpuUse, ...] = ()
        """The GPUs that a run would get here, and who uses them."""
        self.greet = greet
        self.ask_language = ask_language
        self._few_colours = few_colours
        self.demo_folder: Path | None = None
        """Where the first page creates the demo's workspace; None: where `qwen3vl demo` does."""
        self.keys: dict[str, str] = {}
        """Keys from the user's settings, by action id."""
        self.comparison: str | None = None
        """The compare run that was chosen; None: the newest."""
        self._looking = self._look_again = False
        self._followed: dict[str, bool] = {}
        """Runs that the user has opened or started here, and whether they were alive when last seen."""
        self._interrupted = -INTERRUPT_SECONDS
        """When ctrl+c was pressed, by the monotonic clock."""
        self._asked_to_leave = False
        self._went_on = -GO_ON_SECONDS
        """When queued runs were last let go on, by the monotonic clock."""
        self._colours_of: tuple[Theme, dict[str, str]] | None = None
        """The theme and its colours as computed last."""
        super().__init__()
        self._given_theme = self.theme = first_theme(self.available_themes)
        """The theme that the user has not chosen now."""
        self.stylesheet = _Sheet(self.get_css_variables())
        self.store_seen: Signal[Snapshot] = Signal(self, "store_seen")

    def on_load(self) -> None:
        # from Python 3.12 on Textual starts tasks at once: the fields of the first screen are mounted before it is on the stack of screens,
        # where they look for it
        asyncio.get_running_loop().set_task_factory(None)

    def on_mount(self) -> None:
        # the first frame does not wait for what these import
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self.call_after_refresh(self.look)
        self.call_after_refresh(self.find_stores)
        self.set_interval(LOOK_SECONDS, self.look)
        if _has_settings():
            self.read_settings()
        if shutil.which("nvidia-smi") is not None:
            self.call_after_refresh(self.look_at_gpus)
            self.set_interval(GPU_SECONDS, self.look_at_gpus)

    # GPUs

    def look_at_gpus(self) -> None:
        """Look at the GPUs in a thread; the bar at the top and the first page show them."""

        def work() -> None:
            self.post_message(GpusSeen(tuple(importlib.import_module("qwen3vl_core.layout.gpus").uses())))

        self.run_worker(work, group="gpus", thread=True, exclusive=True, exit_on_error=False)

    @on(GpusSeen)
    def _gpus_seen(self, event: GpusSeen) -> None:
        if event.lines != self.gpus:
            self.gpus = event.lines
            for bar in self.screen.query("TopBar"):
                bar.refresh()

    # settings

    def read_settings(self) -> None:
        """Apply the user's theme and keys; problems in the file are reported and skipped."""
        from console.settings import read_settings  # not needed for the first frame without settings

        settings = read_settings([action.id for action in ACTIONS], list(self.available_themes))
        taken = clashes(settings.keys) if settings.keys else {}
        self.keys = {name: keys for name, keys in settings.keys.items() if name not in taken}
        self.set_keymap(self.keys)
        if settings.theme is not None:
            self._given_theme = self.theme = settings.theme
        for problem in (*settings.problems, *(f"{settings.file}: {line}" for line in taken.values())):
            self.notify(problem, title="Settings", severity="warning", markup=False, timeout=12)

    def action_settings(self) -> None:
        """Open the settings file in the user's editor and read it again afterwards."""
        from console.settings import TEMPLATE

        file = settings_file()
        try:
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                actions = "".join(f"#  {a.id}: {a.key!r}  # {a.shown_tooltip}\n" for a in ACTIONS)
                file.write_text(TEMPLATE.format(themes=", ".join(self.available_themes), actions=actions), encoding="utf-8")
            edit(self, file)
        except (OSError, RequestError) as error:
            self.notify(error_text(error), severity="error", markup=False)
            return
        self.read_settings()

    # the store

    @property
    def watcher(self) -> StoreWatcher:
        """The store's watcher; created when it is first used, after the first frame."""
        if self._watcher is None:
            from console.readers.store_watcher import StoreWatcher

            self._watcher = StoreWatcher(self.store_root)
        return self._watcher

    def look(self) -> None:
        """Look at the store in a worker thread. While a look is in progress, schedule one more after it."""
        if self._looking:
            self._look_again = True
            return
        self._looking, self._look_again = True, False
        root, watcher = self.store_root, self.watcher

        def work() -> None:
            try:
                snapshot = watcher.look()
            except Exception as error:
                # nothing in the store may end the console
                snapshot = Snapshot(error=filled("{}: cannot be read ({}: {})", root, type(error).__name__, error))
            self.post_message(StoreSeen(root, snapshot))

        self.run_worker(work, group="look", thread=True, exclusive=True, exit_on_error=False)

    @on(StoreSeen)
    def _seen(self, event: StoreSeen) -> None:
        self._looking = False
        if event.root != self.store_root:
            self.look()  # another store was opened meanwhile
            return
        self.snapshot = event.snapshot
        self.store_seen.publish(event.snapshot)
        self._tell_of_ends()
        if time.monotonic() - self._went_on > GO_ON_SECONDS and any(row.status == QUEUED for row in event.snapshot.rows):
            self._went_on = time.monotonic()
            self._let_queue_go_on()
        if self.greet and not event.snapshot.rows and not event.snapshot.error and len(self.screen_stack) == 1:
            self.action_start_page()
        self.greet = False
        if self._look_again:
            self.look()

    def _let_queue_go_on(self) -> None:
        """Let queued runs go on for which no supervisor waits, as after a reboot."""
        root = self.store_root

        def work() -> None:
            # a store that cannot be read says so by itself
            with contextlib.suppress(RequestError, OSError):
                importlib.import_module("console.runs.queue").go_on(root)

        self.run_worker(work, group="queue", thread=True, exit_on_error=False)

    def _tell_of_ends(self) -> None:
        """Ring when a run that the user follows has ended."""
        for run_id, was_alive in self._followed.items():
            row = self.snapshot.get(run_id)
            if row is None:
                continue
            self._followed[run_id] = row.alive
            if was_alive and not row.alive and not self.is_headless and self._driver is not None:
                from console import bell

                if bell.is_on():
                    self._driver.write(bell.sequence(f"run {row.id}: {row.status}"))

    @on(RunStarted)
    def _started(self, event: RunStarted) -> None:
        if event.queued:
            self.notify(tr("{run} is queued: {words}", run=event.run_id, words=phrase(event.queued)), markup=False, timeout=10)
        else:
            self.notify(tr("{run} started; it keeps running when the console is closed", run=event.run_id), markup=False)
        self._followed[event.run_id] = True
        self.look()
        if event.kind == "compare":
            self.comparison = event.run_id
        if event.origin == "compare":
            self._screen_of("compare", lambda screen: screen.started())
        else:
            self.watch_run(event.run_id)

    def watch_run(self, run_id: str) -> None:
        """Show a run in the monitor; the Compare screen then shows it too if it is a comparison."""
        row = self.snapshot.get(run_id)
        if row is not None and row.kind == "compare":
            self.comparison = run_id
        self._followed.setdefault(run_id, row is not None and row.alive)
        self.remember_command("runs", "logs", number_of(run_id), "--follow")
        self._screen_of("monitor", lambda screen: screen.open(run_id))

    def show_difference(self, first: RunRow, second: RunRow) -> None:
        """Diff of two runs."""
        from console.screens.dialogs import Difference  # not before the first frame

        self.remember_command("runs", "compare", str(first.run.number), str(second.run.number))
        self.push_screen(Difference(first.run, second.run))

    def show_captions(self, row: RunRow) -> None:
        """The captions of a comparison, or those that a finetune has written."""
        if row.kind == "compare":
            self.comparison = row.id
            self.action_show_screen("compare")
        elif row.kind == "finetune":
            self.watch_run(row.id)
            self._screen_of("monitor", lambda screen: screen.show_captions())
        else:
            self.notify(tr("{run}: a {kind} writes no captions", run=row.id, kind=row.kind), severity="warning", markup=False)

    def clone_run(self, row: RunRow, changes: Mapping[str, Any] | None = None) -> None:
        """Open the form of a new run with the options of another run, some of them changed."""
        if row.kind not in importlib.import_module("console.readers.form_defaults").KINDS:
            words = tr("{run}: a run of this kind cannot be started here, so it cannot be cloned", run=row.id)
            self.notify(words, severity="error", markup=False)
            return
        self._screen_of("launch", lambda screen: screen.open(row.kind, {**row.run.options, **(changes or {})}))

    # screens

    def action_show_screen(self, mode: str) -> None:
        """Show one of the four screens."""
        if mode in self.MODES and (mode != self.current_mode or self.screen.id == "welcome"):
            while len(self.screen_stack) > 1:  # dialogs on the current screen
                self.pop_screen()
            if mode != self.current_mode:
                self.switch_mode(mode)
            self.look()

    def open_form(self, kind: str, values: Mapping[str, Any] | None) -> None:
        """Open the form of a new run with these values; None: with those of the workspace."""
        if values is None:
            values = importlib.import_module("console.readers.form_defaults").prefill(kind, self.workspace, self.workspace_folder)
        initial = values
        self._screen_of("launch", lambda screen: screen.open(kind, initial))

    def open_compare(self, values: Mapping[str, Any]) -> None:
        """Open the form of a new comparison with these values."""
        self._screen_of("compare", lambda screen: screen.open_form(values))

    def act_on(self, mode: str, action: str) -> None:
        """Switch to a screen and do one of its actions."""

        async def do(screen: Screen[Any]) -> None:
            await screen.run_action(action)

        self._screen_of(mode, lambda screen: self.call_later(do, screen))

    def show_option(self, kind: str, name: str) -> None:
        """Show the form of a command with the focus on one of its options."""
        self._screen_of("launch", lambda screen: screen.show_option(kind, name))

    def _screen_of(self, mode: str, then: Callable[[Any], object]) -> None:
        """Switch to a screen and call `then` with it once it is mounted."""
        self.action_show_screen(mode)
        screen = self.screen_stack[0]
        screen.call_later(then, screen)

    # actions that show a screen of their own

    def action_start_page(self) -> None:
        """Show the first page."""
        raise NotImplementedError

    def action_doctor(self) -> None:
        """Check this machine."""
        raise NotImplementedError

    def _theme_changed(self, theme: Theme) -> None:
        if theme.name != self._given_theme:
            self._given_theme = theme.name
            remember_theme(theme.name)

    def action_toggle_theme(self) -> None:
        self.theme = LIGHT if self.current_theme.dark else DARK

    @property
    def edited_forms(self) -> list[Screen[Any]]:
        """Screens with input in a form that is nowhere else."""
        return [screen for stack in self._screen_stacks.values() for screen in stack if getattr(screen, "edited", False)]

    async def action_quit(self) -> None:
        """Leave the console; live runs keep running, which the last line says. Asks if a form would be lost."""
        if self.edited_forms and not self._asked_to_leave:
            self._asked_to_leave = True
            words = tr("What is written in the form is lost. In Launch s saves a plan, y copies the command.")

            def answered(sure: bool | None) -> None:
                self._asked_to_leave = False
                if sure:
                    self._leave()

            from console.screens.dialogs import Confirm  # not before the first frame

            self.push_screen(Confirm(tr("Leave the console?"), words, tr("Leave"), tr("Stay")), answered)
            return
        self._leave()

    def _leave(self) -> None:
        alive = self.snapshot.alive
        words = "1 run keeps running; qwen3vl shows it again" if alive == 1 else "{count} runs keep running; qwen3vl shows them again"
        self.exit(EXIT_DONE, message=tr(words, count=alive) if alive else None)

    def action_help_quit(self) -> None:
        """ctrl+c where nothing is selected: the second one within a moment leaves the console."""
        now = time.monotonic()
        if now - self._interrupted < INTERRUPT_SECONDS:
            self._leave()
        else:
            self._interrupted = now
            self.notify("ctrl+c again leaves the console; runs keep running", severity="warning", timeout=INTERRUPT_SECONDS)

    def action_suspend_process(self) -> None:
        """Back to the shell, until `fg`."""
        if self._driver is None or not self._driver.can_suspend:
            self.notify("this terminal has no shell to go back to", severity="warning")
        else:
            super().action_suspend_process()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: the actions of the screen, then those of all screens."""
        if self.subcommand:
            yield SystemCommand(f"$ {one_line(self.subcommand, 120)}", tr("Copy the subcommand that is equivalent to the last action"),
                                self.action_subcommand)  # fmt: skip
        for scope in ("welcome" if screen.id == "welcome" else self.current_mode, "app"):
            distinct = {action.action: action for action in reversed(actions_of(scope))}
            for action in reversed(distinct.values()):
                if action.id == "app.palette" or action.action == "leave":
                    continue
                node = self if scope == "app" else screen
                label = action.shown_label
                title = f"{tr(SCREENS[scope])}: {label}" if scope in SCREENS else label.capitalize()
                yield SystemCommand(title, f"{action.shown_tooltip} ({self.key_of(action.id)})", partial(node.run_action, action.action))

    def get_css_variables(self) -> dict[str, str]:
        """The theme's colours and the console's own."""
        theme = self.current_theme
        if self._colours_of is not None and self._colours_of[0] is theme:  # called three times before the first frame
            return dict(self._colours_of[1])
        variables = self.theme_variables = with_own_colours(theme, super().get_css_variables(), self._few_colours)
        self._colours_of = theme, dict(variables)
        return variables

    def notify(self, message: str, *, title: str = "", **how: Any) -> None:
        """Show a message, in the user's language where the catalogue has it."""
        super().notify(phrase(message), title=tr(title), **how)

    def key_of(self, action: str) -> str:
        """The key of an action as it is shown, taking the user's settings into account."""
        if action in self.keys:
            return shown(self.keys[action])
        return BY_ID[action].keys

    def pressed(self, action: str) -> str:
        """Textual's name of the first key of an action."""
        return (self.keys.get(action) or BY_ID[action].key).split(",")[0]

    def colour(self, name: str) -> str:
        """The colour of a theme variable, in Rich's syntax."""
        return self.theme_variables[name]
