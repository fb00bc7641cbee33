"""Every action of the registry works by each of its keys and by mouse: a click on `? keys`, then on the action's line."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from textual.widgets import Tabs

from console.actions import ACTIONS
from console.runs import launch, processes
from console.widgets.bars import KeyBar
from console.widgets.curve import Curve
from console.widgets.log_pane import LogPane
from console.widgets.run_list import RunList
from qwen3vl_core.errors import EXIT_DONE
from qwen3vl_core.layout.doctor import Check
from qwen3vl_core.layout.gpus import GpuUse
from tests.console.app.action_cases import (
    TALL,
    Case,
    copies,
    every,
    on_bar,
    opens,
    shows,
    texts,
)
from tests.console.app.driving import SLEEPER, checkpoint, driven, looked, scalars, text_of, until


@pytest.fixture
def editor(tmp_path, monkeypatch):
    """An editor that records which file it was given, and a terminal for it."""
    notes, program = tmp_path / "edited.txt", tmp_path / "editor.sh"
    program.write_text(f'#!/bin/sh\necho "$1" >> {notes}\n')
    program.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(program))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setattr("console.app.ConsoleApp.suspend", lambda self: contextlib.nullcontext())  # no terminal here
    return lambda: len(notes.read_text().splitlines()) if notes.exists() else 0


def test_everywhere(store, monkeypatch, editor, tmp_path):
    store.ended(store.finetune("one", 10))
    monkeypatch.setattr("console.screens.doctor.examine", lambda runs: [Check("Python", "ok", "3.11")])  # this machine does not matter here
    monkeypatch.setenv("QWEN3VL_SETTINGS", str(tmp_path / "own.yaml"))

    async def scene(pilot):
        await until(pilot, lambda: len(pilot.app.screen.rows) == 1)
        await every(pilot, "app", {
            "app.runs": Case(lambda app: app.current_mode, lambda app: app.action_show_screen("monitor"), wanted="runs"),
            "app.launch": shows("launch"), "app.monitor": shows("monitor"), "app.compare": shows("compare"),
            "app.start_page": Case(lambda app: app.screen.id, after=("escape",), wanted="welcome"),
            "app.doctor": opens("DoctorScreen"), "app.help": opens("KeysHelp"), "app.palette": opens("CommandPalette"),
            "app.theme": Case(lambda app: app.theme, after=lambda app: app.action_toggle_theme()),
            "app.themes": opens("CommandPalette"),
            "app.settings": Case(lambda app: editor()),
            "app.stores": opens("PickStore"), "app.queue": opens("GpuQueue"), "app.language": opens("PickLanguage"),
            "app.suspend": Case(lambda app: sum("no shell to go back" in line for line in app.heard)),
            "app.quit_short": Case(lambda app: app.return_value, lambda app: setattr(app, "_return_value", None), wanted=EXIT_DONE),
            "app.subcommand": Case(lambda app: app.clipboard,
                                   lambda app: (app.remember_command("runs", "show", "1"), app.copy_to_clipboard("")),
                                   wanted=f"qwen3vl runs show 1 --runs {store.root}"),
            "app.quit": Case(lambda app: app.return_value, lambda app: setattr(app, "_return_value", None), wanted=EXIT_DONE),
        })  # fmt: skip

    # quitting ends the app: here it is only recorded
    monkeypatch.setattr("console.app.ConsoleApp.exit", lambda self, result, message=None: setattr(self, "_return_value", result))
    driven(scene, store.app(), TALL)


def test_quitting_ends_the_console(store):
    for way in ("q", "ctrl+q", "mouse"):

        async def scene(pilot, way=way):
            if way != "mouse":
                await pilot.press(way)
            else:
                await pilot.click(KeyBar, offset=await on_bar(pilot, "q quit"))
            await until(pilot, lambda: not pilot.app.is_running or pilot.app._exit)

        assert driven(scene, store.app()).return_value == EXIT_DONE


def test_first_page(store, tmp_path, monkeypatch):
    monkeypatch.setattr("console.screens.doctor.examine", lambda runs: [Check("Python", "ok", "3.11")])
    (tmp_path / "taken").write_text("a file")

    async def scene(pilot):
        app = pilot.app
        app.demo_folder = tmp_path / "taken"
        app.action_start_page()
        await looked(pilot)
        cases = {
            "welcome.demo": Case(lambda app: "was not created" in text_of(app), after=("escape",), wanted=True),
            "welcome.model": Case(lambda app: app.screen.asking, after=("escape",), wanted="model"),
            "welcome.download": Case(
                lambda app: app.current_mode == "launch" and getattr(app.screen, "kind", None),
                after=lambda app: app.action_start_page(),
                wanted="download",
            ),
            "welcome.recipe": Case(lambda app: app.screen.asking, after=("escape",), wanted="recipe"),
            "welcome.doctor": opens("DoctorScreen"),
            "welcome.leave": Case(lambda app: app.screen.id, after=lambda app: app.action_start_page(), wanted="_default"),
        }
        monkeypatch.setattr(
            "tests.console.app.action_cases.actions_of", lambda scope: [a for a in ACTIONS if a.screen == scope and a.id != "welcome.all"]
        )
        cases["welcome.leave"] = Case(lambda app: app.screen.id == "welcome", after=lambda app: app.action_start_page())
        await every(pilot, "welcome", cases)

    driven(scene, store.app(), TALL)


def stopping(run) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """Before an action: pause the run, or continue it."""

    def stopped(app):
        if run.alive:
            launch.stop(run)
            launch.wait(run, 150)

    def again(app):
        if not run.alive:
            launch.resume(run)

    return stopped, again


def test_runs(store):
    scalars(store.ended(store.finetune("older", 10)))
    store.ended(store.finetune("other", 10))
    live = store.finetune("live", 10, 100, SLEEPER)
    checkpoint(live)

    stopped, again = stopping(live)

    def table(app):
        return app.screen.query_one(RunList)

    def home(app):
        app.action_show_screen("runs")
        table(app).focus()

    def hidden_captions(app):
        app.screen.remove_class("-captions")
        home(app)

    def spare(app):
        """A run to delete, under the cursor."""
        made = store.ended(store.finetune("spare", 3))
        app.screen.marked = {made.id: None}
        app.look()

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 3)
        marks = {live.id: None, "0002-other": None}
        cases = {
            "runs.open": Case(lambda app: (app.current_mode, getattr(app.screen, "run_id", None)), after=home, wanted=("monitor", live.id)),
            "runs.mark": Case(lambda app: list(app.screen.marked), after=("escape", "home"), wanted=[live.id]),
            "runs.new": Case(lambda app: app.current_mode, after=home, wanted="launch"),
            "runs.clone": Case(lambda app: app.current_mode == "launch" and texts(app).get("name"), after=home, wanted="live"),
            "runs.stop": Case(lambda app: live.status, again, sure=True, wanted="stopped"),
            "runs.resume": Case(lambda app: live.alive, stopped, sure=True, wanted=True),
            "runs.difference": opens("Difference", lambda app: setattr(app.screen, "marked", dict(marks))),
            "runs.copy": copies(lambda app: app.screen.chosen.command),
            "runs.filter": Case(lambda app: app.focused.id, after=("escape",), wanted="filter"),
            "runs.captions": Case(lambda app: app.current_mode == "monitor" and app.screen.has_class("-captions"),
                                  after=hidden_captions, wanted=True),
            "runs.save": Case(lambda app: sum("save" in line for line in app.heard)),
            "runs.sort": Case(lambda app: app.screen.order, after=lambda app: setattr(app.screen, "order", "newest"), wanted="name"),
            "runs.reverse": Case(lambda app: [row.id for row in app.screen.rows], after=("i",)),
            "runs.check": Case(lambda app: "runs check 3" in app.subcommand, lambda app: setattr(app, "subcommand", ""), wanted=True),
            "runs.tensorboard": Case(lambda app: app.clipboard.startswith("http://127.0.0.1:"),
                                     lambda app: (app.copy_to_clipboard(""), setattr(app.screen, "marked", {"0001-older": None})),
                                     ("escape",), wanted=True),
            "runs.delete": Case(lambda app: sum(run.name == "spare" for run in store.store.list()), spare, ("escape", "home"), sure=True,
                                wanted=0),
            "runs.preview": Case(lambda app: app.screen.previews),
            "runs.leave": Case(lambda app: list(app.screen.marked), lambda app: setattr(app.screen, "marked", dict(marks)), wanted=[]),
        }  # fmt: skip
        await every(pilot, "runs", cases)

    driven(scene, store.app(), TALL)


def test_launch(store, tmp_path, editor):
    (tmp_path / "captions.json").write_text("[]")

    def tabs(app):
        app.action_show_screen("launch")
        app.screen.query_one(Tabs).focus()

    async def scene(pilot):
        app = pilot.app
        app.action_show_screen("launch")
        await until(pilot, lambda: app.screen.form is not None and app.screen.plan is not None)
        screen = app.screen
        tabs(app)

        async def prepare(app):
            """A form that can be started: the real command, which finds no conversation in the file."""
            tabs(app)
            screen.query_one(Tabs).active = "kind-prepare"
            await until(pilot, lambda: screen.kind == "prepare" and screen.form is not None and screen.plan.kind == "prepare")
            screen.form.fill({"source": str(tmp_path / "captions.json"), "to": str(tmp_path / f"data-{len(store.store.list())}")})
            await until(pilot, lambda: screen.checked is not None and not screen.problems)

        async def finetune(app, **values):
            tabs(app)
            screen.query_one(Tabs).active = "kind-finetune"
            await until(pilot, lambda: screen.kind == "finetune" and screen.form is not None and screen.plan.kind == "finetune")
            screen.form.reset()
            screen.form.fill(values)
            await until(pilot, lambda: screen.checked is not None)

        async def was_reset(app):
            await finetune(app, lr=3e-4)
            screen.form.reset()

        async def with_gpus(app):
            await finetune(app)
            app.gpus = (GpuUse("0", "NVIDIA H100", 80.0, 0.4),)

        def started(app):
            return len(store.store.list())

        async def back(app):
            """A started run is shown once it is in the store."""
            await until(pilot, lambda: app.current_mode == "monitor")
            tabs(app)

        def lr(app):
            return texts(app).get("lr")

        await every(pilot, "launch", {
            "launch.start": Case(started, prepare, back, sure=True), "launch.start_short": Case(started, prepare, back, sure=True),
            "launch.fix": Case(lambda app: texts(app).get("lr_warmup_iters"),
                               lambda app: finetune(app, train_iters=10, lr_warmup_iters=20)),
            "launch.gpus": opens("PickGpus", with_gpus),
            "launch.preset": opens("PickPreset", lambda app: finetune(app)),
            "launch.copy": copies(lambda app: app.screen.plan.command),
            "launch.edit": Case(lambda app: editor()),
            "launch.save": Case(lambda app: len(list(tmp_path.glob("finetune-plan*.yaml")))),
            "launch.next_kind": Case(lambda app: app.screen.kind),
            "launch.reset": Case(lr, lambda app: finetune(app, lr=3e-4), wanted="1e-05"),
            "launch.undo": Case(lr, was_reset, wanted="0.0003"),
            "launch.difference": opens("ChangedOptions"),
            "launch.leave": Case(lambda app: type(app.focused).__name__, lambda app: app.screen.form.focus_first(), wanted="Tabs",
                                 on_bar=True),
        })  # fmt: skip
        assert {run.kind for run in store.store.list()} == {"prepare"}

    driven(scene, store.app(), TALL)


def test_monitor(store):
    scalars(store.ended(store.finetune("older", 100)))
    broken = store.finetune("broken", 30)
    with open(broken.log, "a") as file:
        file.write("torch.OutOfMemoryError: CUDA out of memory\nstep 31/100\n")
    store.ended(broken, "failed", 1)
    saves = "import signal; signal.signal(signal.SIGUSR1, lambda *_: print('asked', flush=True))\n"
    live = store.finetune("live", 100, 200, saves + SLEEPER)
    with open(live.metrics, "a") as file:
        for step in (20, 60):
            file.write(json.dumps({"v": 1, "kind": "event", "step": step, "event": "save", "text": f"checkpoint of {step}"}) + "\n")

    stopped, again = stopping(live)

    def curve(app):
        return app.screen.query_one(Curve)

    def log(app):
        return app.screen.query_one(LogPane)

    async def scene(pilot):
        app = pilot.app
        await until(pilot, lambda: len(app.screen.rows) == 3)

        async def watch(run_id):
            app.watch_run(run_id)
            await until(pilot, lambda: app.current_mode == "monitor" and app.screen.view is not None and app.screen.view.run_id == run_id)
            curve(app).focus()
            await looked(pilot)

        def looks(seen, before=None, wanted=None) -> Case:
            """A case of the curve, which is reset afterwards."""
            return Case(seen, before, ("r", "escape"), wanted=wanted)

        def found(app):
            log(app).find("step")

        async def on_live(app):
            await watch(live.id)

        def hit(app):
            return log(app).hit

        async def listens(app):
            """A run that has just started does not handle signals yet."""
            await until(pilot, lambda: processes.catches(live.state["pid"], signal.SIGUSR1))

        async def explained(app):
            await watch(broken.id)
            await until(pilot, lambda: app.screen.view.remedy is not None)

        zoomed = ("plus", "plus")
        await watch(live.id)
        await every(pilot, "monitor", {
            "monitor.metric": Case(lambda app: app.screen.metric, after=lambda app: app.screen._set_metric("loss")),
            "monitor.metrics": opens("PickMetric"),
            "monitor.zoom_in": looks(lambda app: curve(app).view is not None, wanted=True),
            "monitor.zoom_out": looks(lambda app: curve(app).view is None, zoomed[:1], wanted=True),
            "monitor.pan_left": looks(lambda app: curve(app).shown, zoomed),
            "monitor.pan_right": looks(lambda app: curve(app).shown, (*zoomed, "left", "left")),
            "monitor.reset": Case(lambda app: curve(app).view, zoomed),
            "monitor.cross_left": looks(lambda app: curve(app).crosshair),
            "monitor.cross_right": looks(lambda app: curve(app).crosshair, ("shift+left",) * 6),
            "monitor.event": looks(lambda app: curve(app).crosshair, wanted=20.0),
            "monitor.event_back": looks(lambda app: curve(app).crosshair, wanted=60.0),
            "monitor.log_y": Case(lambda app: curve(app).log_y),
            "monitor.smooth": Case(lambda app: app.screen.query_one(Curve).share),
            "monitor.overlay": opens("PickRuns"),
            "monitor.captions": Case(lambda app: app.screen.has_class("-captions")),
            "monitor.maximize": Case(lambda app: app.screen.has_class("-curve-only"), lambda app: curve(app).focus(), ("z",), wanted=True),
            "monitor.follow": Case(lambda app: log(app).follow),
            "monitor.wrap": Case(lambda app: log(app).wrap),
            "monitor.find": Case(lambda app: app.focused.id == "find", after=("escape",), wanted=True),
            "monitor.find_next": Case(hit, found), "monitor.find_back": Case(hit, found),
            "monitor.trouble": Case(lambda app: log(app).needle, lambda app: watch(broken.id), on_live,
                                    wanted="torch.OutOfMemoryError: CUDA out of memory"),
            "monitor.save": Case(lambda app: live.log.read_text().count("asked"), listens),
            "monitor.start_fixed": opens("Confirm", explained),
            "monitor.fix": Case(lambda app: app.current_mode, explained, on_live, wanted="launch"),
            "monitor.stop": Case(lambda app: live.status, again, again, sure=True, wanted="stopped"),
            "monitor.resume": Case(lambda app: live.alive, stopped, sure=True, wanted=True),
            "monitor.difference": opens("Difference"),
            "monitor.clone": Case(lambda app: app.current_mode, after=on_live, wanted="launch"),
            "monitor.newer": Case(lambda app: app.screen.run_id, lambda app: watch(broken.id), on_live, wanted=live.id),
            "monitor.older": Case(lambda app: app.screen.run_id, after=on_live, wanted=broken.id),
            "monitor.tensorboard": Case(lambda app: app.clipboard.startswith("http://127.0.0.1:"), board, on_live, wanted=True),
            "monitor.copy": copies(lambda app: app.screen.row.command),
            "monitor.leave": Case(lambda app: curve(app).crosshair, ("shift+left",)),
        })  # fmt: skip

    async def board(app):
        app.copy_to_clipboard("")
        app.watch_run("0001-older")

    driven(scene, store.app(), TALL)
