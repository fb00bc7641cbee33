"""The console in Chinese, driven by key at 80x24 and 60x18: nothing of the catalogue's places is English, nothing is cut."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from console.app import AGAIN, ConsoleApp
from qwen3vl_core import language
from tests.console.app.driving import SMALL, driven, looked, press, text_of, until

TINY = (60, 18)


@pytest.fixture
def chinese(monkeypatch):
    before = language.language()
    monkeypatch.delenv(language.VARIABLE)
    language.use(language.CHINESE)
    yield
    language.use(before)


def test_the_first_page_asks_once_for_the_language_and_speaks_it(store, monkeypatch, tmp_path):
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "settings.yaml"))
    monkeypatch.delenv(language.VARIABLE)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert language.is_unclear()

    async def scene(pilot):
        await until(pilot, lambda: "界面语言" in text_of(pilot.app))
        await press(pilot, "down")
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app._exit)

    try:
        assert driven(scene, ConsoleApp(store.root, greet=True, ask_language=True), SMALL).return_value == AGAIN
        assert (language.language(), language.wanted(), language.is_unclear()) == ("zh", "zh", False)
    finally:
        language.use("en")


@pytest.mark.parametrize("size", [SMALL, TINY], ids=lambda size: f"{size[0]}x{size[1]}")
def test_bars_and_help_are_chinese(store, chinese, size):
    async def scene(pilot):
        await looked(pilot)
        first, *_, last = text_of(pilot.app).splitlines()
        assert "1 运行" in first and "4 对比" in first and "q 退出" in last and "? 按键" in last
        assert all(cell_len(line) <= size[0] for line in text_of(pilot.app).splitlines())
        await press(pilot, "question_mark")
        assert "启动一个运行" in text_of(pilot.app) and not re.search(r"\b(run|the|keys)\b", text_of(pilot.app))

    driven(scene, store.app(), size)
