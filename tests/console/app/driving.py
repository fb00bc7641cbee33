"""A store with real runs, and the console driven without a terminal."""

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
from unittest import mock

from textual._compositor import Compositor
from textual._context import active_app, visible_screen_stack
from textual.app import App
from textual.message_pump import MessagePump
from textual.pilot import Pilot
from textual.screen import Screen
from textual.worker import WorkerCancelled

from console.app import ConsoleApp
from console.runs import launch
from console.runs.state import read_state, write_json
from console.runs.store import Run, RunStore
from qwen3vl_core import file_digests
from qwen3vl_core.options import CompareOptions, ConvertOptions, FinetuneOptions, PrepareOptions

SMALL, LARGE = (80, 24), (160, 48)
LOOKS = [(SMALL, "textual-light"), (LARGE, "textual-dark")]
PATIENCE = 150.0
"""Seconds until what does not come is an error: how busy the machine is must not matter."""
QUIET_TURNS = 6
"""Turns of the event loop without a message: a key from the driver is on its way for three of them."""


async def settled(app: App | None = None) -> None:
    """Wait until every message that was sent has been handled, and what it changed is laid out and drawn.

    Textual's own pilot assumes that an app is idle if its process uses no CPU; on a busy machine it may just not be scheduled.
    Workers are not waited for: `looked` does.
    """
    app = app or active_app.get()
    end, quiet, turn = time.monotonic() + PATIENCE, 0, 0
    while quiet < QUIET_TURNS and app.is_running and not app._exit and app._exception is None:
        # messages only need iterations of the loop; after several, the test waits for a thread or a timer
        turn += 1
        await asyncio.sleep(0 if turn % 50 else 0.002)
        busy = next((node for node in [app, *app._registry] if _at_work(node)), None)
        if busy is None and app._screen_stack and _undrawn(app.screen):
            busy = app.screen
            with app.screen._context():
                app.screen._on_timer_update()  # now, not at the next sixtieth of a second
        quiet = 0 if busy is not None else quiet + 1
        assert time.monotonic() < end, f"does not come to rest: {busy}\n{text_of(app)}"


def _at_work(node: MessagePump) -> bool:
    """Whether a node is handling a message or has one in its queue."""
    queue = node._message_queue
    if node._task is None or node._task.done():
        return node._task is None and not queue.empty() and node.is_running
    return not queue.empty() or not queue.ready_event._waiters or node._pending_message is not None or bool(node._next_callbacks)


def _undrawn(screen: Screen) -> bool:
    return bool(
        screen._layout_required or screen._scroll_required or screen._repaint_required or screen._recompose_required
        or screen._dirty_widgets or screen._callbacks
    )  # fmt: skip


async def until(pilot: Pilot, condition: Callable[[], Any], what: str = "") -> Any:
    """Wait for workers and messages, reading the files in between, until the condition holds. Returns its value."""
    end, rest = time.monotonic() + PATIENCE, 0.0
    while not (found := condition()):
        assert time.monotonic() < end, f"did not come: {what or condition}\n{said(pilot.app)}\n{text_of(pilot.app)}"
        await looked(pilot)
        # another process is faster if it gets the CPU
        await asyncio.sleep(rest)
        rest = min(rest + 0.005, 0.1)
    return found


async def looked(pilot: Pilot) -> None:
    """Read the store and the files of the screen once, starting now, and wait until the screen shows the result."""
    app = pilot.app
    seen, looks = None, 0
    if isinstance(app, ConsoleApp):
        # a read in progress may have missed the last change: wait for the next one
        seen, looks = app.snapshot, 2 if app._looking else 1
        app.look()
        if hasattr(app.screen, "read"):
            app.screen.read()
    end, rounds = time.monotonic() + PATIENCE, 0
    while True:
        await finished(app)
        if isinstance(app, ConsoleApp) and app.snapshot is not seen:
            seen, looks = app.snapshot, looks - 1
        rounds += 1
        # the result may have started more work; if the next read has already begun, two more rounds show this result
        if all(worker.is_finished for worker in app.workers) or (looks <= 0 and rounds > 3) or not app.is_running:
            break
        assert time.monotonic() < end, f"the store is not looked at\n{text_of(app)}"
    await pilot.pause()
    if app.is_running and app._screen_stack:
        with app.screen._context():
            text_of(app)  # what cannot be drawn fails here


async def finished(app: App) -> None:
    """Wait until running workers are done and their results are handled and drawn."""
    with contextlib.suppress(WorkerCancelled):  # a newer worker replaced it
        await app.workers.wait_for_complete()
    await settled(app)


async def press(pilot: Pilot, *keys: str) -> None:
    """Press keys and wait until the screen shows the result."""
    await pilot.press(*keys)
    await looked(pilot)


def text_of(app: App) -> str:
    """The text on the screen, one line per row."""
    width, height = app.size
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.crop(0, width).text for strip in lines[:height])


def driven(scene: Callable[[Pilot], Awaitable[None]], app: Any, size: tuple[int, int] = SMALL, theme: str = "textual-dark") -> Any:
    """Run a scene with the app in a terminal of this size."""
    app.animation_level = "none"  # without animations
    app.heard, notify = [], app.notify

    def hear(message: str, **how: Any) -> None:
        app.heard.append(message)
        notify(message, **how)

    app.notify = hear

    def not_drawn(compositor: Compositor, full: bool = False, screen_stack: Any = None, simplify: bool = False) -> None:
        """Frames on the way: nobody sees them, and they took most of the time of these tests."""
        visible_screen_stack.set(screen_stack or [])
        compositor._dirty_regions.clear()

    async def play() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            app.theme = theme
            await looked(pilot)
            await scene(pilot)

    with mock.patch.object(Compositor, "render_update", not_drawn):
        asyncio.run(play())
    return app


def said(app: Any) -> str:
    """All notifications so far, one per line, including those that are not on screen any more."""
    return "\n".join(app.heard)


class Store:
    """A run store under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = RunStore(root)

    def app(self, workspace: Path | None = None) -> ConsoleApp:
        return ConsoleApp(self.root, workspace)

    def finetune(self, name: str = "caption", steps: int = 40, total: int = 100, code: str | None = None, **options: Any) -> Run:
        """A finetune with `steps` rows of metrics. Not started, unless `code` is given, which then runs as its command."""
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
                launch.wait(run, 150)


def checkpoint(run: Run, step: int = 3) -> Path:
    """The one file of a checkpoint with digests."""
    folder = run.path / "checkpoints" / f"iter_{step:07d}"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(bytes(1000))
    file_digests.add(folder)
    (folder.parent / "latest_checkpointed_iteration.txt").write_text(f"{step}\n")
    return folder / "__0_0.distcp"


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
