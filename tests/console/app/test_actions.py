"""One registry of actions: every key leads somewhere, none twice, none that a multiplexer or browser takes."""

from __future__ import annotations

import pytest

from console.actions import ACTIONS, SCREENS, actions_of, bindings_of
from console.app import ConsoleApp
from console.screens.compare import CompareScreen
from console.screens.launch import LaunchScreen
from console.screens.monitor import MonitorScreen
from console.screens.runs import RunsScreen
from tests.console.app.driving import LARGE, driven, looked, press, text_of

CLASSES = {"app": ConsoleApp, "runs": RunsScreen, "launch": LaunchScreen, "monitor": MonitorScreen, "compare": CompareScreen}
TAKEN = {f"ctrl+{letter}" for letter in "sjobawntcz"}


def keys(action):
    return action.key.split(",")


def test_ids_are_unique_and_every_action_belongs_to_a_screen():
    assert len({a.id for a in ACTIONS}) == len(ACTIONS)
    assert {a.screen for a in ACTIONS} == {"app", *SCREENS}
    assert all(a.tooltip and a.label and len(a.label.split()) <= 2 for a in ACTIONS)


@pytest.mark.parametrize("screen", CLASSES)
def test_no_key_twice_and_none_that_is_taken(screen):
    both = [key for action in actions_of(screen) for key in keys(action)]
    if screen != "app":
        both += [key for action in actions_of("app") for key in keys(action)]
    assert len(both) == len(set(both))
    assert not TAKEN & set(both)


@pytest.mark.parametrize("screen", CLASSES)
def test_every_action_is_there_and_bound(screen):
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
