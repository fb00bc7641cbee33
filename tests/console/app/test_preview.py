"""The run under the cursor beside the list of runs, or below it: curve, options, cause and fix, last lines."""

from __future__ import annotations

import pytest

from console.widgets.run_list import RunList
from tests.console.app.driving import LARGE, SMALL, driven, looked, press, text_of, until
from tests.console.app.test_failed_card import out_of_memory

TINY = (60, 18)


@pytest.mark.parametrize("size, theme", [(TINY, "textual-dark"), (SMALL, "textual-light"), (LARGE, "textual-dark")])
def test_the_preview_follows_the_cursor_by_key_and_by_mouse(store, size, theme):
    store.ended(store.finetune("calm", 60, lr=3e-5, distributed_optimizer=True))
    out_of_memory(store)

    def previewed(app) -> str:
        found = app.screen.query("#preview")
        return found.first().shown.run_id if found and found.first().display and found.first().shown is not None else ""

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 2)
        await looked(pilot)
        if size != LARGE:
            assert not app.screen.query("#preview"), "a small terminal keeps its room for the table"
            await press(pilot, "p")
        await until(pilot, lambda: previewed(app) == "0002-big")
        shown = text_of(app)
        assert "out of GPU memory" in shown and "fix  --micro-batch-size 16 → " in shown and "GiB" in shown
        await press(pilot, "down")
        await until(pilot, lambda: previewed(app) == "0001-calm")
        shown = text_of(app)
        assert any("\u2800" < char <= "\u28ff" for char in shown) and "┤" in shown, "its curve"
        if size == LARGE:
            assert "--lr                     3e-05" in shown and "--distributed-optimizer  on" in shown
            assert "step 60/100 loss" in shown and "0002-big" in shown, "the table beside it"
        await pilot.click(RunList, offset=(8, 1))
        await until(pilot, lambda: previewed(app) == "0002-big")
        await press(pilot, "p")
        assert not app.screen.query_one("#preview").display and app.focused.id == "table"

    driven(scene, store.app(), size, theme)
