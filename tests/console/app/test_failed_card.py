"""From death to life by two keys: the card of a failed run says the cause and the change, one key clones with it, one starts it."""

from __future__ import annotations

import json
import sys

import pytest

from console.runs import launch
from console.widgets.key_hints import Keyed
from tests.console.app.driving import LARGE, SMALL, driven, looked, press, text_of, until

TINY = (60, 18)
LINE = "[rank2]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 2 has a total capacity of 79 GiB"


def out_of_memory(store):
    run = store.finetune("big", 3, 200, size="2B", micro_batch_size=16, global_batch_size=128, distributed_optimizer=True)
    plan = json.loads((run.path / "plan.json").read_text())
    plan["command"] = ["torchrun", "--nnodes", "1", "--nproc-per-node", "8"]
    (run.path / "plan.json").write_text(json.dumps(plan))
    run.log.write_text(f"step 3/200\n{LINE}\n")
    return store.ended(run, "failed", 1)


@pytest.mark.parametrize("size, theme", [(TINY, "textual-dark"), (SMALL, "textual-light"), (LARGE, "textual-dark")])
def test_two_keys_start_it_with_the_change_and_one_opens_the_form(store, size, theme, monkeypatch):
    out_of_memory(store)
    # the training itself is none of this test
    monkeypatch.setattr("console.runs.plan_record.child_command", lambda kind, options, run_dir: [sys.executable, "-c", "print('trains')"])

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.view.remedy is not None)
        await looked(pilot)
        shown = text_of(app)
        less = app.screen.view.remedy.changes["micro_batch_size"]
        assert "✗ out of GPU memory" in shown and f"fix  --micro-batch-size 16 → {less}: " in shown and less < 16
        assert "g starts a new run with it" in shown and "f opens the form with it" in shown
        assert "g start fixed" in shown.splitlines()[-1]
        await press(pilot, "f")
        await until(pilot, lambda: app.current_mode == "launch" and app.screen.form is not None and app.screen.plan is not None)
        assert app.screen.form.texts()["micro_batch_size"] == str(less) and app.screen.form.texts()["global_batch_size"] == "128"
        await press(pilot, "ctrl+p", "escape")
        app.watch_run("0001-big")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.view.remedy is not None)
        await looked(pilot)
        card = app.screen.query_one("#diagnosis", Keyed)
        y = next(y for y, text in enumerate(text_of(app).splitlines()) if "g starts a new run" in text)
        x = text_of(app).splitlines()[y].index("g starts")
        assert card.region.contains(x, y)
        await pilot.click(offset=(x, y))  # the key by mouse
        await looked(pilot)
        assert "Start a new run like 0001-big?" in text_of(app) and "GiB a GPU" in " ".join(text_of(app).split())
        assert f"micro_batch_size={less}" in " ".join(text_of(app).split())
        await press(pilot, "n", "g", "y")
        await until(pilot, lambda: len(store.store.list()) == 2)
        new = store.store.get(2)
        assert new.options["micro_batch_size"] == less and new.options["size"] == "2B" and new.name == "big"
        launch.wait(new, 150)
        await until(pilot, lambda: app.screen.run_id == new.id)

    driven(scene, store.app(), size, theme)


def test_a_taken_port_is_resumed_by_the_same_key(store):
    run = store.finetune("port", 3, 200)
    plan = json.loads((run.path / "plan.json").read_text())
    plan["command"] = [sys.executable, "-c", "print('goes on')"]
    (run.path / "plan.json").write_text(json.dumps(plan))
    run.log.write_text("The server socket has failed to listen on any local network address. port: 29500, code: -98, name: EADDRINUSE\n")
    store.ended(run, "failed", 1)

    async def scene(pilot):
        app = pilot.app
        await press(pilot, "enter")
        await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.view.remedy is not None)
        await looked(pilot)
        assert "fix  a resume is given a free port" in text_of(app) and "g resumes from the beginning" in text_of(app)
        await press(pilot, "f")
        assert app.current_mode == "monitor", "there is no change for a form"
        await press(pilot, "g", "y")
        await until(pilot, lambda: "goes on" in run.log.read_text())
        launch.wait(run, 150)

    driven(scene, store.app(), SMALL)
