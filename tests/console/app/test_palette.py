"""The palette finds runs, options, actions of every screen, and words of the help."""

from __future__ import annotations

import pytest
from textual.command import CommandPalette
from textual.widgets import OptionList

from tests.console.app.driving import LARGE, SMALL, driven, looked, press, text_of, until

TINY = (60, 18)


async def typed(pilot, words: str, expected: str) -> None:
    """Open the palette, type, and wait until its first hit holds a text."""
    app = pilot.app
    await press(pilot, "ctrl+p", *words)
    await until(pilot, lambda: isinstance(app.screen, CommandPalette) and app.screen.query(OptionList) and _first(app).find(expected) >= 0)


def _first(app) -> str:
    options = app.screen.query_one(OptionList).options
    return str(getattr(options[0], "prompt", "")) if options else ""


@pytest.mark.parametrize("size, theme", [(TINY, "textual-dark"), (SMALL, "textual-light"), (LARGE, "textual-dark")])
def test_the_palette_opens_a_run_an_option_and_another_screens_action(store, size, theme):
    for name in ("beach", "meadow"):
        store.ended(store.finetune(name, 20))

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 2)
        await typed(pilot, "0001-b", "0001-beach")
        assert "0001-beach" in text_of(app)
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.run_id == "0001-beach")
        await press(pilot, "1")
        await typed(pilot, "lr-warmup", "finetune --lr-warmup-iters")
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "launch" and app.focused is not None and app.focused.id == "o-lr_warmup_iters")
        app.action_show_screen("runs")
        await looked(pilot)
        await typed(pilot, "logarithmic", "Monitor: log-y")
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.query_one("Curve").log_wanted is not None)

    driven(scene, store.app(), size, theme)
