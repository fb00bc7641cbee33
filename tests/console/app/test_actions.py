"""The registry of actions: every key does something, none is used twice or reserved by a multiplexer or browser."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from console import runs_command
from console.actions import ACTIONS, SCREENS, actions_of, bindings_of
from console.app import ConsoleApp
from console.formatting import one_line
from console.screens.compare import CompareScreen
from console.screens.launch import LaunchScreen
from console.screens.monitor import MonitorScreen
from console.screens.runs import RunsScreen
from console.screens.welcome import WelcomeScreen
from console.widgets.bars import KeyBar
from tests.console.app.driving import LARGE, driven, looked, press, said, text_of, until

CLASSES: dict[str, Any] = {
    "app": ConsoleApp, "runs": RunsScreen, "launch": LaunchScreen, "monitor": MonitorScreen, "compare": CompareScreen,
    "welcome": WelcomeScreen,
}  # fmt: skip
TAKEN = {f"ctrl+{letter}" for letter in "sjobawntc"}


def keys(action):
    return action.key.split(",")


def test_ids_are_unique_and_every_action_belongs_to_a_screen():
    assert len({a.id for a in ACTIONS}) == len(ACTIONS)
    assert {a.screen for a in ACTIONS} == {"app", "welcome", *SCREENS}
    assert all(a.tooltip and a.label and len(a.label.split()) <= 2 for a in ACTIONS)


@pytest.mark.parametrize("screen", CLASSES)
def test_no_key_is_bound_twice_or_reserved(screen):
    both = [key for action in actions_of(screen) for key in keys(action)]
    if screen != "app":
        both += [key for action in actions_of("app") for key in keys(action)]
    assert len(both) == len(set(both))
    assert not TAKEN & set(both)


@pytest.mark.parametrize("screen", CLASSES)
def test_every_action_is_implemented_and_bound(screen):
    cls = CLASSES[screen]
    for action in actions_of(screen):
        assert callable(getattr(cls, "action_" + action.action.partition("(")[0], None)), action.id
    assert {b.id for b in cls.BINDINGS} == {b.id for b in bindings_of(screen)}


@pytest.mark.parametrize("mode", SCREENS)
def test_help_and_palette_list_what_the_screen_can_do(mode, store):
    async def scene(pilot):
        app = pilot.app
        app.action_show_screen(mode)
        await looked(pilot)
        app.screen.set_focus(None)
        await press(pilot, "question_mark")
        text = text_of(app)
        for action in actions_of(mode):
            assert action.tooltip in text and f" {action.keys} " in text, action.id
        await press(pilot, "escape")
        commands = list(app.get_system_commands(app.screen))
        titles = {command.title for command in commands}
        assert {"Quit", "Theme", "Runs"} <= titles
        both = [a for scope in (mode, "app") for a in actions_of(scope) if a.action != "leave" and a.id != "app.palette"]
        assert len(commands) == len({(a.screen, a.action) for a in both})

    driven(scene, store.app(), LARGE)


def test_the_palette_runs_an_action(store):
    async def scene(pilot):
        app = pilot.app
        command = next(c for c in app.get_system_commands(app.screen) if c.title == "Launch")
        await command.callback()
        await looked(pilot)
        assert app.current_mode == "launch"
        await press(pilot, "ctrl+p")
        assert type(app.screen).__name__ == "CommandPalette"

    driven(scene, store.app())


def recorded(monkeypatch, cls, action, calls):
    """Replace an action by one that only records that it was called."""
    monkeypatch.setattr(cls, f"action_{action.action.partition('(')[0]}", lambda self, *words: calls.append((action.id, words)))


@pytest.mark.parametrize("mode", SCREENS)
def test_every_key_and_click_on_the_key_bar_runs_its_action(mode, store, monkeypatch):
    store.ended(store.finetune("one", 30))
    calls: list[tuple] = []
    # actions are recorded, not run: what each one does is tested elsewhere

    async def scene(pilot):
        app = pilot.app
        app.action_show_screen(mode)
        await until(pilot, lambda: app.current_mode == mode and getattr(app.screen, "form", True) is not None)
        await looked(pilot)
        if mode in ("launch", "compare"):
            app.screen.action_leave()
        if mode == "monitor":
            app.screen.query_one("Curve").focus()
        await looked(pilot)
        for scope in (mode, "app"):
            for action in actions_of(scope):
                if action.action in ("leave", "find_step(1)", "find_step(-1)"):
                    continue
                recorded(monkeypatch, CLASSES[scope], action, calls)
        focused = app.screen.focused if mode != "compare" else None
        for scope in (mode, "app"):
            for action in actions_of(scope):
                if action.action in ("leave", "find_step(1)", "find_step(-1)") or action.id == "compare.start":
                    continue
                for key in keys(action):
                    calls.clear()
                    app.screen.set_focus(focused)
                    await pilot.press(key)
                    assert calls, f"{action.id} by {key}"
        bar = app.screen.query_one(KeyBar)
        text = text_of(app).splitlines()[-1]
        for written, label, _ in bar.items():
            calls.clear()
            if label.startswith("leave"):
                continue
            assert f"{written} {label}" in text, text
            await pilot.click(KeyBar, offset=(text.index(f"{written} {label}") + 1, 0))
            await pilot.pause()
            assert calls, f"{label} by mouse"
            app.screen.set_focus(focused)

    driven(scene, store.app(), (330, 40))


def test_the_key_bar_has_tooltips(store):
    store.ended(store.finetune("one"))

    async def scene(pilot):
        app = pilot.app
        text = text_of(app).splitlines()[-1]
        await pilot.hover(KeyBar, offset=(text.index("c clone"), 0))
        assert app.screen.query_one(KeyBar).tooltip == "A new run with this one's options"
        await pilot.hover(KeyBar, offset=(text.index("D delete"), 0))
        assert "or the marked ones" in str(app.screen.query_one(KeyBar).tooltip)

    driven(scene, store.app(), LARGE)


def test_the_equivalent_command_is_in_the_palette_and_copied_by_a_key(store):
    store.ended(store.finetune("one", 30), "stopped")
    store.ended(store.finetune("two", 30), "failed", 1)
    where = f"--runs {store.root}"

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "Y")
        assert "nothing done yet" in said(app)
        for steps, command in (
            (["o"], "qwen3vl runs list --sort name"),
            (["o", "o", "o", "o", "o"], "qwen3vl runs list"),
            (["slash", "t", "w", "enter"], "qwen3vl runs list --filter tw"),
            (["escape", "escape", "space", "d"], "qwen3vl runs compare 2 1"),
            (["escape", "enter"], "qwen3vl runs logs 1 --follow"),
        ):
            await press(pilot, *steps)
            await looked(pilot)
            assert app.subcommand == f"{command} {where}", steps
            assert next(iter(app.get_system_commands(app.screen))).title == f"$ {one_line(app.subcommand, 120)}"
        await until(pilot, lambda: app.screen.view is not None)
        for steps, command in (
            (["tab"], "qwen3vl runs metrics 1 --metric lr"),
            (["a"], "qwen3vl runs samples 1"),
            (["a", "s"], "qwen3vl runs save 1"),
            (["R", "y"], "qwen3vl runs resume 1"),
        ):
            await press(pilot, *steps)
            assert app.subcommand == f"{command} {where}", steps
        await press(pilot, "Y")
        assert app.clipboard == app.subcommand
        # what is shown can be typed
        words = shlex.split(app.subcommand)
        assert words[:2] == ["qwen3vl", "runs"] and runs_command.parser().parse_args(words[2:]).id == "1"

    driven(scene, store.app(), LARGE)
