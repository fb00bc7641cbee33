"""Captions of the same pictures at several steps of a finetune: how they change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from console.formatting import one_line
from console.widgets.caption import with_new_words
from qwen3vl_core.formats import printable
from qwen3vl_core.language import tr

if TYPE_CHECKING:
    from console.runs.caption_history import CaptionHistory

SHOWN = 12
"""Number of captions per picture that are shown: the latest and the first."""


class SamplePane(VerticalScroll, can_focus=True):
    """Shows the captions of each picture over the steps, with the new words of each caption underlined."""

    HELP = "Captions of --sample-images over the steps. Words that were not in the caption before are underlined."
    BINDINGS: ClassVar = [
        Binding("home", "scroll_home", show=False), Binding("end", "scroll_end", show=False),
        Binding("pageup", "page_up", show=False), Binding("pagedown", "page_down", show=False),
    ]  # fmt: skip

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown: tuple[CaptionHistory, ...] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="stories")

    def show(self, stories: tuple[CaptionHistory, ...]) -> None:
        """Show these captions, unless they are already shown."""
        if stories == self._shown:
            return
        self._shown = stories
        self.query_one("#stories", Static).update(content_of(stories))


def content_of(stories: tuple[CaptionHistory, ...]) -> Content:
    """Each picture with its captions, oldest first."""
    if not stories:
        return Content.assemble(
            (tr("No captions yet.\n"), "bold"),
            (tr("--sample-images PICTURES --sample-interval STEPS make a finetune write some during training."), "$muted"),
        )
    lines: list[Content] = []
    for story in stories:
        head = Content.assemble((one_line(Path(story.image).name, 60), "bold"), (f"  {one_line(story.prompt, 120)}", "$muted"))
        lines += [*([Content("")] if lines else []), head]
        captions = story.captions
        left_out = len(captions) - SHOWN
        before = ""
        for index, (step, text) in enumerate(captions):
            if left_out > 0 and 0 < index <= left_out:
                if index == 1:
                    lines.append(Content(" " * 11 + tr("… {count} captions between", count=left_out)).stylize("$muted"))
                before = text
                continue
            written = " ".join(printable(text).split())
            body = with_new_words(" ".join(printable(before).split()), written) if written else Content(tr("(nothing)")).stylize("$muted")
            lines.append(
                Content.assemble((tr("step {step:>6,}", step=step) if step is not None else f"{'':>11}", "$text-primary"), "  ", body)
            )
            before = text
    return Content("\n").join(lines)
