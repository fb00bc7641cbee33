"""The first page: the demo, the user's own model, a recipe line, the doctor, and the loop's steps."""

from __future__ import annotations

import json
import shutil

import pytest

from console.app import ConsoleApp
from console.readers.store_watcher import StoreWatcher
from console.readers.workspace import models_nearby, open_model, steps
from console.runs import launch
from console.widgets.option_form import OptionForm
from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout.doctor import Check
from tests.console.app.driving import LARGE, LOOKS, driven, press, said, text_of, until
from tests.shared import DEMO

RECIPE = "sh run_finetune.sh dsw 8B 1 8 1e-5 1e-6 2048 2048 bf16 1 1 1 1 1 false false true none 0 100 data val base 500 10 out"


@pytest.fixture
def workspace(tmp_path):
    """The content of a demo's `workspace.json`, without the pictures."""
    folder = tmp_path / "work"
    folder.mkdir()
    names = {"train_json": "train.json", "data": "data", "base": "base-hf", "base_mcore": "base-mcore", "tuned_hf": "tuned-hf",
             "heldout_images": "held-out", "references": "truth.json"}  # fmt: skip
    values = {name: str(folder / path) for name, path in names.items()} | {"prompt": "What?", "finetune": {"lr": 5e-4, "train_iters": 3}}
    (folder / "workspace.json").write_text(json.dumps(values))
    return folder


def greeted(store, workspace=None):
    return ConsoleApp(store.root, workspace, greet=True)


@pytest.mark.parametrize("size, theme", LOOKS)
def test_an_empty_store_opens_the_first_page(store, size, theme):
    async def scene(pilot):
        text = text_of(pilot.app)
        for words in ("Try the demo", "Open a model", "Paste a recipe line", "Doctor", str(store.root)[:40]):
            assert words in text, words
        await press(pilot, "escape")
        assert "No run yet" in text_of(pilot.app)
        await press(pilot, "0")
        assert "Try the demo" in text_of(pilot.app)
        await press(pilot, "question_mark")
        assert "Create the demo's workspace" in text_of(pilot.app)
        titles = [command.title for command in pilot.app.get_system_commands(pilot.app.screen_stack[1])]
        assert "Paste recipe" in titles and "Runs: open" not in titles
        await press(pilot, "escape", "2")
        assert pilot.app.current_mode == "launch" and "Try the demo" not in text_of(pilot.app)

    driven(scene, greeted(store), size, theme)


def test_a_store_with_runs_does_not(store):
    launch.wait(store.other("convert"), 150)

    async def scene(pilot):
        await until(pilot, lambda: "0001-convert" in text_of(pilot.app))
        assert "Try the demo" not in text_of(pilot.app)

    driven(scene, greeted(store))


def test_an_existing_model_is_opened_by_its_path(store, tmp_path, monkeypatch):
    model = tmp_path / "models" / "tiny"
    shutil.copytree(DEMO, model)
    monkeypatch.setenv("HOME", str(tmp_path))

    async def scene(pilot):
        await press(pilot, "o")
        await until(pilot, lambda: "found here" in text_of(pilot.app))
        assert str(model) in text_of(pilot.app)
        await press(pilot, *str(tmp_path), "enter")
        assert "neither config.json nor" in text_of(pilot.app)
        await press(pilot, *"/models/tin", "right")
        assert pilot.app.screen.query_one("#asked").value == str(model), "the suggestion is taken"
        await press(pilot, "enter")
        await until(pilot, lambda: pilot.app.current_mode == "launch" and pilot.app.screen.query(OptionForm))
        await until(pilot, lambda: pilot.app.screen.form.texts().get("source") == str(model))
        assert pilot.app.screen.form.texts()["target"] == str(model) + "-mcore"

    driven(scene, greeted(store), LARGE)


def test_a_path_without_a_model_is_a_one_line_error_with_a_fix(tmp_path):
    for name, said_of in (("", "the path of a folder"), (str(tmp_path / "none"), "no such folder"), (__file__, "a file; give the folder")):
        with pytest.raises(RequestError, match=said_of):
            open_model(name)
    shutil.copytree(DEMO, tmp_path / "outer" / "inner")
    with pytest.raises(RequestError, match="there is one in inner"):
        open_model(str(tmp_path / "outer"))
    (tmp_path / "outer" / "inner" / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="the download is incomplete"):
        open_model(str(tmp_path / "outer" / "inner"))
    (tmp_path / "outer" / "inner" / "latest_checkpointed_iteration.txt").write_text("7")
    opened = open_model(f"'{tmp_path / 'outer' / 'inner'}'")
    assert opened.kind == "finetune" and "tiny" in opened.words
    assert models_nearby((tmp_path / "outer",))[0] == str(tmp_path / "outer" / "inner")


