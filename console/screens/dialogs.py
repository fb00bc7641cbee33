"""Dialogs over a screen: confirmations, a comparison of two runs, choices of runs, metrics and presets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Button, Label, OptionList, SelectionList, Static
from textual.widgets.option_list import Option
from textual.widgets.selection_list import Selection

from console.formatting import cut, error_text, metric_title, one_line
from console.forms import text_of
from console.readers.run_rows import RunRow
from console.runs.launch import disk_usage
from console.runs.run_json import differences
from console.runs.run_text import NO_DIFFERENCE, comparison_rows
from console.runs.store import Run
from console.screens.dialog import Dialog
from console.widgets.key_hints import Hints
from console.widgets.mark_list import MarkList
from qwen3vl_core.cells import padded, width
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.formats import number, quantity, span
from qwen3vl_core.language import tr
from qwen3vl_core.options import Option as OptionField
from qwen3vl_core.run_metrics import LOSS
from qwen3vl_core.run_record import QUEUED

NAMED = 6
"""Number of runs that a confirmation names."""


class YesNo(Dialog[bool]):
    """A question with the buttons `yes` and `no`. Returns True for yes."""

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, sure: bool) -> None:
        self.dismiss(sure)


class Confirm(YesNo):
    """Asks before something starts. Returns True for yes."""

    BINDINGS: ClassVar = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
        Binding("left,right,up,down", "app.focus_next", show=False),
    ]

    def __init__(self, head: str, text: str, yes: str, no: str = "") -> None:
        super().__init__()
        self.head, self.text, self.yes, self.no = head, text, yes, no or tr("Not now")

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(self.head, classes="headline", markup=False)
            with VerticalScroll(classes="words", can_focus=False):
                yield Static(self.text, markup=False)
            with Horizontal(classes="buttons"):
                yield Button(f"y  {self.yes}", id="yes", variant="primary", compact=True)
                yield Button(f"n  {self.no}", id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#yes").focus()


class ConfirmStop(YesNo):
    """Asks for confirmation before a run is stopped. Returns True for yes."""

    BINDINGS: ClassVar = [
        Binding("y", "answer(True)", "stop it"),
        Binding("n,escape", "answer(False)", "keep it running"),
        Binding("left,right,up,down", "app.focus_next", show=False),
    ]

    def __init__(self, row: RunRow) -> None:
        super().__init__()
        self.row = row

    def question(self) -> tuple[str, str]:
        """(headline, details)."""
        row = self.row
        if row.status == "lost":
            return tr("End what is left of {run}?", run=row.id), tr(
                "Its supervisor is gone. Processes that still carry its name are ended."
            )
        if row.status == QUEUED:
            return tr("Take {run} out of the queue?", run=row.id), tr("It waits for GPUs and has not started. A resume queues it again.")
        step = ""
        if row.step is not None:
            step = tr(", step {step:,}", step=row.step) + (tr(" of {total:,}", total=row.total) if row.total else "")
        kept = (
            tr("Last: {checkpoint}.", checkpoint=row.checkpoint_text)
            if row.kind == "finetune"
            else tr("It saves no checkpoints: a resume starts from the beginning.")
        )
        text = tr(
            "It runs for {time}{step}.\n{kept}\nIt is asked to stop and has a minute to do so.",
            time=span(row.age(time.time())),
            step=step,
            kept=kept,
        )
        return tr("Stop {run}?", run=row.id), text

    def compose(self) -> ComposeResult:
        head, text = self.question()
        with Vertical(classes="dialog"):
            yield Label(head, classes="headline", markup=False)
            yield Static(text, markup=False)
            queued = self.row.status == QUEUED
            with Horizontal(classes="buttons"):
                yield Button("y  " + tr("Take it out" if queued else "Stop it"), id="yes", variant="error", compact=True)
                yield Button("n  " + tr("Let it wait" if queued else "Keep it running"), id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#no").focus()


class ConfirmDelete(YesNo):
    """Asks for confirmation before runs are deleted, and shows how much space that frees. Returns True for yes."""

    BINDINGS: ClassVar = [Binding("y", "answer(True)", "delete"), *ConfirmStop.BINDINGS[1:]]

    class Measured(Message):
        """The sizes of the folders have been computed."""

        def __init__(self, size: int) -> None:
            self.size = size
            super().__init__()

    def __init__(self, rows: list[RunRow]) -> None:
        super().__init__()
        self.rows = rows

    def compose(self) -> ComposeResult:
        several = len(self.rows) > 1
        head = tr("Delete {count} runs?", count=len(self.rows)) if several else tr("Delete {run}?", run=self.rows[0].id)
        names = "\n".join(f"  {row.id}  {tr(row.status)}" for row in self.rows[:NAMED])
        names += "\n  " + tr("and {count} more", count=len(self.rows) - NAMED) if len(self.rows) > NAMED else ""
        kept = [row for row in self.rows if row.checkpoint]
        last = (tr("checkpoints") if several or len(kept) > 1 else kept[0].checkpoint_text) if kept else tr("plan")
        what = tr("With their log, metrics and {last}" if several else "With its log, metrics and {last}", last=last)
        with Vertical(classes="dialog"):
            yield Label(head, classes="headline", markup=False)
            yield Static((names + "\n\n" if several else "") + what + tr(". This cannot be undone."), markup=False)
            yield Static(tr("frees …"), id="freed")
            with Horizontal(classes="buttons"):
                yield Button("y  " + tr("Delete"), id="yes", variant="error", compact=True)
                yield Button("n  " + tr("Keep"), id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#no").focus()
        paths = [row.run.path for row in self.rows]
        self.run_worker(lambda: self.post_message(self.Measured(sum(map(disk_usage, paths)))), thread=True, exit_on_error=False)

    def on_confirm_delete_measured(self, event: Measured) -> None:
        self.query_one("#freed", Static).update(tr("frees {size}", size=quantity(event.size, "B")))


class Difference(Dialog[None]):
    """Diff of the options of two runs, and their last metrics."""

    BINDINGS: ClassVar = [Binding("escape,d,q,enter", "dismiss", "close")]

    def __init__(self, first: Run, second: Run) -> None:
        super().__init__()
        self.runs = first, second

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label(tr("Difference"), classes="headline")
            with VerticalScroll(classes="words"):
                yield Static(id="difference", markup=False)
            yield Hints(("escape", "closes"))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self._fill()

    def on_resize(self) -> None:
        self._fill()

    def _fill(self) -> None:
        room = max(self.query_one("#difference").size.width, 30)
        table = self.query_one("#difference", Static)
        difference = differences(*self.runs)
        rows = comparison_rows(difference)
        left = min(max(width(tr(what)) for what, *_ in rows), 24)
        each = max((room - left - 4) // 2, 8)
        lines = []
        for index, (what, *pair) in enumerate(rows):
            cells = [one_line(value, each).ljust(each) for value in pair]
            line = Content.assemble(
                (padded(cut(tr(what), left), left), "$muted"), "  ", (cells[0], "bold" if not index else "$line-0"), "  ",
                (cells[1], "bold" if not index else "$line-1"),
            )  # fmt: skip
            lines.append(line)
        if not difference["options"]:
            lines.append(Content(tr(NO_DIFFERENCE)).stylize("$muted"))
        table.update(Content("\n").join(lines))


class ChangedOptions(Dialog[None]):
    """The options of a form that differ from their defaults."""

    BINDINGS: ClassVar = [Binding("escape,d,q,enter", "dismiss", "close")]

    def __init__(self, kind: str, options: Mapping[str, OptionField], texts: Mapping[str, str | bool]) -> None:
        super().__init__()
        self.kind, self.options, self.texts = kind, options, texts

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label(tr("Options of this {kind} that differ", kind=self.kind), classes="headline")
            with VerticalScroll(classes="words"):
                yield Static(self._table(), markup=False)
            yield Hints(("escape", "closes"))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def _table(self) -> Content:
        lines = []
        for name, option in self.options.items():
            before, now = text_of(option, option.default), self.texts[name]
            if now != before:
                said = [(tr("on") if text is True else tr("off") if text is False else str(text) or "–") for text in (before, now)]
                lines.append(Content.assemble((f"{option.flag:<26}", "$muted"), f"{one_line(said[0], 24)} → ", (one_line(said[1]), "bold")))
        return Content("\n").join(lines) if lines else Content(tr("none: every option has its default")).stylize("$muted")


class PickRuns(Dialog[list[str] | None]):
    """Choice of runs to overlay. Returns their ids, or None if cancelled."""

    BINDINGS: ClassVar = [
        Binding("escape,q", "leave", "leave"),
        Binding("o", "done", "done"),
        Binding("enter", "done", "done", priority=True),
    ]

    def __init__(self, rows: Iterable[RunRow], chosen: Iterable[str]) -> None:
        super().__init__()
        self.rows, self.chosen = list(rows), set(chosen)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(tr("Runs over this one"), classes="headline")
            yield MarkList[str](
                *(
                    Selection(Content(f"{row.id}  {metric_title(LOSS)} {number(row.metrics.get(LOSS))}"), row.id, row.id in self.chosen)
                    for row in self.rows
                )
            )
            yield Hints(("space", "marks"), ("enter", "shows them"), ("escape", "leaves"))

    def action_done(self) -> None:
        self.dismiss(list(self.query_one(SelectionList).selected))

    def action_leave(self) -> None:
        self.dismiss(None)


class PickMetric(Dialog[str | None]):
    """Choice among a run's metrics. Returns its name, or None if cancelled."""

    BINDINGS: ClassVar = [Binding("escape,v,q", "dismiss(None)", "leave")]

    def __init__(self, choices: Iterable[tuple[str, str, Any]], current: str) -> None:
        """choices: (name, title, last value)."""
        super().__init__()
        self.choices, self.current = list(choices), current

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(tr("Metric"), classes="headline")
            yield OptionList(*(
                Option(Content.assemble((padded(one_line(title, 34), 36), "bold"), (number(value), "$muted")))
                for _, title, value in self.choices
            ))  # fmt: skip
            yield Hints(("enter", "shows it"), ("escape", "leaves"))

    def on_mount(self) -> None:
        names = [name for name, _, _ in self.choices]
        if self.current in names:
            self.query_one(OptionList).highlighted = names.index(self.current)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.choices[event.option_index][0])


