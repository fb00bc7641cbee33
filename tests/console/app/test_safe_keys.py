"""Keys that do no harm: changes are undone, leaving and starting are what a user of terminals expects, the key bar tells the truth."""

from __future__ import annotations

import pytest

from console.actions import ACTIONS
from console.widgets.bars import KeyBar
from tests.console.app.driving import LARGE, SLEEPER, SMALL, driven, looked, press, said, text_of, until

TINY = (60, 18)


async def form_of(pilot):
    await press(pilot, "2")
    await until(pilot, lambda: pilot.app.screen.form is not None and pilot.app.screen.plan is not None)
    await press(pilot, "escape")
    return pilot.app.screen


def bar(app) -> str:
    return text_of(app).splitlines()[-1]


def test_one_verb_has_one_key_on_all_screens():
    keys: dict[str, set[str]] = {}
    for action in ACTIONS:
        for verb in ("resume", "clone", "captions", "save", "diff", "export", "undo", "stop", "copy command", "quit"):
            if action.label.removesuffix(" now").removesuffix(" plan") == verb and not action.priority and action.id != "launch.copy":
                keys.setdefault(verb, set()).add(action.key)
    assert keys == {
        "resume": {"R"}, "clone": {"c"}, "captions": {"a"}, "save": {"s"}, "diff": {"d"}, "export": {"e"}, "undo": {"u"}, "stop": {"x"},
        "copy command": {"y"}, "quit": {"q"},
    }  # fmt: skip
    screens = {verb: {a.screen for a in ACTIONS if a.key in found and a.label.startswith(verb)} for verb, found in keys.items()}
    assert screens["clone"] == {"runs", "monitor", "compare"} and screens["diff"] == {"runs", "monitor", "compare", "launch"}
    assert screens["save"] == {"runs", "monitor", "launch"} and screens["resume"] == {"runs", "monitor"}


@pytest.mark.parametrize("size", [TINY, SMALL, LARGE])
def test_a_reset_is_undone_field_by_field(store, size):
    async def scene(pilot):
        screen = await form_of(pilot)
        screen.form.fill({"load": "mine", "lr": 3e-4, "sequence_parallel": True})
        filled = screen.form.texts()
        await press(pilot, "r")
        assert screen.form.texts() == screen.form.begin and "takes it back" in said(pilot.app)
        screen.form.fill({"name": "after"})
        await press(pilot, "u")
        assert screen.form.texts() == filled | {"name": "after"}, "what was typed after it stays"
        await press(pilot, "u")
        assert "nothing to take back" in said(pilot.app) and screen.form.texts() == filled | {"name": "after"}

    driven(scene, store.app(), size)


def test_a_fix_a_preset_and_a_clone_are_undone_the_last_one_first(store):
    run = store.ended(store.finetune("older", 5, lr=7e-5))

    async def scene(pilot):
        app, screen = pilot.app, await form_of(pilot)
        screen.form.fill({"load": "mine", "train_iters": 10, "lr_warmup_iters": 20})
        await until(pilot, lambda: screen.checked is not None)
        first = screen.form.texts()
        await press(pilot, "f")
        second = screen.form.texts()
        assert second != first
        await press(pilot, "p", "down", "enter")
        third = screen.form.texts()
        assert third != second
        app.clone_run(app.snapshot.get(run.id))
        await until(pilot, lambda: screen.form is not None and screen.form.texts()["lr"] == "7e-05")
        await press(pilot, "escape")
        for texts, what in ((third, "the new form"), (second, "the preset"), (first, "the fix")):
            await press(pilot, "u")
            assert screen.form.texts() == texts and f"{what} was taken back" in said(app)

    driven(scene, store.app(), LARGE)


def test_the_options_that_differ_are_shown(store):
    async def scene(pilot):
        screen = await form_of(pilot)
        screen.form.fill({"lr": 3e-4, "sequence_parallel": True})
        await press(pilot, "d")
        text = " ".join(text_of(pilot.app).split())
        assert "--lr 1e-05 → 0.0003" in text and "--sequence-parallel off → on" in text and "--pp 1" not in text
        await press(pilot, "d", "r", "d")
        assert "every option has its default" in text_of(pilot.app)

    driven(scene, store.app(), LARGE)


