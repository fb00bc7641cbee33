"""Dialog to choose the GPUs of a run, with who uses each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Label, SelectionList, Static
from textual.widgets.selection_list import Selection

from console.formatting import BLOCKS, gpu_text, one_line
from console.screens.dialog import Dialog
from console.widgets.key_hints import Hints
from console.widgets.mark_list import MarkList
from qwen3vl_core.language import tr
from qwen3vl_core.layout.gpus import GpuUse

BAR = 8
"""Cells of the bar of a GPU's memory."""


class PickGpus(Dialog[str | None]):
    """Choice of GPUs. Returns their indices as `4,5,6,7`, an empty text for all of them, or None if cancelled."""

    BINDINGS: ClassVar = [
        Binding("escape,q,v", "dismiss(None)", "leave"),
        Binding("f", "free", "the free ones"),
        Binding("a", "all", "all"),
        Binding("enter", "done", "done", priority=True),
    ]

    def __init__(self, gpus: Iterable[GpuUse], chosen: Collection[str]) -> None:
        """chosen: indices that are marked at first; empty: those of the free GPUs."""
        super().__init__()
        self.gpus = list(gpus)
        self.chosen = set(chosen) or {gpu.index for gpu in self.gpus if gpu.free}

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Label(tr("GPUs of this run"), classes="headline")
            yield MarkList[str](*(Selection(self._line(gpu), gpu.index, gpu.index in self.chosen) for gpu in self.gpus))
            yield Static(id="summary", classes="hint", markup=False)
            yield Hints(("space", "marks"), ("f", "the free ones"), ("a", "all"), ("enter", "takes them"), ("escape", "leaves"))

    def on_mount(self) -> None:
        marks = self.query_one(SelectionList)
        marks.focus()
        marks.highlighted = 0
        self._summarize()

    @staticmethod
    def _line(gpu: GpuUse) -> Content:
        share = min(gpu.used_gib / gpu.total_gib, 1.0)
        full = round(share * BAR)
        colour = "$text-success" if gpu.free else "$text-primary" if gpu.run else "$text-warning"
        return Content.assemble(
            (f"GPU {gpu.index:<3}", "bold"), (BLOCKS[-1] * full, colour), ("·" * (BAR - full), "$muted"),
            f" {gpu.used_gib:5.1f} " + tr("of {total:.0f} GiB", total=gpu.total_gib) + "  ", (one_line(gpu_text(gpu), 40), colour),
            (f"  {one_line(gpu.name, 40)}", "$muted"),
        )  # fmt: skip

    def on_selection_list_selected_changed(self) -> None:
        self._summarize()

    def _summarize(self) -> None:
        """How many are marked, and how many of these others use."""
        marked = [gpu for gpu in self.gpus if gpu.index in self.query_one(SelectionList).selected]
        shared = [gpu.index for gpu in marked if not gpu.free]
        text = tr("{marked} of {count} marked", marked=len(marked), count=len(self.gpus))
        if shared:
            text += tr("; in use: GPU {gpus}", gpus=", ".join(shared))
        self.query_one("#summary", Static).update(text)

    def _mark(self, wanted: Iterable[GpuUse]) -> None:
        marks = self.query_one(SelectionList)
        marks.deselect_all()
        for gpu in wanted:
            marks.select(gpu.index)

    def action_free(self) -> None:
        """Mark the free ones."""
        self._mark(gpu for gpu in self.gpus if gpu.free)

    def action_all(self) -> None:
        """Mark all of them."""
        self._mark(self.gpus)

    def action_done(self) -> None:
        """Give the marked ones."""
        marked = [gpu.index for gpu in self.gpus if gpu.index in self.query_one(SelectionList).selected]
        if not marked:
            self.notify("mark at least one GPU; a marks all", severity="warning")
            return
        self.dismiss("" if len(marked) == len(self.gpus) else ",".join(marked))