def layout_words(values: Mapping[str, Any]) -> str:
    """`TP 2, sequence-parallel`: the options of a layout that differ from those of a single process."""
    words = []
    for name, value in values.items():
        plain = name.upper() if len(name) < 4 else name.replace("_", "-")
        if value is True:
            words.append(plain)
        elif value not in (1, 0, False, "none"):
            words.append(f"{plain} {value}")
    return ", ".join(words) or tr("no parallel layout")


class PickPreset(Dialog[dict[str, Any] | None]):
    """Choice of named presets and of layouts that fit. Returns their values, or None if cancelled."""

    BINDINGS: ClassVar = [Binding("escape,p,q", "dismiss(None)", "leave")]

    class PresetsFound(Message):
        """The layouts have been computed, or could not be."""

        def __init__(self, layouts: list[dict[str, Any]], problem: str = "") -> None:
            self.layouts, self.problem = layouts, problem
            super().__init__()

    def __init__(self, presets: Iterable[tuple[str, str, dict[str, Any]]], ask: Callable[[], list[dict[str, Any]]] | None) -> None:
        """ask: a blocking function that returns layouts, like `suggestions`."""
        super().__init__()
        self.presets, self.ask = list(presets), ask
        self.values = [values for _, _, values in self.presets]

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label(tr("Presets"), classes="headline")
            yield OptionList(*(
                Option(Content.assemble((padded(tr(name), 16), "bold"), (tr(about), "$muted"))) for name, about, _ in self.presets
            ))  # fmt: skip
            yield Static(tr("computing layouts …") if self.ask else "", id="looking", classes="hint", markup=False)
            yield Hints(("enter", "applies it"), ("escape", "leaves"))

    def on_mount(self) -> None:
        ask = self.ask
        if ask is None:
            return

        def work() -> None:
            try:
                self.post_message(self.PresetsFound(ask()))
            except (RequestError, WorkError, OSError) as error:
                self.post_message(self.PresetsFound([], error_text(error)))

        self.run_worker(work, thread=True, exit_on_error=False)

    def on_pick_preset_presets_found(self, event: PresetsFound) -> None:
        rows = self.query_one(OptionList)
        for layout in event.layouts:
            text = Content.assemble(
                ("✓ " if layout["fits"] else "✗ ", "$text-success" if layout["fits"] else "$text-error"),
                (f"{layout['gib']:>6.1f} GiB  {number(layout['seconds'], 3):>6} s/step  DP {layout['dp']:<3}", "bold"),
                ("  " + layout_words(layout["values"]), "$muted"),
                *(((f"\n    {layout['price']}", "$muted"),) if layout["price"] else ()),
            )  # fmt: skip
            rows.add_option(Option(text))
            self.values.append(layout["values"])
        note = event.problem or tr("no layout is valid for these GPUs; change --global-batch-size")
        if event.layouts:
            gpus, card = event.layouts[0]["gpus"], event.layouts[0]["of"]
            note = tr(
                "layouts for {count} GPUs of {memory} GiB, fastest first"
                if gpus > 1
                else "layouts for {count} GPU of {memory} GiB, fastest first",
                count=gpus,
                memory=f"{card:g}",
            )
        self.query_one("#looking", Static).update(note)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.values[event.option_index])
