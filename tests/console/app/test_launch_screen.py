"""Screen 2: from a form to a run."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from PIL import Image
from textual.widgets import Tabs

from console.forms import FormCheck
from console.messages import PlanChecked
from console.runs import launch
from console.widgets.option_form import OptionForm
from qwen3vl_core.errors import WorkError
from qwen3vl_core.problems import Problem
from tests.console.app.driving import LARGE, LOOKS, SMALL, driven, looked, press, said, text_of, until
from tests.data import hub_server


async def at_launch(pilot):
    await press(pilot, "2")
    await until(pilot, lambda: pilot.app.screen.form is not None and pilot.app.screen.plan is not None)
    return pilot.app.screen


async def choose(pilot, kind):
    screen = pilot.app.screen
    screen.query_one(Tabs).active = f"kind-{kind}"
    await until(pilot, lambda: screen.kind == kind and screen.form is not None and screen.plan.kind == kind)


async def prepare_filled_in(pilot, folder):
    """A preparation that breaks no rule."""
    (folder / "captions.json").write_text("[]")
    screen = await at_launch(pilot)
    await choose(pilot, "prepare")
    screen.form.fill({"source": str(folder / "captions.json"), "to": "data"})
    await until(pilot, lambda: "all checks passed" in text_of(pilot.app))


@pytest.mark.parametrize("size, theme", LOOKS)
def test_every_kind_shows_its_form_problems_command_and_help(store, size, theme):
    async def scene(pilot):
        screen = await at_launch(pilot)
        for kind in ("download", "prepare", "convert", "compare", "finetune"):
            await choose(pilot, kind)
            screen.form.focus_first()
            await looked(pilot)
            text = text_of(pilot.app)
            assert "Will it run?" in text and "required" in text and f"$ qwen3vl {kind}" in text
            assert "This option" in text and "✗ " in text
        await press(pilot, "ctrl+g")
        assert "--load: required" in said(pilot.app) and store.store.list() == []

    driven(scene, store.app(), size, theme)


def checked(screen) -> str:
    """The first problem that the checks of disk and machine found."""
    return str(screen.checked.problems[0]) if screen.checked is not None and screen.checked.problems else ""


def wrong(text: str) -> FormCheck:
    return FormCheck((Problem("request", rule={"text": text}),))


def test_the_command_and_problems_follow_every_key(store, tmp_path):
    async def scene(pilot):
        screen = await at_launch(pilot)
        screen.form.fill({"load": str(tmp_path), "train_data": str(tmp_path)})
        await until(pilot, lambda: checked(screen))
        assert "no config.json in it" in checked(screen) and "✗" in text_of(pilot.app)
        screen.form.query_one("#o-lr").focus()
        await press(pilot, "end", "0", "0", "g", "y")
        assert screen.plan.problem == "--lr 1e-0500gy: must be a number"
        await press(pilot, "backspace", "backspace")
        assert screen.plan.problem == "" or "--lr" in screen.plan.problem or "--min-lr" in screen.plan.problem
        screen.form.fill({"lr": 3e-5})
        await looked(pilot)
        assert "--lr 3e-05" in screen.plan.command
        await press(pilot, "escape", "y")
        assert pilot.app.clipboard == screen.plan.command
        await press(pilot, "r")
        assert "--lr" not in screen.plan.command
        await press(pilot, "u")
        assert "--lr 3e-05" in screen.plan.command, "and it is taken back"

    driven(scene, store.app(), LARGE)


@pytest.mark.parametrize("size", [(60, 18), SMALL, LARGE])
def test_another_kind_shows_nothing_of_the_form_before(store, tmp_path, size):
    async def scene(pilot):
        screen = await at_launch(pilot)
        screen.form.fill({"load": str(tmp_path), "train_data": str(tmp_path)})
        screen.form.query_one("#o-load").focus()
        await until(pilot, lambda: checked(screen))
        screen._set_form("convert", None, focus=False)
        panels = {name: str(screen.query_one(f"#{name}").render()) for name in ("check", "command", "explained")}
        assert not any(panels.values()), "from the moment on that the kind is chosen"
        assert not screen.query_one("#glance").display and not screen.query_one("#memory").display
        await looked(pilot)
        text = text_of(pilot.app)
        assert "finetune --load" not in text and "--load" not in str(screen.query_one("#explained").render())
        assert screen.checked is None or not screen.checked.verdict

    driven(scene, store.app(), size)


def test_what_is_not_checked_yet_is_no_green_tick_and_starts_when_it_is(store, tmp_path, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def slow(kind, options, store):
        begun.set()
        assert go.wait(60)
        return FormCheck(note="seen")

    async def scene(pilot):
        await prepare_filled_in(pilot, tmp_path)
        screen = pilot.app.screen
        check = screen.query_one("#check")
        assert "✓ all checks passed" in str(check.render()) and "starts it" in check.border_subtitle
        monkeypatch.setattr("console.screens.launch.look_here", slow)
        screen.form.fill({"to": "other"})
        await pilot.pause()
        assert "✓" not in str(check.render()) and "… checking" in str(check.render()) and not check.border_subtitle
        screen.action_start()
        assert await asyncio.to_thread(begun.wait, 60)
        assert store.store.list() == [] and "starts when" in said(pilot.app)
        go.set()
        await until(pilot, lambda: "Start this prepare?" in text_of(pilot.app))

    driven(scene, store.app(), LARGE)


def test_input_is_kept_while_other_kinds_are_shown(store):
    async def scene(pilot):
        screen = await at_launch(pilot)
        screen.form.fill({"load": "mine", "precision": "fp16", "sequence_parallel": True})
        await press(pilot, "escape", "k")
        await until(pilot, lambda: screen.kind == "compare" and screen.form is not None)
        await choose(pilot, "finetune")
        texts = screen.form.texts()
        assert (texts["load"], texts["precision"], texts["sequence_parallel"]) == ("mine", "fp16", True)
        assert "--precision fp16" in screen.plan.command

    driven(scene, store.app())


def test_a_workspace_fills_the_forms(store, tmp_path):
    paths = {"base": "/w/base", "train_json": "/w/train.json", "data": "/w/data", "base_mcore": "/w/mcore"}
    values = paths | {"finetune": {"lr": 0.001, "min_lr": 0}}
    (tmp_path / "workspace.json").write_text(json.dumps(values))

    async def scene(pilot):
        screen = await at_launch(pilot)
        assert "--load /w/mcore --train-data /w/data" in screen.plan.command and "--lr 0.001" in screen.plan.command
        await choose(pilot, "convert")
        assert screen.plan.command == "qwen3vl convert /w/base /w/mcore"

    driven(scene, store.app(tmp_path))


def test_a_prepare_run_is_started_and_shown(store, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    records = []
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 90, 30)).save(pictures / f"{i}.png")
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A colour."}]
        records.append({"id": str(i), "image": f"pictures/{i}.png", "conversations": talk})
    (tmp_path / "captions.json").write_text(json.dumps(records))

    async def scene(pilot):
        screen = await at_launch(pilot)
        await choose(pilot, "prepare")
        screen.form.fill({"source": str(tmp_path / "captions.json"), "to": str(tmp_path / "data"), "split": "1,1,0"})
        await until(pilot, lambda: "all checks passed" in text_of(pilot.app))
        await press(pilot, "ctrl+g")
        assert "Start this prepare?" in text_of(pilot.app) and "captions.json" in text_of(pilot.app) and store.store.list() == []
        await press(pilot, "escape", "ctrl+g", "y")
        await until(pilot, lambda: pilot.app.current_mode == "monitor")
        run = store.store.get(1)
        await until(pilot, lambda: not run.alive, "the run's end")
        assert run.status == "done", run.log.read_text()
        assert (tmp_path / "data" / ".nv-meta").is_dir()
        await until(pilot, lambda: "✓ done" in text_of(pilot.app))
        assert "0001-prepare" in text_of(pilot.app) and "output.log" in text_of(pilot.app)

    driven(scene, store.app())


def test_a_download_is_started_from_its_form_and_shown(store, tmp_path, monkeypatch):
    with hub_server.serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)

        async def scene(pilot):
            screen = await at_launch(pilot)
            await choose(pilot, "download")
            screen.form.fill({"kind": "model", "name": "owner/thing", "to": str(tmp_path / "got"), "from_": "huggingface"})
            await until(pilot, lambda: "all checks passed" in text_of(pilot.app))
            await press(pilot, "ctrl+g", "enter")
            await until(pilot, lambda: pilot.app.current_mode == "monitor")
            await until(pilot, lambda: "2 files, 24.6 MB" in text_of(pilot.app) and "✓ done" in text_of(pilot.app))

        driven(scene, store.app(), LARGE)
    for name, content in hub_server.FILES.items():
        assert (tmp_path / "got" / name).read_bytes() == content


def test_a_run_that_cannot_start_is_a_one_line_error(store, tmp_path, monkeypatch):
    def broken(run):
        raise WorkError(f"run {run.id}: no room")

    monkeypatch.setattr(launch, "start", broken)

    async def scene(pilot):
        await prepare_filled_in(pilot, tmp_path)
        await press(pilot, "escape", "g", "y")
        await until(pilot, lambda: "no room" in said(pilot.app))
        assert pilot.app.current_mode == "launch"

    driven(scene, store.app())


def test_a_key_pressed_twice_starts_one_run(store, tmp_path, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def slow(run):
        begun.set()
        assert go.wait(300)

    monkeypatch.setattr(launch, "start", slow)

    async def scene(pilot):
        await prepare_filled_in(pilot, tmp_path)
        await pilot.press("ctrl+g", "ctrl+g")
        await pilot.pause()
        assert not begun.is_set(), "pressed twice it only asks"
        await pilot.press("y")
        assert await asyncio.to_thread(begun.wait, 150)
        await pilot.press("ctrl+g", "y")
        go.set()
        await until(pilot, lambda: pilot.app.current_mode == "monitor")
        assert [run.id for run in store.store.list()] == ["0001-prepare"]

    driven(scene, store.app())


def test_a_late_result_for_an_older_form_is_dropped(store, tmp_path, monkeypatch):
    # on a busy machine the form that the screen begins with, a finetune's, is looked at too
    monkeypatch.setattr("console.screens.launch.look_here", lambda kind, options, _: wrong(f"{getattr(options, 'source', kind)} is wrong"))

    async def scene(pilot):
        screen = await at_launch(pilot)
        await choose(pilot, "convert")
        screen.form.fill({"source": "old", "target": "t"})
        await until(pilot, lambda: checked(screen) == "old is wrong")
        screen.form.fill({"source": "new"})
        assert screen.query_one(OptionForm) is screen.form
        await until(pilot, lambda: checked(screen) == "new is wrong")
        screen.post_message(PlanChecked(screen.revision - 1, wrong("stale")))
        await looked(pilot)
        assert checked(screen) == "new is wrong"

    driven(scene, store.app())


def test_switches_and_choices_work_by_key(store):
    async def scene(pilot):
        screen = await at_launch(pilot)
        screen.form.fill({"load": "base", "train_data": "data"})
        screen.form.query_one("#o-sequence_parallel").focus()
        await press(pilot, "enter")
        assert "--sequence-parallel" in screen.plan.command and "needs --tp above 1" in screen.plan.problem
        screen.form.query_one("#o-precision").focus()
        await press(pilot, "enter", "down", "enter")
        assert "--precision fp16" in screen.plan.command
        await press(pilot, "down")
        assert screen.form.focused_option.name != "precision"

    driven(scene, store.app(), LARGE)
