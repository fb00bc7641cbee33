"""The user's own keys and colours."""

from __future__ import annotations

import pytest

from console.actions import ACTIONS, clashes
from console.settings import TEMPLATE, key_names, read_settings
from tests.console.app.driving import LARGE, driven, looked, press, said, text_of

IDS = [action.id for action in ACTIONS]
THEMES = ["textual-dark", "textual-light", "nord"]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "settings.yaml"))
    return tmp_path / "settings.yaml"


def test_without_a_settings_file_the_defaults_apply(file):
    settings = read_settings(IDS, THEMES)
    assert settings.keys == {} and settings.theme is None and settings.problems == ()


def test_keys_may_be_written_in_common_notations(file):
    file.write_text("theme: nord\nkeys:\n  runs.stop: X\n  runs.filter: '?, f5'\n  monitor.log_y: ','\n  runs.sort: 7\n")
    settings = read_settings(IDS, THEMES)
    assert settings.theme == "nord" and settings.problems == ()
    assert settings.keys == {"runs.stop": "X", "runs.filter": "question_mark,f5", "monitor.log_y": "comma", "runs.sort": "7"}
    assert key_names("esc, +") == "escape,plus"


@pytest.mark.parametrize("text, line", [
    ("keys:\n  runs.stpo: X\n", "keys: runs.stpo: no such action; did you mean runs.stop?"),
    ("keys:\n  runs.stop: [a]\n", "keys: runs.stop: must be a key, as in X, ctrl+x or f5"),
    ("keys:\n  runs.stop: zz top\n", "keys: runs.stop: must be a key, as in X, ctrl+x or f5"),
    ("keys:\n  runs.stop: strg+x\n", "keys: runs.stop: must be a key, as in X, ctrl+x or f5"),
    ("theme: nrod\n", "theme: nrod: no such theme; did you mean nord?"),
    ("colour: red\n", "colour: no such setting; choose from theme, keys"),
    ("keys: X\n", "keys: must be a mapping, as in runs.stop: X"),
    ("- 1\n", "must hold theme: and keys:, one per line"),
    ("keys: {a\n", "not YAML"),
])  # fmt: skip
def test_invalid_settings_are_reported_and_ignored(file, text, line):
    file.write_text(text)
    settings = read_settings(IDS, THEMES)
    assert len(settings.problems) == 1 and line in settings.problems[0] and str(file) in settings.problems[0]
    assert settings.keys == {} and settings.theme is None


def test_a_key_conflict_is_reported_unless_the_other_key_changes_too():
    assert clashes({"runs.stop": "R"}) == {"runs.stop": "keys: runs.stop: R is the key of runs.resume; give that one another key too"}
    assert clashes({"runs.stop": "R", "runs.resume": "x"}) == {}
    assert "is the key of app.theme" in clashes({"runs.stop": "T"})["runs.stop"]
    assert clashes({"monitor.stop": "i"}) == {}  # another screen's key


def test_the_console_applies_the_settings_and_shows_the_keys_everywhere(file, store):
    file.write_text("theme: nord\nkeys:\n  app.launch: f8\n  runs.mark: M\n  runs.open: zz top\n  runs.clone: o\n  nonsense.key: x\n")
    store.ended(store.finetune("one"))

    async def scene(pilot):
        app = pilot.app
        app.read_settings()  # the test's own theme came after the first reading
        assert app.theme == "nord"
        app.theme = "textual-dark"
        assert "nonsense.key: no such action" in said(app) and "runs.clone: o is the key of runs.sort" in said(app)
        await press(pilot, "space")
        assert not app.screen.marked
        await press(pilot, "M")
        assert list(app.screen.marked) == ["0001-one"]
        assert "M mark" in text_of(app).splitlines()[-1]
        await press(pilot, "question_mark")
        assert "        M  Mark it for" in text_of(app) and "runs.mark" in text_of(app)
        await press(pilot, "escape")
        marks = [c.help for c in app.get_system_commands(app.screen) if c.title == "Runs: mark"]
        assert marks and marks[0].endswith("(M)")
        await press(pilot, "2")
        assert app.current_mode == "runs"
        await press(pilot, "f8")
        assert app.current_mode == "launch"

    driven(scene, store.app(), LARGE)


def test_comma_opens_the_settings_in_the_editor_and_reloads_them(file, store, tmp_path, monkeypatch):
    store.ended(store.finetune("one"))
    opened = []

    def edit(app, path):
        opened.append(path.read_text())
        path.write_text("theme: nord\nkeys:\n  runs.sort: m\n")

    monkeypatch.setattr("console.console_base.edit", edit)

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "comma")
        assert all(f"#  {action}: " in opened[0] for action in IDS) and "# theme: nord" in opened[0]
        assert app.theme == "nord"
        await press(pilot, "m")
        await looked(pilot)
        assert app.screen.order == "name"

    driven(scene, store.app())
    assert TEMPLATE.startswith("# Settings")
