"""Dialog to choose among the checkpoints that runs have saved, including live runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Label, SelectionList, Static
from textual.widgets.selection_list import Selection

from console.formatting import GLYPHS
from console.runs.series import MetricSeries
from console.runs.store import Run
from console.screens.dialog import Dialog
from console.widgets.key_hints import Hints
from console.widgets.mark_list import MarkList
from qwen3vl_core.formats import number
from qwen3vl_core.language import tr
from qwen3vl_core.run_metrics import LOSS
from qwen3vl_core.run_record import CHECKPOINTS, ITERATION, checkpoint_step

MOST_RUNS = 40
"""Number of newest finetunes that are listed."""


@dataclass(frozen=True)
class SavedModel:
    """One model that can be compared."""

    path: str
    run: str = ""
    status: str = ""
    step: int | None = None
    loss: float | None = None
    """Training loss at that step."""


def saved_by(run: Run) -> list[SavedModel]:
    """The complete checkpoints of a run, newest first. Blocking."""
    steps = []
    for folder in (run.path / CHECKPOINTS).glob(f"{ITERATION}*"):
        step = checkpoint_step(folder.name)
        if step is not None and (folder / ".metadata").is_file():
            steps.append((step, folder))
    if not steps:
        return []
    losses: dict[int, float] = {}
    series = MetricSeries(run.metrics)
    series.update()
    if LOSS in series.keys:
        losses = dict(zip(map(int, series.xy(LOSS)[0]), map(float, series.xy(LOSS)[1]), strict=True))
    status = run.status
    return [SavedModel(str(folder), run.id, status, step, losses.get(step)) for step, folder in sorted(steps, reverse=True)]


class PickModels(Dialog[list[str] | None]):
    """Choice of models to compare with the base. Returns their paths, or None if cancelled."""

    class CheckpointsFound(Message):
        """The checkpoints of the runs are listed."""

        def __init__(self, saved: list[SavedModel]) -> None:
            self.saved = saved
            super().__init__()

    BINDINGS: ClassVar = [
        Binding("escape", "leave", "leave"),
        Binding("enter", "done", "done", priority=True),
    ]

    def __init__(self, runs: Iterable[Run], others: Iterable[str] = ()) -> None:
        """runs: newest first. others: paths of models that no run saved."""
        super().__init__()
        self.runs, self.others = list(runs)[:MOST_RUNS], list(others)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label(tr("Models to compare with the base"), classes="headline")
            yield MarkList[str]()
            yield Static(tr("searching the runs …"), id="found", classes="hint")
            yield Hints(("space", "marks: several are compared side by side"), ("enter", "selects them"), ("escape", "cancels"))

    def on_mount(self) -> None:
        def look() -> None:
            saved = [one for run in self.runs for one in saved_by(run)]
            saved += [SavedModel(path) for path in self.others if Path(path).is_dir()]
            self.post_message(self.CheckpointsFound(saved))

        self.run_worker(look, thread=True, exit_on_error=False)

    def on_pick_models_checkpoints_found(self, event: CheckpointsFound) -> None:
        choice, status = self.query_one(SelectionList), self.query_one("#found", Static)
        choice.add_options(Selection(self._line(one), one.path) for one in event.saved)
        status.display = not event.saved
        status.update(tr("no run has saved a checkpoint yet; give the path of a model in the form"))
        choice.focus()
        if event.saved:
            choice.highlighted = 0

    @staticmethod
    def _line(one: SavedModel) -> Content:
        if one.step is None:
            return Content.assemble((tr("model") + "  ", "$muted"), "/".join(Path(one.path).parts[-2:]))
        loss = "  " + tr("loss") + f" {number(one.loss)}" if one.loss is not None else ""
        return Content.assemble(
            f"{one.run}  " + tr("step {step:,}", step=one.step), (f"{loss}  {GLYPHS.get(one.status, '?')} {tr(one.status)}", "$muted")
        )

    def action_done(self) -> None:
        """Give the marked models, without any the highlighted one; checkpoints of one run as they were saved."""
        choice = self.query_one(SelectionList)
        chosen = list(choice.selected)
        if not chosen and choice.highlighted is not None and choice.option_count:
            # without marks: the one under the cursor
            chosen = [choice.get_option_at_index(choice.highlighted).value]
        order = {choice.get_option_at_index(place).value: place for place in range(choice.option_count)}
        # checkpoints of one run from left to right in the order in which they were saved
        self.dismiss(sorted(chosen, key=lambda path: -order[path]))

    def action_leave(self) -> None:
        """Give None."""
        self.dismiss(None)
