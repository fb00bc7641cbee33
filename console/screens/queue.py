"""GPUs against time, and the runs that wait for them, in the order in which they start."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Label, OptionList, Static
from textual.widgets.option_list import Option

from console.formatting import GLYPHS, cut, one_line
from console.messages import ThreadAnswer, WorkFailed
from console.readers.gpu_queue import GpuTimes, WaitingRun
from console.screens.dialog import Dialog
from console.screens.dialogs import Confirm
from console.widgets.gpu_timeline import drawn, legend
from console.widgets.key_hints import Hints
from qwen3vl_core.cells import width as cell_width
from qwen3vl_core.language import filled, phrase, tr
from qwen3vl_core.run_record import QUEUED

if TYPE_CHECKING:
    from console.console_base import ConsoleBase

LOOK_SECONDS = 2.0
ROOM = 11
"""Rows of the box beside the picture."""


class GpuQueue(Dialog[str | None]):
    """Returns the id of the run to watch, or None."""

    app: ConsoleBase
    BINDINGS: ClassVar = [
        Binding("escape,q,G", "dismiss(None)", "leave"),
        Binding("K,shift+up", "change('up')", "earlier"),
        Binding("J,shift+down", "change('down')", "later"),
        Binding("f", "change('first')", "next"),
        Binding("h", "hold", "hold or release"),
        Binding("x", "cancel", "take out"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.times: GpuTimes | None = None
        self._reading = False

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label(tr("GPUs and queue"), classes="headline")
            yield Static(id="times", markup=False)
            yield Static(legend(), id="legend")
            yield Static(tr("looking …"), id="none", classes="hint", markup=False)
            yield OptionList(id="waiting")
            yield Hints(("K", "earlier"), ("J", "later"), ("f", "first"), ("h", "holds, releases"), ("x", "takes out"),
                        ("enter", "shows it"), ("escape", "leaves"))  # fmt: skip

    def on_mount(self) -> None:
        self.query_one(OptionList).display = False
        self.set_interval(LOOK_SECONDS, self.read)
        self.read()

    def read(self) -> None:
        """Look at the queue and the GPUs in a thread."""
        if self._reading:
            return
        self._reading, root = True, self.app.store_root

        def work() -> None:
            try:
                self.post_message(ThreadAnswer("queue", importlib.import_module("console.readers.gpu_queue").read(root)))
            except Exception as error:
                # nothing in a store may end the console
                self.post_message(WorkFailed(filled("the queue cannot be read ({}: {})", type(error).__name__, error)))

        self.run_worker(work, group="queue", thread=True, exit_on_error=False)

    @on(WorkFailed)
    def _failed(self) -> None:
        self._reading = False  # the app shows the error

    @on(ThreadAnswer)
    def _answered(self, event: ThreadAnswer) -> None:
        self._reading = False
        self.times = event.value
        self.show()

    def on_resize(self) -> None:
        self.call_after_refresh(self.show)

    def show(self) -> None:
        """Draw what was read last; the cursor stays on its run."""
        times = self.times
        if times is None:
            return
        width = max(self.query_one(".dialog").content_size.width, 30)
        most = max(self.size.height - ROOM - min(len(times.waiting), 3), 2)
        picture, listed, none = self.query_one("#times", Static), self.query_one(OptionList), self.query_one("#none", Static)
        picture.display = self.query_one("#legend").display = bool(times.rows)
        if times.rows:
            picture.update(Content("\n").join(drawn(times.rows, width, most)))
        else:
            none.update(tr("nvidia-smi shows no GPU on this machine"))
        chosen = self.chosen
        listed.display, none.display = bool(times.waiting), not times.waiting
        if times.rows and not times.waiting:
            none.update(tr("no run waits for GPUs; one that is started while they are in use does"))
        lines = [self._line(place, item, width) for place, item in enumerate(times.waiting, 1)]
        if [str(option.prompt) for option in listed.options] != [str(line) for line in lines]:
            ids = [item.run.id for item in times.waiting]
            listed.clear_options()
            listed.add_options(Option(line, id=run_id) for line, run_id in zip(lines, ids, strict=True))
            if ids:
                listed.highlighted = ids.index(chosen) if chosen in ids else 0
        if times.waiting and self.focused is None:
            listed.focus()

    @staticmethod
    def _line(place: int, item: WaitingRun, width: int) -> Content:
        mark = ("‖", "$text-warning bold") if item.held else (GLYPHS[QUEUED], "$text-accent")
        name = one_line(item.run.id, max(width // 3, 18))
        room = max(width - len(name) - 8, 10)
        words = tr("held back; h lets it start") if item.held else phrase(item.words)
        for before, after in ((" free ", ""), (" in use, ", ""), ("", ", when ")):
            # the picture shows which GPUs; then the time is what matters
            if cell_width(words) > room and before in words and after in words:
                words = words.partition(before)[2] if before else words.partition(after)[0]
        colour = "$text-warning" if item.held else "$muted"
        return Content.assemble((f"{place:>2} ", "$muted"), mark, " ", (name, "bold"), "  ", (cut(one_line(words), room), colour))

    # actions

    @property
    def chosen(self) -> str | None:
        """The id of the run under the cursor."""
        listed = self.query_one(OptionList)
        option = listed.highlighted_option if listed.display else None
        return option.id if option is not None else None

    def _waiting(self) -> WaitingRun | None:
        run_id, times = self.chosen, self.times
        found = next((item for item in times.waiting if item.run.id == run_id), None) if times is not None else None
        if found is None:
            self.notify(tr("no run waits for GPUs"), severity="warning")
        return found

    def action_change(self, what: str) -> None:
        """Move the run under the cursor."""
        if (item := self._waiting()) is not None:
            self.app.change_queue(item.run.id, what, self.read)

    def action_hold(self) -> None:
        """Hold back the run under the cursor, or release it."""
        if (item := self._waiting()) is not None:
            self.app.change_queue(item.run.id, "release" if item.held else "hold", self.read)

    def action_cancel(self) -> None:
        """Take the run under the cursor out of the queue, after a question."""
        if (item := self._waiting()) is None:
            return
        run_id = item.run.id

        def answered(sure: bool | None) -> Any:
            return self.app.change_queue(run_id, "cancel", self.read) if sure else None

        words = tr("It waits for GPUs and has not started. A resume queues it again.")
        head = tr("Take {run} out of the queue?", run=run_id)
        self.app.push_screen(Confirm(head, words, tr("Take it out"), tr("Let it wait")), answered)

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)
