"""Actions on runs, for every screen: each works off the UI thread, notifies of its result, and remembers the equivalent command."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import App

from console.formatting import one_line
from console.messages import CheckSeen, QueueChanged, RunChanged, RunsDeleted, RunStarted, WorkDone, WorkFailed
from console.terminal import show_in_browser
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import filled, phrase, tr
from qwen3vl_core.locations import runs_directory

if TYPE_CHECKING:
    from console.readers.run_rows import RunRow
    from console.runs.remedies import Remedy
    from console.runs.store import Run, RunStore

CHECK_SECONDS = 0.5
"""Between two looks at a check in the background."""
STARTS_SECONDS = 60.0
"""For a check to start on a busy machine."""
QUIET_SECONDS = 30.0
"""The same error is not shown again for this long."""


# imported late, so that the first frame does not wait for them


def _launch() -> Any:
    return importlib.import_module("console.runs.launch")


def _store(root: Path) -> RunStore:
    return importlib.import_module("console.runs.store").RunStore(root)


def number_of(run_id: str) -> str:
    """`0007-caption` -> `7`: the number of a run in a command."""
    return str(int(run_id.partition("-")[0]))


class RunActions(App[int]):
    """Starts, stops, saves, resumes and deletes runs, and remembers the equivalent subcommand."""

    store_root: Path

    def __init__(self) -> None:
        self.subcommand = ""
        """The command that is equivalent to the last action."""
        self._last_error: tuple[str, float] = ("", 0.0)
        self.checks: dict[str, str] = {}
        """How far the check of a run is, or what it has found, by the run's id."""
        self._tensorboards: list[Any] = []
        super().__init__()

    def look(self) -> None:
        """Look at the store; implemented by the console."""
        raise NotImplementedError

    def on_unmount(self) -> None:
        for board in self._tensorboards:
            board.close()

    def _work(self, work: Callable[[], Any], name: str) -> None:
        """Do blocking work in a thread; an error becomes a notification."""

        def guarded() -> None:
            try:
                self.post_message(work())
            except (RequestError, WorkError) as error:
                self.post_message(WorkFailed(error.shown))
            except Exception as error:
                self.post_message(WorkFailed(f"{name}: {type(error).__name__}: {error}"))

        self.run_worker(guarded, name=name, group=name, thread=True, exit_on_error=False)

    @on(WorkFailed)
    def _failed(self, event: WorkFailed) -> None:
        text, now = one_line(phrase(event.text), 500), time.monotonic()
        if text != self._last_error[0] or now - self._last_error[1] > QUIET_SECONDS:
            self._last_error = (text, now)
            self.notify(text, severity="error", markup=False)

    # the command that is equivalent to the last action

    def remember_command(self, *words: str) -> None:
        """Remember the subcommand that is equivalent to the last action: `remember_command("runs", "stop", "7")`."""
        store = ["--runs", str(self.store_root)] if words[0] == "runs" and self.store_root != runs_directory(None) else []
        from qwen3vl_core.options import shell_line  # not before the first frame

        self.subcommand = shell_line(["qwen3vl", *words, *store])

    def action_subcommand(self) -> None:
        if not self.subcommand:
            self.notify("nothing done yet; open, stop or start a run first, then this copies the equivalent command", severity="warning")
            return
        self.copy_to_clipboard(self.subcommand)
        self.notify(self.subcommand, title="Command copied", markup=False)

    # actions of the screens

    def ask(self, head: str, text: str, yes: str, then: Callable[[], None]) -> None:
        """Ask, and do it after a yes."""
        from console.screens.dialogs import Confirm  # not before the first frame

        self.push_screen(Confirm(head, text, yes), lambda sure: then() if sure else None)

    def ask_to_start(self, kind: str, options: Any, origin: str, note: str = "", then: Callable[[], None] = lambda: None) -> None:
        """Start a run after a question, which shows its command; call `then` if it is started."""
        from qwen3vl_core.options import shell_line, to_arguments  # not before the first frame

        text = "\n\n".join(filter(None, ["$ " + shell_line(["qwen3vl", kind, *to_arguments(options)]), note]))

        def start() -> None:
            then()
            self.start_run(kind, options, origin)

        self.ask(tr("Start this {kind}?", kind=kind), text, tr("Start it"), start)

    def start_run(self, kind: str, options: Any, origin: str) -> None:
        """Create a run and start it; posts `RunStarted` when it is running."""

        from qwen3vl_core.options import to_arguments  # not before the first frame

        def work() -> RunStarted:
            run = _store(self.store_root).create(kind, options)
            _launch().start(run)
            return RunStarted(run.id, kind, origin, importlib.import_module("console.runs.forecast").words_of(run))

        name = f"start {kind}"
        if any(worker.name == name and not worker.is_finished for worker in self.workers):
            return  # the key was pressed twice
        self.notify(tr("starting {kind} …", kind=kind), timeout=2)
        # the equivalent command is recorded and detached like this run
        detached = [] if kind == "finetune" else ["--detach"]
        store = ["--runs", str(self.store_root)] if self.store_root != runs_directory(None) else []
        self.remember_command(kind, *to_arguments(options), *detached, *store)
        self._work(work, name)

    def stop_run(self, run_id: str) -> None:
        """Ask a run to stop; the screen has asked for confirmation."""
        self._ask("stop", run_id, lambda run: _launch().stop(run), tr("asked to stop"))

    def change_queue(self, run_id: str, what: str, then: Callable[[], None] = lambda: None) -> None:
        """Move a queued run (first, last, up, down), hold it back, release it, or cancel it; then look, and call `then`."""

        def work() -> QueueChanged:
            run, queue = _store(self.store_root).get(run_id), importlib.import_module("console.runs.queue")
            if what == "cancel":
                launch = _launch()
                launch.stop(run)
                launch.wait(run, queue.LOCK_SECONDS)
            else:
                queue.change(run, what)
            return QueueChanged(then)

        self.remember_command("runs", "queue", number_of(run_id), f"--{what}")
        self._work(work, "queue")

    @on(QueueChanged)
    def _queue_changed(self, event: QueueChanged) -> None:
        event.then()
        self.look()

    def save_run(self, run_id: str) -> None:
        """Ask a live finetune for a checkpoint now."""
        self._ask("save", run_id, lambda run: _launch().save_now(run), tr("asked to save at its next step"))

    def _ask(self, command: str, run_id: str, ask: Callable[[Run], None], answer: str, words: Sequence[str] = ()) -> None:
        def work() -> RunChanged:
            ask(_store(self.store_root).get(run_id))
            return RunChanged(run_id, answer)

        self.remember_command("runs", command, number_of(run_id), *words)
        self._work(work, f"{command} {run_id}")

    def check_run(self, run_id: str) -> None:
        """Compare every byte of a run's checkpoints with their digests, in a process of its own, which outlives the console; follow the one
        that does so already."""

        def work() -> CheckSeen:
            from textual.worker import get_current_worker

            check, run_text = (importlib.import_module(f"console.runs.{name}") for name in ("check", "run_text"))
            run, worker, began = _store(self.store_root).get(run_id), get_current_worker(), time.time()
            if not check.checkpoints(run):
                raise RequestError(filled("{}: no checkpoints; a finetune writes some with --save-interval and at its end", run_id))
            if not check.state_of(run).get("alive"):
                check.start(run)
            while True:
                state = check.state_of(run)
                alive, new = bool(state.get("alive")), state.get("time", 0) >= began
                if alive or new or time.time() > began + STARTS_SECONDS:
                    damaged = any(item.get("problem") for item in state.get("checkpoints") or ())
                    seen = CheckSeen(run_id, run_text.background_check(state), not alive, damaged)
                    if seen.done or worker.is_cancelled:
                        return seen
                    self.post_message(seen)
                time.sleep(CHECK_SECONDS)

        self.remember_command("runs", "check", number_of(run_id), "--read-data", "--background")
        self.notify(tr("{run}: every byte of its checkpoints is compared, in the background", run=run_id), timeout=3, markup=False)
        self._work(work, f"check {run_id}")

    @on(CheckSeen)
    def _checked(self, event: CheckSeen) -> None:
        self.checks[event.run_id] = event.text
        if event.done:
            self.notify(f"{event.run_id}: {event.text}", severity="error" if event.damaged else "information", markup=False, timeout=10)
        self.look()

    def delete_runs(self, rows: Iterable[RunRow]) -> None:
        """Delete runs with their checkpoints; the screen has asked for confirmation."""
        runs = [row.run for row in rows]

        def work() -> RunsDeleted:
            launch = _launch()
            return RunsDeleted([run.id for run in runs], sum(launch.delete(run) for run in runs))

        self.remember_command("runs", "delete", *(str(run.number) for run in runs), "--yes")
        self._work(work, "delete")

    @on(RunsDeleted)
    def _deleted(self, event: RunsDeleted) -> None:
        from qwen3vl_core.formats import quantity

        names = event.run_ids[0] if len(event.run_ids) == 1 else tr("{count:,} runs", count=len(event.run_ids))
        self.notify(tr("{runs} deleted, {size} freed", runs=names, size=quantity(event.freed, "B")), markup=False)
        self.look()

    def open_tensorboard(self, rows: Iterable[RunRow]) -> None:
        """Start TensorBoard on these runs, until the console is left; copy its link, and open it if there is a browser."""
        runs = [row.run for row in rows]
        known = next((board for board in self._tensorboards if board.alive and board.runs == [run.id for run in runs]), None)

        def work() -> WorkDone:
            board = known or importlib.import_module("console.runs.tensorboard").TensorBoard(runs)
            if known is None:
                self._tensorboards.append(board)
            board.wait()
            return WorkDone("TensorBoard", board.url)

        self.notify("starting TensorBoard …", timeout=3)
        self.remember_command("runs", "tensorboard", *(str(run.number) for run in runs))
        self._work(work, "tensorboard")

    @on(WorkDone)
    def _opened(self, event: WorkDone) -> None:
        self.copy_to_clipboard(event.text)
        opened = self.is_web or show_in_browser(event.text)
        if self.is_web:
            self.open_url(event.text)
        note = f"{event.text}  " + tr("opened; it ends with the console" if opened else "copied; it ends with the console")
        self.notify(note, title=event.title, markup=False, timeout=10)

    def ask_to_resume(self, row: RunRow) -> None:
        """Resume a stopped, failed or lost run after a question, which says from where."""
        if row.alive or row.status == "done":
            self.notify(
                tr("{run}: {status}; there is nothing to resume", run=row.id, status=tr(row.status)), severity="warning", markup=False
            )
            return
        where = tr("It has no checkpoint and starts from the beginning")
        if row.checkpoint:
            where = tr("It goes on from its {checkpoint}", checkpoint=row.checkpoint_text)
        self.ask(tr("Resume {run}?", run=row.id), f"{where}{tr('.')}\n\n$ {row.command}", tr("Resume it"), lambda: self.resume_run(row.id))

    def resume_run(self, run_id: str, changes: Mapping[str, Any] | None = None, words: Sequence[str] = ()) -> None:
        """Resume a stopped, failed or lost run. changes: of a finetune's options; words: the same as options of the command."""
        self._ask("resume", run_id, lambda run: _launch().resume(run, changes=changes), tr("resumed"), words)

    def ask_to_start_fixed(self, row: RunRow, found: Remedy) -> None:
        """Start a failed finetune again with the change that gets it to work, as a new run or from its checkpoint, after a question."""
        remedies = importlib.import_module("console.runs.remedies")
        words = remedies.command_words(row.run, found)
        if found.resumes is None:
            from qwen3vl_core.options import FinetuneOptions, from_mapping, shell_line  # not before the first frame

            options = from_mapping(FinetuneOptions, {**row.run.options, **found.changes})

            text = f"{found.headline}\n\n$ {shell_line(['qwen3vl', 'runs', *words])}"
            self.ask(
                tr("Start a new run like {run}?", run=row.id), text, tr("Start it"), lambda: self.start_run(row.kind, options, "monitor")
            )
            return
        where = tr("It starts from the beginning")
        if row.checkpoint:
            where = tr("It goes on from its {checkpoint}", checkpoint=row.checkpoint_text)
        text = f"{found.headline}\n\n{where}{tr('.')}"
        self.ask(tr("Resume {run}?", run=row.id), text, tr("Resume it"), lambda: self.resume_run(row.id, dict(found.changes), words[2:]))

    @on(RunChanged)
    def _changed(self, event: RunChanged) -> None:
        self.notify(f"{event.run_id}: {event.text}", markup=False)
        self.look()
