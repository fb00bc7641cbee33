"""Screen 4: captions of two models, or of one run's checkpoints, side by side as they are written; votes, blind on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical
from textual.content import Content
from textual.widgets import Input, Static

from console.actions import bindings_of
from console.formatting import error_text, one_line
from console.forms import check_here, read_plan
from console.messages import CaptionsRead, PictureRead, WorkFailed
from console.readers.captions import CompareFeed, CompareView, shuffled
from console.readers.form_defaults import prefill
from console.readers.run_rows import RunRow, Snapshot
from console.runs.captions import CaptionedPicture
from console.screens.base import WIDE, ConsoleScreen
from console.screens.checkpoints import PickModels
from console.screens.exporting import Exporting
from console.screens.full_picture import FullPicture
from console.screens.voting import Voting
from console.widgets.caption_columns import CaptionBox, CaptionColumns
from console.widgets.comparison_details import columns_of, details, status
from console.widgets.option_form import PREFIX, OptionForm
from console.widgets.picture import PictureWidget, read_picture
from console.widgets.picture_frame import PictureFrame
from console.widgets.steady_text import SteadyText
from qwen3vl_core.caption.comparison import SAME
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import printable
from qwen3vl_core.language import filled, tr
from qwen3vl_core.options import CompareOptions, from_mapping


class CompareScreen(Voting, Exporting, ConsoleScreen):
    """Form of a comparison, or the captions of `run_id`; without it, of the newest comparison."""

    MODE = "compare"
    BINDINGS = bindings_of("compare")
    AUTO_FOCUS = ""
    CSS_PATH: ClassVar = "compare.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.run_id: str | None = None
        self.row: RunRow | None = None
        self.view = CompareView()
        self.index = 0
        self.marked = True
        self.blind = ""
        """Seed that shuffles the captions of a blind comparison; empty otherwise."""
        self.revealed: set[str] = set()
        """Pictures whose models are revealed in a blind comparison."""
        self.feed = CompareFeed()
        self._picture_path = ""
        self._busy = self.outdated = False
        self._asked: bool | None = None

    def body(self) -> ComposeResult:
        with Horizontal(id="compare"):
            with Vertical(id="ask"):
                yield OptionForm(CompareOptions, prefill("compare", self.app.workspace, self.app.workspace_folder))
                yield Static(id="explained", markup=False)
            with Vertical(id="result"):
                yield SteadyText(id="headline")
                with Container(id="show"):
                    with Container(id="aside"):
                        with PictureFrame(id="frame"):
                            yield PictureWidget(id="picture")
                        yield SteadyText(id="about")
                    with Vertical(id="written"):
                        yield CaptionColumns(2, id="captions")
                        yield SteadyText(id="reference")
                yield SteadyText(id="nothing")

    # which run

    def show_snapshot(self, snapshot: Snapshot) -> None:
        newest = next((row.id for row in snapshot.rows if row.kind == "compare"), None)
        wanted = self.app.comparison or newest
        if wanted is not None and snapshot.get(wanted) is None:
            wanted = newest  # it was deleted
        if wanted != self.run_id:
            self.run_id, self.row, self.view, self.index, self.blind = wanted, None, CompareView(), 0, ""
        self.row = snapshot.get(self.run_id) or (self.row if self.run_id else None)
        if self._asked is None:
            # nothing to show yet: show the form
            self._ask(self.row is None)
        self._show()
        self.read()  # with every snapshot of the store

    def _ask(self, shown: bool) -> None:
        self._asked = shown
        self.set_class(shown, "-ask")
        if shown:
            self.query_one(OptionForm).focus_first()
        else:
            self._focus_caption()

    def _focus_caption(self) -> None:
        if boxes := self.query_one(CaptionColumns).boxes:
            boxes[0].focus()

    # reading

    def read(self) -> None:
        """Read new captions, unless a read is in progress."""
        if self.row is None or self._busy or self.app.current_mode != self.MODE:
            return
        self._busy = True
        run = self.row.run

        def look() -> None:
            try:
                self.post_message(CaptionsRead(run.id, self.feed.read(run)))
            except Exception as error:
                # no content of a run's files may crash the console
                self.post_message(WorkFailed(filled("{}: cannot be read ({}: {})", run.id, type(error).__name__, error)))

        self.in_thread(look, "captions")

    @on(WorkFailed)
    def _failed(self, event: WorkFailed) -> None:
        self._busy = False  # the app shows the error

    @on(CaptionsRead)
    async def _read(self, event: CaptionsRead) -> None:
        self._busy, outdated, self.outdated = False, self.outdated, False
        if event.run_id != self.run_id or outdated:
            self.read()
        elif event.samples is not self.view:
            self.view = event.samples
            self.index = min(self.index, max(len(self.samples) - 1, 0))
            await self.query_one(CaptionColumns).fit(max(len(self.view.names), 1))
            self._show()

    # what is shown

    @property
    def samples(self) -> tuple[CaptionedPicture, ...]:
        """The pictures of the comparison."""
        return self.view.samples

    @property
    def sample(self) -> CaptionedPicture | None:
        """The picture on screen."""
        return self.samples[self.index] if self.samples else None

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the models from left to right."""
        if self.blind and self.sample is not None:
            return shuffled(self.view.names, self.sample.image, self.blind)
        return self.view.names

    @property
    def hidden(self) -> bool:
        """Whether the models of the picture on screen are hidden."""
        return bool(self.blind) and self.sample is not None and self.sample.image not in self.revealed

    def _show(self) -> None:
        sample = self.sample
        self.set_class(sample is None, "-nothing")
        if sample is None:
            self.query_one("#nothing", SteadyText).update(self._nothing())
            return
        self._show_headline(sample)
        prompt, short = sample.prompt or self.view.head.prompt, self.size.width < WIDE
        self.query_one("#about", SteadyText).update(
            details(self.row, self.view, prompt, self._about_width, blind=bool(self.blind), short=short)
        )
        live = self.row is not None and self.row.alive
        self.query_one(CaptionColumns).show(
            columns_of(self.view, sample, self.order, hidden=self.hidden, blind=bool(self.blind), marked=self.marked, live=live)
        )
        reference = self.query_one("#reference", SteadyText)
        reference.display = bool(sample.references)
        lines = [Content.assemble((tr("reference") + "  ", "$muted"), printable(text).strip()) for text in sample.references]
        reference.update(Content("\n").join(lines))
        if sample.image != self._picture_path:
            self._picture_path = sample.image
            self._load(sample.image)

    @property
    def _about_width(self) -> int:
        return max(self.query_one("#about").size.width, 30)

    def _show_headline(self, sample: CaptionedPicture) -> None:
        vote = self.view.votes.choices.get(sample.image)
        whole = tr("{count} with both captions" if len(self.view.names) == 2 else "{count} with all captions", count=self.view.whole)
        parts: list[Any] = [
            (" " + tr("Picture {place}/{count}", place=self.index + 1, count=len(self.samples)) + " ", "bold"),
            (one_line(Path(sample.image).name, 40), ""),
            (f" · {whole}", "$muted"),
        ]  # fmt: skip
        voted = sum(sample.image in self.view.votes.choices for sample in self.samples)
        if voted:
            parts.append((" · " + tr("{count} voted", count=voted), "$muted"))
        if vote == SAME:
            parts.append((" · " + tr("voted: equally good"), "$text-success"))
        if self.blind:
            parts += ["  ", (f" {tr('BLIND')} ", "bold reverse")]
        self.query_one("#headline", SteadyText).update(Content.assemble(*parts))

    def _nothing(self) -> Content:
        row = self.row
        if row is None:
            return Content.assemble(
                (tr("No comparison yet.\n\n"), "bold"), tr("Choose two models and pictures, then "),
                ("enter", "bold $text-primary"), tr(": both write a caption of each picture.\n\n"),
                ("f2", "bold $text-primary"), tr("  chooses among the checkpoints of your runs; several are compared side by side."),
            )  # fmt: skip
        head = status(row) + Content("\n\n")
        if row.alive:
            return (
                head
                + Content(tr("the models are being loaded; captions appear as they are written\n\n"))
                + Content(one_line(row.last_line, 200)).stylize("$muted")
            )
        why = one_line(row.error or row.last_line or tr("it wrote no caption"), 400)
        return head + Content("✗ " + why).stylize("$text-error") + Content(tr("\n\n3 shows its log, t the form"))

    # the picture

    def _load(self, path: str) -> None:
        def look() -> None:
            try:
                self.post_message(PictureRead(path, read_picture(path)))
            except Exception as error:
                self.post_message(PictureRead(path, None, one_line(error_text(error))))

        self.in_thread(look, "picture")

    @on(PictureRead)
    def _picture(self, event: PictureRead) -> None:
        if event.path != self._picture_path:
            return
        self.query_one(PictureFrame).show(event.picture)
        if event.problem:
            self.notify(event.problem, severity="warning", markup=False)

    @on(OptionForm.Explained)
    def _explained(self, event: OptionForm.Explained) -> None:
        self.query_one("#explained", Static).update(event.text)

    def on_resize(self, event: events.Resize) -> None:
        if self.is_mounted:
            self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        self._show()

    # starting

    @on(Input.Submitted)
    def action_start(self) -> None:
        """Start a run in which the models write captions."""
        form = self.query_one(OptionForm)
        if not self.has_class("-ask"):
            self.action_form()  # without changes enter starts the run that was checked
            return
        plan = read_plan("compare", form.texts())
        problem = plan.problem or check_here("compare", plan.options)[0]
        if problem:
            self.notify(problem, title="Not started", severity="error", markup=False)
            return
        self.app.ask_to_start("compare", plan.options, self.MODE, then=form.keep)

    def started(self) -> None:
        """The run of this form was started."""
        self._ask(False)
        self.show_snapshot(self.app.snapshot)

    def action_another_seed(self) -> None:
        """Run this comparison again with the next seed."""
        if self.row is None:
            self.notify("there is no comparison yet; t opens its form", severity="warning")
            return
        try:
            options = from_mapping(CompareOptions, self.row.run.options)
        except RequestError as error:
            self.notify(error.shown, severity="error", markup=False)
            return
        if not options.temperature:
            self.notify("decoding is greedy, so every seed gives the same captions; set a temperature in the form: t", severity="warning")
            return
        options.seed += 1
        self.app.ask_to_start("compare", options, self.MODE)

    def workspace_opened(self) -> None:
        """The app uses another workspace now."""
        self.query_one(OptionForm).fill(prefill("compare", self.app.workspace, self.app.workspace_folder))
        self._asked = None

    def open_form(self, values: Mapping[str, Any]) -> None:
        """Show the form with these values."""
        self.query_one(OptionForm).change_values("the new form", values)
        self._ask(True)

    def action_clone(self) -> None:
        """The form with the options of this comparison."""
        if self.row is None:
            self.notify("there is no comparison yet; t opens its form", severity="warning")
        else:
            self.open_form(self.row.run.options)

    def action_undo(self) -> None:
        """Take back what was put into the form at once."""
        what = self.query_one(OptionForm).undo()
        self.notify(
            tr("{what} was taken back", what=tr(what)) if what else tr("nothing to take back"),
            severity="information" if what else "warning",
            timeout=2,
        )

    @property
    def edited(self) -> bool:
        """Whether leaving the console would lose input."""
        return self.has_class("-ask") and self.query_one(OptionForm).edited

    def useful(self, action: str) -> bool:
        asks, row = self.has_class("-ask"), self.row
        if action in ("compare.start", "compare.start_field"):
            return asks
        if action == "compare.undo":
            return asks and bool(self.query_one(OptionForm).history)
        if action in ("compare.form", "compare.models", "compare.leave"):
            return True
        if row is None or self.sample is None:
            return False
        if action in ("compare.before", "compare.after"):
            return len(self.samples) > 1
        return action != "compare.reveal" or self.hidden

    def action_models(self) -> None:
        """Choose checkpoints of runs and put them into the form."""
        form = self.query_one(OptionForm)
        base = str(form.texts()["base"])
        rows = [row for row in self.app.snapshot.rows if row.kind == "finetune"]
        hf = [str(self.app.workspace[key]) for key in ("tuned_hf", "base") if key in self.app.workspace]

        def chosen(models: list[str] | None) -> None:
            if models:
                form.change_values("the models", {"tuned": models})
                self._ask(True)
                form.query_one(f"#{PREFIX}{'base' if not base else 'prompt'}").focus()

        self.app.push_screen(PickModels([row.run for row in rows], hf), chosen)

    # looking around

    def action_turn(self, step: int) -> None:
        """Another picture: the next (1), the previous (-1), around the ends."""
        if self.samples:
            self.index = (self.index + step) % len(self.samples)
            self.query_one(CaptionColumns).top()
            self._show()

    def action_ends(self, last: bool) -> None:
        if self.samples:
            self.index = len(self.samples) - 1 if last else 0
            self.action_turn(0)

    def action_other(self, step: int) -> None:
        """Show an older (1) or newer (-1) comparison."""
        ids = [row.id for row in self.app.snapshot.rows if row.kind == "compare"]
        place = ids.index(self.run_id) + step if self.run_id in ids else 0
        if 0 <= place < len(ids):
            self.app.comparison = ids[place]
            self._ask(False)
            self.show_snapshot(self.app.snapshot)
        else:
            self.notify("there is no older comparison" if step > 0 else "there is no newer comparison")

    def action_words(self) -> None:
        self.marked = not self.marked
        self._show()

    def action_full(self) -> None:
        if self.sample is None:
            return
        if self.app.is_web:
            self.app.open_url(Path(self.sample.image).absolute().as_uri())
        else:
            self.app.push_screen(FullPicture(self.sample.image))

    # the form

    def action_form(self) -> None:
        """Show the form with the focus on the prompt, or the captions again."""
        shown = not self.has_class("-ask")
        self._ask(shown)
        if shown and self.query_one(OptionForm).texts()["base"]:
            self.query_one(f"#{PREFIX}prompt").focus()
        self._show()
        self.call_after_refresh(self._resized)

    def action_stop(self) -> None:
        self.ask_to_stop(self.row)

    def action_leave(self) -> None:
        """Leave a field, or go back to the captions if there are any."""
        if self.has_class("-ask") and self.row is not None:
            self._ask(False)
            self.call_after_refresh(self._resized)
        elif self.has_class("-ask"):
            self.set_focus(None)
        else:
            self._focus_caption()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action != "leave" or not isinstance(self.focused, CaptionBox)
