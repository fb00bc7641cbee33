"""The console in Chinese, driven by key at 80x24 and 60x18: nothing of the catalogue's places is English, nothing is cut."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from console.app import AGAIN, ConsoleApp
from qwen3vl_core import language
from qwen3vl_core.layout.doctor import check_space
from tests.console.app.driving import SMALL, driven, looked, press, text_of, until
from tests.console.app.test_snapshots import fill

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


ENGLISH = re.compile(r"[a-z]{2,}(?:[ ,;:]+[a-z]{2,}){2,}")
"""Three words in a row."""
RECORDED = (
    "step .*", r"torch\.OutOfMemoryError.*", r"\$ qwen3vl.*", r"a (woman|picture).*", "Describe this image.", "verified: 750 tensors.*",
    "download +prepare +convert +finetune +compare", r"--[a-z-]+ .*", "words status:running.*",
)  # fmt: skip
"""What stays English: logs, commands, captions, names of commands."""


def clean(app, name: str) -> str:
    """The screen's text; without English sentences, no line wider than the terminal."""
    text = text_of(app)
    for line in text.splitlines():
        assert cell_len(line) <= app.size.width, f"{name}: {line}"
        rest = re.sub("|".join(RECORDED), "", line)
        assert not ENGLISH.search(rest), f"{name}: {line.strip()}"
    return text


@pytest.mark.parametrize("size", [SMALL, TINY], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_screens_are_chinese_and_fit(store, chinese, size, monkeypatch, tmp_path):
    fill(store)
    checks = [check_space("disk", tmp_path, 0, 1 << 60, "free some, or choose another disk: export QWEN3VL_RUNS=DIR")]
    monkeypatch.setattr("console.screens.doctor.examine", lambda runs: checks)

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 4)
        await press(pilot, "down")
        first, *_, last = clean(app, "runs").splitlines()
        assert "1 运行" in first and "4 对比" in first and "q 退出" in last and "? 按键" in last
        assert "失败，退出码 1" in text_of(app) and "显存不足" in text_of(app)
        await press(pilot, "question_mark")
        assert "启动一个运行" in clean(app, "help") and "当前窗格" in text_of(app)
        await press(pilot, "escape", "0")
        assert "试试演示" in clean(app, "first page") and "粘贴配方参数" in text_of(app)
        await press(pilot, "h")
        assert "建议 1073741824" in clean(app, "doctor") and "腾出空间" in text_of(app)
        await press(pilot, "escape", "escape")
        app.watch_run("0003-broken")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.view.diagnosis is not None)
        await looked(pilot)
        assert "激活重计算" in clean(app, "failed") and "以此新建运行" in text_of(app)
        await press(pilot, "R")
        assert "恢复 0003-broken？" in clean(app, "resume") and "y  恢复" in text_of(app)
        await press(pilot, "escape")
        app.watch_run("0004-beach")
        await until(pilot, lambda: app.screen.view is not None and app.screen.view.stories)
        await looked(pilot)
        assert "学习率" in clean(app, "monitor") and "跟随中" in text_of(app)
        await press(pilot, "x")
        assert "停止 0004-beach？" in clean(app, "stop")
        await press(pilot, "escape", "2")
        await until(pilot, lambda: app.screen.form is not None and app.screen.plan is not None and app.screen.checked is not None)
        app.screen.form.fill({"size": "8B", "load": "/nothing", "tp": 3, "nproc": 4})
        app.screen.form.focus_option("tp")
        await until(pilot, lambda: "没有这个目录" in text_of(app))
        assert "tp 张量并行" in clean(app, "launch") and "张量并行大小" in text_of(app)
        app.action_show_screen("compare")  # letters and figures go into the field
        await looked(pilot)
        assert "base 基座模型" in clean(app, "compare") and "必填" in text_of(app)

    driven(scene, store.app(), size)