@pytest.mark.parametrize("size", [TINY, SMALL])
def test_starting_asks_and_the_answers_are_seen(store, tmp_path, monkeypatch, size):
    started = []
    monkeypatch.setattr("console.runs.launch.start", started.append)
    (tmp_path / "captions.json").write_text("[]")

    async def scene(pilot):
        screen = await form_of(pilot)
        screen._set_form("prepare", {"source": str(tmp_path / "captions.json"), "to": str(tmp_path / "data")}, focus=False)
        await until(pilot, lambda: screen.kind == "prepare" and screen.checked is not None and not screen.problems)
        await press(pilot, "g")
        assert "Start this prepare?" in text_of(pilot.app) and "y  Start it" in text_of(pilot.app) and "n  Not now" in text_of(pilot.app)
        await press(pilot, "n")
        assert not started and pilot.app.current_mode == "launch"
        await press(pilot, "g")
        await pilot.click("#no")
        await looked(pilot)
        assert not started
        await press(pilot, "g")
        await pilot.click("#yes")
        await until(pilot, lambda: started)

    driven(scene, store.app(), size)


def test_q_leaves_unless_a_form_would_be_lost(store):
    async def scene(pilot):
        app, screen = pilot.app, await form_of(pilot)
        screen.form.fill({"name": "mine"})
        await press(pilot, "1", "q")
        assert "Leave the console?" in text_of(app) and not app._exit
        await press(pilot, "n")
        assert not app._exit and app.current_mode == "runs"
        await press(pilot, "2", "escape", "s", "q")
        assert app._exit, "it is in a plan file"

    driven(scene, store.app())


def test_q_in_a_field_is_a_letter_and_closes_dialogs(store):
    store.ended(store.finetune("one", 5))

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "slash", "q")
        assert app.screen.query_one("#filter").value == "q" and not app._exit
        await press(pilot, "backspace", "escape", "question_mark", "q")
        assert app.screen is app.screen_stack[0] and not app._exit
        await press(pilot, "q")
        assert app._exit

    driven(scene, store.app())


def test_ctrl_c_twice_leaves_and_once_does_not(store):
    async def scene(pilot):
        app = pilot.app
        await press(pilot, "ctrl+c")
        assert not app._exit and "ctrl+c again leaves the console" in said(app)
        app._interrupted -= 60
        await press(pilot, "ctrl+c")
        assert not app._exit
        await pilot.press("ctrl+c")
        assert app._exit

    driven(scene, store.app())


def test_the_key_bar_shows_only_what_would_do_something(store):
    live = store.finetune("live", 5, 100, SLEEPER)

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: app.screen.chosen_id == live.id)
        await looked(pilot)
        assert "x stop" in bar(app) and "s save now" in bar(app)
        assert not any(words in bar(app) for words in ("R resume", "D delete", "d diff", "o sort"))
        store.ended(store.finetune("broken", 5), "failed", 1)
        await until(pilot, lambda: len(app.screen.rows) == 2)
        await press(pilot, "home")
        assert "R resume" in bar(app) and "D delete" in bar(app) and "o sort" in bar(app) and "x stop" not in bar(app)
        await press(pilot, "space")
        assert "d diff" in bar(app)
        await press(pilot, "escape", "home", "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None)
        await looked(pilot)
        assert "R resume  c clone" in bar(app) and "x stop" not in bar(app) and "a captions" not in bar(app)
        app.watch_run(live.id)
        await until(pilot, lambda: app.screen.view is not None and app.screen.view.run_id == live.id)
        await looked(pilot)
        assert "x stop" in bar(app) and "R resume" not in bar(app) and "s save now" in bar(app)
        screen = await form_of(pilot)
        await until(pilot, lambda: screen.checked is not None)
        await looked(pilot)
        assert "u undo" not in bar(app) and "r reset" not in bar(app) and "ctrl+g start" not in bar(app), "required values are missing"
        screen.form.fill({"lr": 1e-4})
        await looked(pilot)
        assert "r reset" in bar(app)
        await press(pilot, "r")
        assert "u undo" in bar(app) and app.screen.query_one(KeyBar).items()

    driven(scene, store.app(), LARGE)