def test_a_recipe_line_becomes_a_form_and_its_problems_are_named(store):
    async def scene(pilot):
        await press(pilot, "p", *"dsw 4B 1", "enter")
        await until(pilot, lambda: "3 values: the recipe has 26" in text_of(pilot.app))
        assert "2 MODEL_SIZE" in text_of(pilot.app)
        pilot.app.screen.query_one("#asked").value = RECIPE.replace(" 8B ", " 9B ")
        await press(pilot, "enter")
        await until(pilot, lambda: "MODEL_SIZE" in text_of(pilot.app) and "9B" in text_of(pilot.app))
        pilot.app.screen.query_one("#asked").value = RECIPE
        await press(pilot, "enter")
        await until(pilot, lambda: pilot.app.current_mode == "launch" and pilot.app.screen.form.texts().get("size") == "8B")
        texts = pilot.app.screen.form.texts()
        assert (texts["lr"], texts["train_iters"], texts["global_batch_size"], texts["load"]) == ("1e-05", "500", "8", "base")

    driven(scene, greeted(store), LARGE)


def test_the_demo_is_created_and_its_steps_are_shown(store, tmp_path):
    """The real command creates the workspace, and the console opens it."""
    folder = tmp_path / "demo"

    async def scene(pilot):
        pilot.app.demo_folder = folder
        await press(pilot, "d")
        await until(pilot, lambda: "step by step" in text_of(pilot.app))
        assert pilot.app.store_root == folder / "runs" and len(list((folder / "held-out").glob("*.png"))) == 64
        text = text_of(pilot.app)
        assert "▸    Prepare" in text and "·    Finetune" in text and "All of it at once" in text
        await press(pilot, "enter")
        await until(pilot, lambda: pilot.app.current_mode == "launch" and pilot.app.screen.query(OptionForm))
        await until(pilot, lambda: pilot.app.screen.form.texts().get("source") == str(folder / "train" / "captions.json"))

    driven(scene, greeted(store), LARGE)


def test_a_workspace_that_cannot_be_created_is_reported(store, tmp_path):
    (tmp_path / "taken").write_text("a file")

    async def scene(pilot):
        pilot.app.demo_folder = tmp_path / "taken"
        await press(pilot, "d")
        await until(pilot, lambda: "✗ the demo's workspace was not created" in text_of(pilot.app))

    driven(scene, greeted(store), LARGE)


def test_the_steps_show_their_progress(store, workspace):
    values = json.loads((workspace / "workspace.json").read_text())

    def states():
        return [step.state for step in steps(values, StoreWatcher(store.root).look())]

    assert states() == ["next", "later", "later", "later", "later"]
    (workspace / "data").mkdir()
    (workspace / "data" / "report.json").write_text("{}")
    assert states() == ["done", "next", "later", "later", "later"]
    (workspace / "base-mcore").mkdir()
    (workspace / "base-mcore" / "latest_checkpointed_iteration.txt").write_text("0")
    run = store.ended(store.finetune())
    assert states() == ["done", "done", "done", "next", "later"]
    step = steps(values, StoreWatcher(store.root).look())[3]
    assert step.values == {"source": str(run.path / "checkpoints"), "target": values["tuned_hf"]}
    (workspace / "tuned-hf").mkdir()
    (workspace / "tuned-hf" / "config.json").write_text("{}")
    live = store.other("compare", "import time; time.sleep(600)")
    assert states()[-1] == "live"
    launch.stop(live)
    launch.wait(live, 150)
    assert states()[-1] == "next"
    assert steps({}, StoreWatcher(store.root).look()) == []

    async def scene(pilot):
        await press(pilot, "0")
        assert "▸    Compare" in text_of(pilot.app)
        await press(pilot, "enter")
        await until(pilot, lambda: pilot.app.current_mode == "compare" and pilot.app.screen.has_class("-ask"))
        texts = pilot.app.screen.query_one(OptionForm).texts()
        assert (texts["tuned"], texts["prompt"], texts["references"]) == (values["tuned_hf"], "What?", values["references"])

    driven(scene, store.app(workspace), LARGE)


def test_the_doctor_lists_problems_first_and_copies_their_fix(store, monkeypatch):
    broken = Check("console", "fail", "missing", "pip install -e .")
    found = [Check("Python", "ok", "3.11"), Check("disk", "warn", "small", "free some"), broken]
    monkeypatch.setattr("console.screens.doctor.examine", lambda runs: found)

    async def scene(pilot):
        await press(pilot, "f9")
        await until(pilot, lambda: "1 of 3 failed" in text_of(pilot.app))
        lines = text_of(pilot.app)
        assert lines.index("✗ console") < lines.index("! disk") < lines.index("✓ Python") and "→ pip install -e ." in lines
        await press(pilot, "y")
        assert pilot.app.clipboard == "pip install -e ."
        await press(pilot, "end", "y")
        assert "Python: nothing to fix" in said(pilot.app)
        await press(pilot, "escape")
        assert "1 of 3" not in text_of(pilot.app)

    driven(scene, store.app())
