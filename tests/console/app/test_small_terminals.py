"""Terminals of 60 columns and 18 rows, of few colours, on a light background: nothing that matters is cut or lost."""

from __future__ import annotations

import pytest
from rich.color import Color, ColorSystem

from console import terminal
from console.app import ConsoleApp
from console.colours import LIGHT, first_theme, with_own_colours
from console.screens.checkpoints import PickModels
from console.screens.dialogs import (
    ChangedOptions,
    Confirm,
    ConfirmDelete,
    ConfirmStop,
    Difference,
    PickMetric,
    PickPreset,
    PickRuns,
)
from console.screens.gpus import PickGpus
from console.screens.stores import PickStore
from console.widgets.log_pane import LogPane
from qwen3vl_core.layout.gpus import GpuUse
from qwen3vl_core.options import FinetuneOptions, options_of
from tests.console.app.driving import LARGE, SMALL, driven, looked, press, text_of, until

TINY = (60, 18)


@pytest.mark.parametrize("size, theme", [(TINY, "textual-dark"), (SMALL, "textual-light"), (LARGE, "textual-dark")])
def test_every_dialog_keeps_its_keys_in_view(store, size, theme):
    for number in range(9):
        store.ended(store.finetune(f"run {number}", 10, lr=1e-5 * (number + 1)))
    options = {o.name: o for o in options_of(FinetuneOptions)}

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 9)
        rows = app.screen.rows
        texts = {name: "changed" if isinstance(o.default, str) else o.default for name, o in options.items()}
        dialogs = [
            (Confirm("Start?", "$ qwen3vl finetune " + "--an-option with-a-value " * 40, "Start it"), "Not now"),
            (ConfirmStop(rows[0]), "Keep it running"), (ConfirmDelete(rows), "Keep"),
            (Difference(rows[0].run, rows[1].run), "closes"), (ChangedOptions("finetune", options, texts), "closes"),
            (PickRuns(rows, []), "leaves"), (PickMetric([(f"m{i}", f"metric {i}", 1.0) for i in range(20)], "m1"), "leaves"),
            (PickPreset([(f"preset {i}", "about it " * 12, {}) for i in range(20)], None), "leaves"),
            (PickModels([row.run for row in rows]), "cancels"), (PickStore(store.root, ()), "leaves"),
            (PickGpus([GpuUse(str(i), "NVIDIA H100", 80.0, 0.1) for i in range(16)], ()), "leaves"),
        ]  # fmt: skip
        for dialog, last in dialogs:
            app.push_screen(dialog)
            await looked(pilot)
            assert last in text_of(app), f"{type(dialog).__name__}\n{text_of(app)}"
            assert "╰" in text_of(app), "the whole box is in view"
            app.pop_screen()
            await looked(pilot)

    driven(scene, store.app(), size, theme)


def test_marks_of_a_list_are_seen_without_colours_and_set_by_mouse(store):
    for name in ("one", "two"):
        store.ended(store.finetune(name, 10))

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 2)
        app.push_screen(PickRuns(app.screen.rows, ["0002-two"]))
        await looked(pilot)
        assert "[x] 0002-two" in text_of(app) and "[ ] 0001-one" in text_of(app)
        await press(pilot, "space")
        await pilot.click("MarkList", offset=(2, 1))
        assert "[ ] 0002-two" in text_of(app) and "[x] 0001-one" in text_of(app)

    driven(scene, store.app(), TINY)


@pytest.mark.parametrize("dark", [True, False])
def test_sixteen_colours_keep_red_green_and_the_curves_apart(dark):
    theme = ConsoleApp("/nowhere").get_theme("textual-dark" if dark else LIGHT)
    colours = theme.to_color_system().generate()
    names = ("text-error", "text-success", "text-warning", "text-primary", *(f"line-{i}" for i in range(6)))

    def shown(few: bool, depth: ColorSystem) -> dict[str, int]:
        variables = with_own_colours(theme, colours, few)
        return {name: Color.parse(variables[name]).downgrade(depth).number for name in names}

    few = shown(True, ColorSystem.STANDARD)
    assert few["text-error"] in (1, 9) and few["text-success"] in (2, 10), "red and green"
    assert len({few[f"line-{i}"] for i in range(6)}) == 6 and len({few[name] for name in names[:4]}) == 4
    many = shown(False, ColorSystem.EIGHT_BIT)
    assert len({many[f"line-{i}"] for i in range(6)}) == 6 and len({many[name] for name in names[:4]}) == 4


def test_the_theme_is_remembered_and_else_fits_the_terminals_background(store, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "light_background", True)
    assert store.app().theme == LIGHT
    monkeypatch.setattr(terminal, "light_background", None)
    assert store.app().theme == "textual-dark"

    async def scene(pilot):
        await press(pilot, "T")
        assert pilot.app.theme == LIGHT

    driven(scene, store.app(), TINY)
    assert store.app().theme == LIGHT, "chosen by a key"

    async def palette(pilot):
        await press(pilot, "f10", *"nord", "enter")
        assert pilot.app.theme == "nord"

    driven(palette, store.app(), SMALL)
    assert store.app().theme == "nord" and first_theme(["textual-dark"]) == "textual-dark", "one that is gone is forgotten"


@pytest.mark.parametrize("size, theme", [(TINY, "textual-dark"), (SMALL, "textual-light"), (LARGE, "textual-dark")])
def test_the_filter_field_has_keys_in_the_bar(store, size, theme):
    store.ended(store.finetune("one", 10))

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 1)
        assert "esc" not in text_of(app).splitlines()[-1]
        await press(pilot, "slash")
        bar = text_of(app).splitlines()[-1]
        assert "esc leave filter" in bar and "ctrl+q quit" in bar and "ctrl+p palette" in bar and " q quit" not in bar
        await pilot.click("KeyBar", offset=(bar.index("esc") + 1, 0))
        await looked(pilot)
        assert app.focused.id == "table" and "q quit" in text_of(app).splitlines()[-1]

    driven(scene, store.app(), size, theme)


@pytest.mark.parametrize("size", [TINY, SMALL, LARGE])
def test_long_lines_of_a_log_show_that_they_are_cut_and_wrap_by_a_key(store, size):
    run = store.finetune("wordy", 5)
    run.log.write_text("start\n" + "".join(f"{i:03} " + "word " * 60 + f"end{i:03}\n" for i in range(40)) + "last\n")
    store.ended(run)

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None)
        await looked(pilot)
        pane = app.screen.query_one(LogPane)
        pane.focus()
        await looked(pilot)
        assert "word word" in text_of(app) and "›" in text_of(app) and "end039" not in text_of(app) and "W wraps" in text_of(app)
        await press(pilot, "right")
        assert "‹" in text_of(app)
        await press(pilot, "W")
        shown = text_of(app)
        assert (
            "end039" in "".join(line.strip() for line in shown.splitlines())
            and "last" in shown
            and "‹" not in shown
            and "lines wrap" in shown
        )
        assert pane.rows == pane._starts[-1] > len(pane.lines) == 42
        pane.find("end020")
        await looked(pilot)
        assert "020 word" in text_of(app), "what is found is in view"
        await press(pilot, "W")
        assert "\n 020 word" in text_of(app) and "›" in text_of(app)

    driven(scene, store.app(), size)
