"""The run store that the console shows: named in the header, others are offered, one can switch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from console.app import ConsoleApp
from console.formatting import short_path
from console.messages import StoreSeen
from console.runs.other_stores import find_stores, workspace_of
from console.widgets.bars import TopBar
from qwen3vl_core.cli import main
from tests.console.app.driving import LARGE, LOOKS, SMALL, Store, driven, looked, press, said, text_of, until

TINY = (60, 18)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder in which the demo has left two runs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QWEN3VL_RUNS", raising=False)
    demo = Store(tmp_path / ".qwen3vl" / "demo" / "runs")
    for name in ("first", "second"):
        demo.ended(demo.finetune(name, 5))
    (tmp_path / ".qwen3vl" / "demo" / "workspace.json").write_text(json.dumps({"base": "/demo/base"}))
    return tmp_path


def test_other_stores_are_those_with_runs_newest_first(home, store, monkeypatch):
    default = Store(home / ".qwen3vl" / "runs")
    assert [one.path for one in find_stores(store.root)] == [home / ".qwen3vl/demo/runs"]
    default.ended(default.finetune("mine", 5))
    found = find_stores(store.root, [home / "nowhere", default.root])
    assert {(one.path, one.runs) for one in found} == {(default.root, 1), (home / ".qwen3vl/demo/runs", 2)}
    assert found == sorted(found, key=lambda one: -one.newest)
    assert default.root not in [one.path for one in find_stores(default.root)], "the one that is shown is no other"
    monkeypatch.setenv("QWEN3VL_RUNS", str(home / "elsewhere"))
    assert len(find_stores(store.root)) == 2
    assert workspace_of(home / ".qwen3vl/demo/runs") == home / ".qwen3vl/demo" and workspace_of(default.root) is None


def test_a_path_keeps_its_end(home):
    assert short_path(home / ".qwen3vl/demo/runs", 40) == "~/.qwen3vl/demo/runs"
    assert short_path(home / ".qwen3vl/demo/runs", 14) == "…/demo/runs"
    assert short_path("/data/" + "x" * 80, 10) == "…" + "x" * 9 and short_path("/data/runs\n", 40) == "/data/runs"
    assert all(len(short_path("/a/b/c/d/efgh", width)) <= width for width in range(1, 20))


@pytest.mark.parametrize("size, theme", [(TINY, "textual-dark"), *LOOKS])
def test_the_header_names_the_store_and_an_empty_one_offers_the_demos(home, size, theme):
    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: "opens other runs" in text_of(app))
        text = text_of(app)
        assert "No run yet" in text and "~/.qwen3vl/demo/runs  2 runs" in text
        assert "~/mine/runs" in text.splitlines()[0]
        await press(pilot, "O")
        assert "shown now: ~/mine/runs" in text_of(app) and "2 runs, " in text_of(app)
        assert "escape" not in text_of(app) and "esc leaves" in text_of(app)
        await press(pilot, "enter")
        await until(pilot, lambda: len(app.screen.rows) == 2)
        app.clear_notifications()
        await looked(pilot)
        assert "0001-first" in text_of(app) and "demo/runs" in text_of(app).splitlines()[0]
        assert app.workspace == {"base": "/demo/base"} and app.subcommand.startswith("qwen3vl console --runs ")

    driven(scene, ConsoleApp(home / "mine" / "runs"), size, theme)


def test_the_first_page_offers_them_too(home):
    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: "Open other runs" in text_of(app))
        assert "~/.qwen3vl/demo/runs 2 runs" in text_of(app)
        line = next(y for y, text in enumerate(text_of(app).splitlines()) if "Open other runs" in text)
        await pilot.click(offset=(20, line))
        await until(pilot, lambda: "shown now" in text_of(app))
        await press(pilot, "escape", "escape")
        assert app.store_root == home / "mine" / "runs"

    driven(scene, ConsoleApp(home / "mine" / "runs", greet=True), SMALL)


def test_a_click_on_the_stores_name_chooses_another_by_its_path(home, store):
    store.ended(store.finetune("here", 5))

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: app.snapshot.rows)
        await pilot.click(TopBar, offset=(text_of(app).splitlines()[0].index("/runs"), 0))
        await looked(pilot)
        assert "Run stores" in text_of(app)
        (home / "file").write_text("")
        await press(pilot, "tab", *str(home / "file"), "enter")
        assert "is a file; choose a folder" in text_of(app)
        field = app.screen.query_one("#folder")
        field.value = str(home / ".qwen3vl/demo/runs")
        await press(pilot, "enter")
        await until(pilot, lambda: len(app.screen.rows) == 2)
        await until(pilot, lambda: [one.path for one in app.other_stores] == [store.root])
        assert said(app).count("runs of ") == 1

    driven(scene, store.app(), LARGE)


def test_a_late_look_at_the_store_before_is_not_shown(home, store):
    store.ended(store.finetune("here", 5))

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: app.snapshot.rows)
        late = StoreSeen(store.root, app.snapshot)
        app.open_store(home / ".qwen3vl/demo/runs")
        app.post_message(late)
        await until(pilot, lambda: len(app.snapshot.rows) == 2)
        assert {Path(row.run.path).parent for row in app.snapshot.rows} == {home / ".qwen3vl/demo/runs"}

    driven(scene, store.app(), SMALL)


def test_the_command_line_names_the_other_store_where_one_is_empty(home, capsys):
    where = str(home / "mine" / "runs")
    assert main(["runs", "show", "99", "--runs", where]) == 2
    assert "qwen3vl finetune starts one; ~/.qwen3vl/demo/runs has 2 (--runs ~/.qwen3vl/demo/runs)" in capsys.readouterr().err
    assert main(["runs", "--runs", where]) == 0
    assert "~/.qwen3vl/demo/runs has 2" in capsys.readouterr().out
