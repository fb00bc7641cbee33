"""The console as a whole."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from console import app as console_app
from console.app import ConsoleApp
from console.terminal import prepare_terminal
from console.widgets.bars import KeyBar, TopBar
from qwen3vl_core.errors import RequestError
from tests.console.app.driving import LARGE, SLEEPER, SMALL, driven, looked, press, said, text_of, until


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_keys_1_to_4_show_the_screens_and_the_bars_show_the_current_one(store, size):
    store.ended(store.finetune("one"))

    async def scene(pilot):
        app = pilot.app
        if size == LARGE:
            await press(pilot, "T")
        for key, title in (("2", "Launch"), ("3", "Monitor"), ("4", "Compare"), ("1", "Runs")):
            app.screen.set_focus(None)
            await press(pilot, key)
            await looked(pilot)
            assert app.current_mode == title.lower()
            top, *_, bottom = text_of(app).splitlines()
            assert f"{key} {title}" in top and "○ 0 live" in top
            in_a_form = title in ("Launch", "Compare")
            assert ("esc leave field" if in_a_form else "q quit") in bottom and len(bottom) == size[0]

    driven(scene, store.app(), size)


def test_screens_and_keys_can_be_clicked(store):
    async def scene(pilot):
        app = pilot.app
        await pilot.click(TopBar, offset=(14, 0))
        await looked(pilot)
        assert app.current_mode == "launch"
        await pilot.click(TopBar, offset=(3, 0))
        await looked(pilot)
        at = text_of(app).splitlines()[-1].index("? keys")
        await pilot.click(KeyBar, offset=(at, 0))
        await until(pilot, lambda: "Watch the run under the cursor" in text_of(app))

    driven(scene, store.app())


def test_toggling_the_theme_repaints_everything(store):
    store.ended(store.finetune("one"))

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "3")
        await looked(pilot)

        def ground():
            return {s.style.bgcolor.name for strip in app.screen._compositor.render_strips() for s in strip if s.style and s.style.bgcolor}

        dark = ground()
        await press(pilot, "T")
        await looked(pilot)
        assert app.theme == "textual-light" and not dark & ground()
        await press(pilot, "T")
        assert app.theme == "textual-dark"

    driven(scene, store.app())


def test_quitting_says_how_many_runs_continue(store):
    run = store.finetune("live", 5, 100, SLEEPER)

    async def scene(pilot):
        await pilot.press("ctrl+q")
        assert pilot.app._exit_renderables == ["1 run keeps running; qwen3vl shows it again"]

    app = driven(scene, store.app())
    assert app.return_value == 0 and run.alive


def test_quitting_from_a_field_without_live_runs_prints_nothing(store):
    async def scene(pilot):
        await press(pilot, "2")
        await press(pilot, "a", "ctrl+q")
        assert "Leave the console?" in text_of(pilot.app) and not pilot.app._exit
        await pilot.press("ctrl+q")
        assert pilot.app._exit and not pilot.app._exit_renderables

    driven(scene, store.app())


def test_an_unreadable_store_is_reported_without_a_crash(tmp_path):
    (tmp_path / "file").write_text("")

    async def scene(pilot):
        assert "is a file" in " ".join(text_of(pilot.app).split())

    driven(scene, ConsoleApp(tmp_path / "file"))


def test_a_repeated_error_is_shown_once(store, monkeypatch):
    run = store.ended(store.finetune("one"))
    monkeypatch.setattr("console.readers.monitor.MonitorFeed.read", lambda *a: 1 / 0)

    async def scene(pilot):
        await press(pilot, "3")
        for _ in range(4):
            await looked(pilot)
        assert said(pilot.app).count("ZeroDivisionError") == 1 and run.id in said(pilot.app)

    driven(scene, store.app())


def test_letter_keys_act_only_outside_of_fields(store):
    async def scene(pilot):
        app = pilot.app
        await press(pilot, "slash", *"1T?/x")
        assert app.current_mode == "runs" and app.screen.query_one("#filter").value == "1T?/x" and app.theme == "textual-dark"
        bottom = text_of(app).splitlines()[-1]
        assert "stop" not in bottom and "? keys" not in bottom and " q quit" not in bottom and "ctrl+q quit" in bottom

    driven(scene, store.app())


def test_changing_the_screen_closes_a_dialog(store):
    store.finetune("live", 5, 100, SLEEPER)

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "x")
        app.action_show_screen("launch")
        await looked(pilot)
        app.screen.set_focus(None)
        await press(pilot, "1")
        assert "Stop 0001" not in text_of(app) and len(app.screen_stack) == 1

    driven(scene, store.app())


def test_the_console_refuses_to_start_without_a_terminal(tmp_path, monkeypatch):
    monkeypatch.delenv("TEXTUAL_DRIVER", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(RequestError, match="needs a terminal"):
        console_app.run(tmp_path)


def test_jupyterlab_gets_full_colours(monkeypatch):
    for name in ("COLORTERM", "JUPYTER_SERVER_URL", "QWEN3VL_TRUECOLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("JUPYTER_SERVER_ROOT", raising=False)
    prepare_terminal()
    assert "COLORTERM" not in os.environ
    monkeypatch.setenv("JUPYTER_SERVER_ROOT", "/")
    monkeypatch.setenv("QWEN3VL_TRUECOLOR", "0")
    prepare_terminal()
    assert "COLORTERM" not in os.environ
    monkeypatch.delenv("QWEN3VL_TRUECOLOR")
    monkeypatch.setenv("COLORTERM", "")
    prepare_terminal()
    assert os.environ["COLORTERM"] == "truecolor"


def test_the_first_frame_imports_nothing_heavy():
    code = "import console.app, sys; print([m for m in ('torch', 'transformers', 'megatron', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=True)
    assert done.stdout.strip() == "[]"
