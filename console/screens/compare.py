"""Screen 4: captions of two models side by side, as they are written."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from console.actions import bindings_of
from console.messages import CaptionsRead, PictureRead, WorkFailed
from console.screens.base import WIDE, ConsoleScreen
from console.screens.feed import Caption, CaptionFeed, Sample
from console.screens.plan import check_here, prefill, read_plan
from console.screens.watch import RunRow, Snapshot
from console.widgets.caption import count_words, pair
from console.widgets.optionform import OptionForm
from console.widgets.picture import PictureWidget, read_picture
from console.widgets.words import COLOURS, GLYPHS, one_line, printable
from qwen3vl_core.options import CompareOptions

READ_SECONDS = 0.5
MODELS = ("base", "tuned")


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else value


class CaptionBox(VerticalScroll, inherit_bindings=False):
    """Scrolls up and down only: left and right turn to another picture."""

    BINDINGS: ClassVar = [
        Binding("up", "scroll_up", show=False), Binding("down", "scroll_down", show=False),
        Binding("pageup", "page_up", show=False), Binding("pagedown", "page_down", show=False),
        Binding("home", "scroll_home", show=False), Binding("end", "scroll_end", show=False),
    ]  # fmt: skip


class CompareScreen(ConsoleScreen):
    """Form of a comparison; the captions of `run_id`, without one of the newest comparison."""

    MODE = "compare"
    BINDINGS = bindings_of("compare")
    AUTO_FOCUS = ""

    def __init__(self) -> None:
        super().__init__()
        self.run_id: str | None = None
        self.row: RunRow | None = None
        self.samples: tuple[Sample, ...] = ()
        self.index = 0
        self.marked = True
        self.feed = CaptionFeed()
        self._picture_path = ""
        self._busy = False
        self._asked: bool | None = None

    def body(self) -> ComposeResult:
        with Horizontal(id="compare"):
            with Vertical(id="ask"):
                yield OptionForm(CompareOptions, prefill("compare", self.app.workspace, self.app.workspace_folder))
                yield Static(id="explained", markup=False)
            with Vertical(id="result"):
                yield Static(id="headline")
                with Horizontal(id="picture-place"):
                    yield PictureWidget(id="picture")
                    yield Static(id="about")
                with Horizontal(id="captions"):
                    for model in MODELS:
                        with CaptionBox(id=model, classes="caption"):
                            yield Static(id=f"{model}-text")
                yield Static(id="nothing")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#ask").border_title = "Comparison"
        self.set_interval(READ_SECONDS, self.read)

    # which run

    def show_snapshot(self, snapshot: Snapshot) -> None:
        newest = next((row.id for row in snapshot.rows if row.kind == "compare"), None)
        wanted = self.app.comparison or newest
        if wanted != self.run_id:
            self.run_id, self.row, self.samples, self.index = wanted, None, (), 0
        self.row = snapshot.get(self.run_id) or self.row
        if self._asked is None:
            # nothing to look at yet: ask; a wide screen has room for both
            self._ask(self.row is None or self.size.width >= WIDE)
        self._show()
        self.read()

    def _ask(self, shown: bool) -> None:
        self._asked = shown
        self.set_class(shown, "-ask")
        if shown and (self.row is None or self.size.width < WIDE):
            self.query_one(OptionForm).focus_first()
        elif not shown or self.focused is None:
            self.query_one("#base").focus()

    # reading

    def read(self) -> None:
        """Look for new captions, unless a look is under way."""
        if self.row is None or self._busy or self.app.current_mode != self.MODE:
            return
        self._busy = True
        run = self.row.run

        def look() -> None:
            try:
                self.post_message(CaptionsRead(run.id, self.feed.read(run)))
            except Exception as error:
                # whatever a run's files hold must not end the console
                self.post_message(WorkFailed(f"{run.id}: cannot be read ({type(error).__name__}: {error})"))

        self.in_thread(look, "captions")

    @on(WorkFailed)
    def _failed(self, event: WorkFailed) -> None:
        self._busy = False  # the app says it

    @on(CaptionsRead)
    def _read(self, event: CaptionsRead) -> None:
        self._busy = False
        if event.run_id == self.run_id:
            if event.samples != self.samples:
                self.samples = event.samples
                self.index = min(self.index, max(len(self.samples) - 1, 0))
            self._show()
        else:
            self.read()

    # what is shown

    @property
    def sample(self) -> Sample | None:
        """The picture on screen."""
        return self.samples[self.index] if self.samples else None

    def _show(self) -> None:
        sample = self.sample
        self.set_class(sample is None, "-nothing")
        if sample is None:
            self.query_one("#nothing", Static).update(self._nothing())
            return
        self._show_headline(sample)
        captions = [sample.captions.get(model, Caption()) for model in MODELS]
        # while a caption grows everything not yet written would count as a difference
        whole = all(caption.done and caption.text for caption in captions)
        contents = pair(captions[0].text, captions[1].text, self.marked and whole)
        for model, caption, content in zip(MODELS, captions, contents, strict=True):
            box = self.query_one(f"#{model}")
            count = f" · {count_words(caption.text)} words" if caption.text else ""
            box.border_title = Content(f"{model}{count}" + ("" if caption.done or not caption.text else " …"))
            if not caption.text:
                live = self.row is not None and self.row.alive
                words = "not written yet …" if live and not caption.done else "empty" if caption.done else "not written"
                content = Content(words).stylize("$muted")
            self.query_one(f"#{model}-text", Static).update(content)
        if sample.image != self._picture_path:
            self._picture_path = sample.image
            self._load(sample.image)

    def _show_headline(self, sample: Sample) -> None:
        done = sum(all(s.captions.get(m, Caption()).done for m in MODELS) for s in self.samples)
        head = Content.assemble(
            (f" Picture {self.index + 1}/{len(self.samples)} ", "bold"), (one_line(Path(sample.image).name, 40), ""),
            (f" · {done} with both captions", "$muted"),
        )  # fmt: skip
        self.query_one("#headline", Static).update(head)
        lines = []
        if self.row is not None:
            colour = COLOURS.get(self.row.status, "muted")
            lines.append(Content.assemble(
                (self.row.id, "bold"), "  ", (f"{GLYPHS.get(self.row.status, '?')} {self.row.status}", f"${colour}"),
            ))  # fmt: skip
            get = self.row.run.options.get
            temperature = get("temperature") or 0
            lines.append(Content(f"“{printable(sample.prompt).strip()}”"))
            lines.append(Content("greedy" if not temperature else f"temperature {temperature} · seed {get('seed')}").stylize("$muted"))
            for model in MODELS:
                lines.append(Content.assemble((f"{model:<6}", "$muted"), printable(Path(str(_first(get(model)) or "?")).name)))
            if self.row.alive and self.row.last_line:
                lines.append(Content(one_line(self.row.last_line, 160)).stylize("$muted"))
            if self.row.status in ("failed", "lost"):
                lines.append(Content("✗ " + one_line(self.row.error or self.row.last_line, 200)).stylize("$text-error"))
        self.query_one("#about", Static).update(Content("\n").join(lines))

    def _nothing(self) -> Content:
        row = self.row
        if row is None:
            return Content.assemble(
                ("No comparison yet.\n\n", "bold"), "Choose two models and pictures, then ",
                ("enter", "bold $text-primary"), ": both write a caption of each picture.",
            )  # fmt: skip
        head = Content.assemble((row.id, "bold"), "  ", (f"{GLYPHS.get(row.status, '?')} {row.status}", f"${COLOURS[row.status]}"), "\n\n")
        if row.alive:
            return head + Content("the models are being read; captions come as they are written\n\n") + Content(
                one_line(row.last_line, 200)
            ).stylize("$muted")
        why = one_line(row.error or row.last_line or "it wrote no caption", 400)
        return head + Content("✗ " + why).stylize("$text-error") + Content("\n\n3 shows its log, t the form")

    def _load(self, path: str) -> None:
        def look() -> None:
            try:
                self.post_message(PictureRead(path, read_picture(path)))
            except Exception as error:
                self.post_message(PictureRead(path, None, one_line(error)))

        self.in_thread(look, "picture")

    @on(PictureRead)
    def _picture(self, event: PictureRead) -> None:
        if event.path != self._picture_path:
            return
        picture = self.query_one("#picture", PictureWidget)
        picture.image = event.picture
        picture.display = event.picture is not None
        if event.problem:
            self.notify(event.problem, severity="warning", markup=False)

    @on(OptionForm.Explained)
    def _explained(self, event: OptionForm.Explained) -> None:
        self.query_one("#explained", Static).update(event.text)

    def on_resize(self, event: events.Resize) -> None:
        if self.is_mounted:
            self._show()

    # actions

    @on(Input.Submitted)
    def action_start(self) -> None:
        """Start a run that writes captions with both models."""
        form = self.query_one(OptionForm)
        if not self.has_class("-ask"):
            self._ask(True)  # what enter would start is looked at first
            return
        plan = read_plan("compare", form.texts())
        problem = plan.problem or check_here("compare", plan.options)[0]
        if problem:
            self.notify(problem, title="Not started", severity="error", markup=False)
            return
        self.app.start_run("compare", plan.options, self.MODE)

    def started(self) -> None:
        """The run of this form has started."""
        if self.size.width < WIDE:
            self._ask(False)
        else:
            self.query_one("#base").focus()
        self.show_snapshot(self.app.snapshot)

    def action_turn(self, step: int) -> None:
        if self.samples:
            self.index = (self.index + step) % len(self.samples)
            for model in MODELS:
                self.query_one(f"#{model}").scroll_home(animate=False)
            self._show()

    def action_words(self) -> None:
        self.marked = not self.marked
        self._show()

    def action_report(self) -> None:
        page = self.row.run.options.get("html") if self.row is not None else None
        if not page:
            self.notify("this comparison writes no HTML page; give its form a file at html", severity="warning")
        elif not Path(page).exists():
            self.notify(f"{page}: is written when all captions are", severity="warning", markup=False)
        else:
            self.copy(str(page), "HTML page: path")

    def action_form(self) -> None:
        self._ask(not self.has_class("-ask"))
        self._show()

    def action_stop(self) -> None:
        self.ask_to_stop(self.row)

    def action_leave(self) -> None:
        """Out of a field; where the form hides the captions, back to them."""
        if self.has_class("-ask") and self.size.width < WIDE:
            if self.row is not None:
                self._ask(False)
            else:
                self.set_focus(None)
        else:
            self.query_one("#base").focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action != "leave" or not isinstance(self.focused, CaptionBox)
