"""What an action of the registry changes: a case for each, tried by each of its keys and by mouse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textual.widgets import OptionList

from console.actions import Action, actions_of
from console.screens.keys_help import KeysHelp
from console.widgets.bars import KeyBar
from tests.console.app.driving import looked, text_of, until

TALL = (112, 76)
"""A terminal in which the longest help has room."""


@dataclass(frozen=True)
class Case:
    """What an action changes, how to prepare it, and how to restore the state."""

    seen: Callable[[Any], Any]
    """Of the app: has another value after the action than before; with `wanted` that one."""
    before: Callable[[Any], Any] | None = None
    after: Callable[[Any], Any] | tuple[str, ...] = ()
    """Keys, or work on the app, that put things back."""
    sure: bool = False
    """Whether it asks first: then yes is said, by key or by mouse as the action was."""
    wanted: Any = None
    on_bar: bool = False
    """Clicked in the key bar: with a field in use `? keys` is typed into it."""


def dialog(app) -> str:
    return type(app.screen).__name__


def opens(name: str, before=None) -> Case:
    """Opens this dialog; closed by escape."""
    return Case(dialog, before, ("escape",), wanted=name)


def shows(mode: str, other: str = "runs") -> Case:
    def leave(app):
        app.action_show_screen(other)

    return Case(lambda app: app.current_mode, leave, leave, wanted=mode)


def copies(what: Callable[[Any], str]) -> Case:
    """Copies exactly this to the clipboard."""
    return Case(lambda app: app.clipboard == what(app), lambda app: app.copy_to_clipboard(""), wanted=True)


def texts(app) -> dict:
    return app.screen.form.texts() if app.screen.form is not None else {}


async def line_clicked(pilot, action: Action) -> None:
    """By mouse only: open the help, then click the action's line."""
    app = pilot.app
    await pilot.click(KeyBar, offset=await on_bar(pilot, "? keys"))
    await until(pilot, lambda: isinstance(app.screen, KeysHelp), f"the help, for {action.id}")
    place = await until(pilot, lambda: line_of(app, action), f"the line of {action.id} in the help")
    await pilot.click(offset=place)


def line_of(app, action: Action) -> tuple[int, int] | None:
    """Position of an action's line in the help, and the option that a click there selects."""
    for y, line in enumerate(text_of(app).splitlines()):
        # the longest lines have no room for the grey name: the list says which line it is
        x = app.size.width // 2
        option = app.screen.get_style_at(x, y).meta.get("option")
        if option is not None and app.screen.query_one(OptionList).options[option].id == action.id and action.tooltip in line:
            return x, y
    return None


async def on_bar(pilot, words: str) -> tuple[int, int]:
    """Position of these words in the key bar."""

    def place() -> tuple[int, int] | None:
        column = text_of(pilot.app).splitlines()[-1].find(words)
        return (column, 0) if column >= 0 else None

    return await until(pilot, place, f"{words!r} in the key bar")


async def bar_clicked(pilot, action: Action) -> None:
    await pilot.click(KeyBar, offset=await on_bar(pilot, f"{action.keys} {action.label}"))


async def work(pilot, does: Callable[[Any], Any] | tuple[str, ...] | None) -> None:
    if callable(does):
        found = does(pilot.app)
        if hasattr(found, "__await__"):
            await found
    elif does:
        await pilot.press(*does)
    if does:
        await looked(pilot)


async def every(pilot, scope: str, cases: dict[str, Case]) -> None:
    app = pilot.app
    assert set(cases) == {action.id for action in actions_of(scope)}, "each action has its case here"
    for action in actions_of(scope):
        expected = cases[action.id]
        for way in (*action.key.split(","), "mouse"):
            await work(pilot, expected.before)
            app.clear_notifications()
            await pilot.pause()
            before = expected.seen(app)
            context = f"{action.id} by {way}"
            assert expected.wanted is None or before != expected.wanted, f"{context}: was so before"
            if way != "mouse":
                await pilot.press(way)
            elif expected.on_bar:
                await bar_clicked(pilot, action)
            else:
                await line_clicked(pilot, action)
            if expected.sure:
                await until(pilot, lambda: app.screen.query("#yes"), context)
                await (pilot.click("#yes") if way == "mouse" else pilot.press("y"))
            await until(pilot, lambda d=expected, b=before: d.seen(app) == d.wanted if d.wanted is not None else d.seen(app) != b, context)
            await work(pilot, expected.after)
