"""A store with real runs, and the console driven on it without a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from textual.app import App
from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from console.app import ConsoleApp
from console.runs import launch
from console.runs.state import read_state, write_json
from console.runs.store import Run, RunStore
from qwen3vl_core.options import CompareOptions, ConvertOptions, FinetuneOptions, PrepareOptions

SMALL, LARGE = (80, 24), (160, 48)
LOOKS = [(SMALL, "textual-light"), (LARGE, "textual-dark")]
PATIENCE = 150.0
"""Seconds until what does not come is an error: how busy the machine is must not matter."""


async def until(pilot: Pilot, condition: Callable[[], Any], what: str = "") -> None:
    """Wait for workers and messages, looking at the files in between, until the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"did not come: {what or condition}\n{text_of(pilot.app)}"
        await looked(pilot)


async def looked(pilot: Pilot) -> None:
    """One look at the store and at what the screen shows, up to the screen."""
    app = pilot.app
    if isinstance(app, ConsoleApp):
        app.look()
        if hasattr(app.screen, "read"):
            app.screen.read()
    with contextlib.suppress(WorkerCancelled):  # a newer look took an older one's place
        await app.workers.wait_for_complete()
    await pilot.pause()


async def press(pilot: Pilot, *keys: str) -> None:
    """Press keys, and let what they start come to the screen."""
    await pilot.press(*keys)
    await looked(pilot)


def text_of(app: App) -> str:
    """What the screen shows, a line a row."""
    width, height = app.size
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.crop(0, width).text for strip in lines[:height])


def driven(scene: Callable[[Pilot], Awaitable[None]], app: App, size: tuple[int, int] = SMALL, theme: str = "textual-dark") -> App:
    """Run a scene with the app in a terminal of this size."""
    app.animation_level = "none"  # a test waits for what happens, not for how it glides

    async def play() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            app.theme = theme
            await looked(pilot)
            await scene(pilot)

    asyncio.run(play())
    return app


def said(app: App) -> str:
    """All notifications, one a line."""
    return "\n".join(notification.message for notification in app._notifications)


class Store:
    """A run store under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = RunStore(root)

    def app(self, workspace: Path | None = None) -> ConsoleApp:
        return ConsoleApp(self.root, workspace)

    def finetune(self, name: str = "caption", steps: int = 40, total: int = 100, code: str | None = None, **options: Any) -> Run:
        """A finetune with `steps` rows of metrics; not started, unless code is given: then that runs in it."""
        declared = FinetuneOptions(load="base", train_data="data", train_iters=total, name=name, **options)
        run = self.store.create("finetune", declared, [sys.executable, "-c", code or "pass"])
        self.metrics(run, steps, total)
        run.log.write_text("".join(f"step {i}/{total}  loss {loss(i):.4f}\n" for i in range(1, steps + 1)))
        if code is not None:
            launch.start(run)
        return run

    def metrics(self, run: Run, steps: int, total: int) -> None:
        rows: list[dict] = [{"v": 1, "step": 0, "time": 1000.0, "kind": "event", "event": "start", "text": "starts", "train_iters": total}]
        for step in range(1, steps + 1):
            rows.append({
                "v": 1, "step": step, "time": 1000.0 + 2 * step, "kind": "train", "loss": loss(step), "lr": 1e-5,
                "grad_norm": 0.5 + 1 / step, "tokens": 100, "samples": 8, "step_seconds": 2.0, "tokens_per_second": 50.0, "skipped": 1,
            })  # fmt: skip
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ended(self, run: Run, status: str = "done", code: int | None = 0, error: str | None = None) -> Run:
        now = time.time()
        change = {"status": status, "exit_code": code, "started": now - 700, "ended": now - 100, "error": error}
        write_json(run.path / "state.json", read_state(run.path) | change)
        return run

    def other(self, kind: str, code: str = "pass") -> Run:
        """A prepare, convert or compare run, started, whose command is a few lines of Python."""
        options = {
            "prepare": PrepareOptions(source="captions.json", to="data"),
            "convert": ConvertOptions(source="base", target="base-mcore"),
            "compare": CompareOptions(base="base", tuned="tuned", images=["pictures"], html="captions.html"),
        }[kind]
        run = self.store.create(kind, options, [sys.executable, "-c", code])
        launch.start(run)
        return run

    def tidy(self) -> None:
        for run in self.store.list():
            if run.alive and run.state.get("supervisor_pid"):
                launch.stop(run)
                launch.wait(run, 30)


def loss(step: int) -> float:
    return 1.0 + 3.0 * math.exp(-step / 20)


def scalars(run: Run) -> None:
    """TensorBoard's file of a run, as a finetune writes it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    (run.path / "tensorboard").mkdir()
    writer = EventFileWriter(str(run.path / "tensorboard"))
    for step in range(3):
        value = Summary.Value(tag="lm loss", simple_value=2.0 - step)
        writer.add_event(Event(wall_time=1000.0 + step, step=step, summary=Summary(value=[value])))
    writer.close()


SLEEPER = "import time; print('at work', flush=True); time.sleep(600)"
