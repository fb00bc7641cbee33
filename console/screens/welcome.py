"""The first page: the demo, an existing model, a recipe line to paste, the doctor. In a workspace: the loop's steps."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.suggester import SuggestFromList
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from console.actions import bindings_of
from console.formatting import error_text, gpu_text, one_line, runs_text, short_path
from console.messages import ThreadAnswer, WorkFailed
from console.readers.run_rows import Snapshot
from console.readers.workspace import GLYPHS, LIVE, NEXT, LoopStep, models_nearby, open_model, steps
from console.screens.base import ConsoleScreen
from console.widgets.steady_text import SteadyText
from qwen3vl_core import log_lines
from qwen3vl_core.cells import padded, width
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import printable
from qwen3vl_core.language import tr
from qwen3vl_core.layout import recipe, recipe_values
from qwen3vl_core.locations import DEFAULT_DEMO
from qwen3vl_core.options import from_mapping, to_mapping
from qwen3vl_core.options.finetune import FinetuneOptions

FIRST = (
    ("demo", "d", "Try the demo", "tiny model, drawn pictures, three minutes",
     "a tiny Qwen3-VL and drawn pictures; the whole loop in about three minutes, no download"),
    ("model", "o", "Open a model", "a Hugging Face folder or a checkpoint",
     "a Hugging Face folder or a Megatron checkpoint on this machine"),
    ("download", "g", "Get a model", "or a dataset, from a hub", "or a dataset, from Hugging Face or ModelScope; resumes if interrupted"),
    ("recipe", "p", "Paste a recipe line", "the script's 24 or 26 values, checked",
     "the published script's 24 or 26 values: checked, then put into the form"),
    ("doctor", "h", "Doctor", "is anything missing on this machine?", "is anything missing on this machine? each problem with its fix"),
    ("stores", "O", "Open other runs", "the runs of another folder", "the runs of another folder: the demo's, or those of a colleague"),
    ("leave", "esc", "Look around", "the list of runs; 0 comes back here"),
)  # fmt: skip
"""(action, key, title, description, description on wide screens)."""
GUIDE = (
    ("all", "a", "All of it at once", "the five commands, one after another", "the five commands, one after another; watch them in 1 Runs"),
    *FIRST[1:6],
    ("leave", "esc", "Look around", "the list of runs; 0 comes back here"),
)
KEY_WIDTH = 5


class Choices(OptionList):
    """The list of actions; enter and the mouse choose."""

    HELP = "↑↓ choose, enter opens; each line has a key, too"


class WelcomeScreen(ConsoleScreen):
    """Shown over the other screens; their keys close it."""

    MODE = "welcome"
    BINDINGS = bindings_of("welcome")
    AUTO_FOCUS = "Choices"
    CSS: ClassVar = """
    WelcomeScreen #page { padding: 1 3; height: 1fr; scrollbar-size-vertical: 1; }
    WelcomeScreen #head { height: auto; margin-bottom: 1; }
    WelcomeScreen Choices { height: auto; max-height: 100%; border: none; background: $background; padding: 0; }
    WelcomeScreen Choices:focus { background-tint: $foreground 0%; }
    WelcomeScreen Choices > .option-list--option-highlighted { background: $primary 22%; color: $foreground; text-style: none; }
    WelcomeScreen #answer { height: auto; margin: 1 0; padding: 0 1; border-left: thick $primary; display: none; }
    WelcomeScreen.-asking #answer { display: block; }
    WelcomeScreen #answer Input { background: $surface; margin: 0; }
    WelcomeScreen #answer Static { height: auto; }
    WelcomeScreen #below { height: auto; margin-top: 1; color: $muted; }
    """

    def __init__(self) -> None:
        super().__init__(id=self.MODE)
        self.asking = ""
        """What the field asks for: `model` or `recipe`; empty: nothing."""
        self._entries: list[tuple[str, Content]] = []
        self._busy = False

    def body(self) -> ComposeResult:
        with VerticalScroll(id="page", can_focus=False):
            yield SteadyText(id="head")
            yield Choices(id="choices")
            with Vertical(id="answer"):
                yield Static(id="question")
                yield Input(id="asked", compact=True, select_on_focus=False)
                yield Static(id="verdict")
            yield SteadyText(id="below", markup=False)

    def show_snapshot(self, snapshot: Snapshot) -> None:
        loop = steps(self.app.workspace, snapshot)
        self.query_one("#head", SteadyText).update(self._head(loop, bool(snapshot.rows)))
        self._fill(loop)
        lines = [
            tr("GPU {index}  {used:.1f} of {total:.1f} GiB in use", index=gpu.index, used=gpu.used_gib, total=gpu.total_gib)
            + f"  {gpu_text(gpu)}"
            for gpu in self.app.gpus
        ]
        self.query_one("#below", SteadyText).update(
            "\n".join([tr("runs are kept in {folder}", folder=one_line(self.app.store_root)), *lines])
        )

    @staticmethod
    def _head(loop: list[LoopStep], runs: bool) -> Content:
        if not loop:
            return Content.assemble(
                (tr("Finetune Qwen3-VL, watch the loss, read the captions side by side.\n"), "bold"),
                (tr("What comes next?") if runs else tr("There is no run yet. How do you want to begin?"), "$muted"),
            )  # fmt: skip
        following = next((step for step in loop if step.state in (NEXT, LIVE)), None)
        words = tr("every step is done; compare again, or open a model of your own")
        if following is not None:
            words = tr("enter opens the form of the next step; ctrl+g starts it there")
            if following.state == LIVE:
                words = tr("{step} is under way", step=tr(following.title))
        return Content.assemble((tr("The loop, step by step\n"), "bold"), (words, "$muted"))

    def _fill(self, loop: list[LoopStep]) -> None:
        wide = max(self.size.width - 8, 40)
        entries: list[tuple[str, Content]] = []
        for place, step in enumerate(loop):
            colour = {"done": "$text-success", "live": "$text-primary", "next": "bold"}.get(step.state, "$muted")
            entries.append((f"step-{place}", self._entry(GLYPHS[step.state], tr(step.title), (tr(step.text),), wide, colour)))
        for action, key, title, *texts in GUIDE if loop else FIRST:
            if action == "all" and self._demo_folder(loop) is None:
                continue
            if action == "stores":
                if not self.app.other_stores:
                    continue
                texts = [self._elsewhere()]
            entries.append((action, self._entry(key, tr(title), [*map(tr, texts)], wide, "bold $text-primary")))
        if [(name, c.plain, str(c.spans)) for name, c in entries] == [(name, c.plain, str(c.spans)) for name, c in self._entries]:
            return
        choices = self.query_one(Choices)
        before = choices.highlighted
        self._entries = entries
        choices.clear_options()
        for place, (name, content) in enumerate(entries):
            if loop and place == len(loop):
                choices.add_option(None)
            choices.add_option(Option(content, id=name))
        first = next((place for place, step in enumerate(loop) if step.state in (NEXT, LIVE)), 0)
        choices.highlighted = before if before is not None and not loop else first

    def _elsewhere(self) -> str:
        """`~/.qwen3vl/demo/runs  5 runs`."""
        first, *rest = self.app.other_stores
        more = tr(", and {count} more", count=len(rest)) if rest else ""
        return f"{short_path(first.path, 34)}  {runs_text(first.runs)}{more}"

    @staticmethod
    def _entry(key: str, title: str, texts: Sequence[str], wide: int, colour: str) -> Content:
        head = Content.assemble((f"{key:<{KEY_WIDTH}}", colour), (padded(title, 22), "bold"))
        room = max(wide - head.cell_length, 10)
        text = next((text for text in reversed(texts) if width(text) <= room), texts[0])
        return head + Content(one_line(text, room)).stylize("$muted")

    def on_resize(self, event: events.Resize) -> None:
        if self.is_mounted:
            self._entries = []
            self.show_snapshot(self.app.snapshot)

    # what was chosen

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        name = event.option.id or ""
        if name.startswith("step-"):
            self._open_step(steps(self.app.workspace, self.app.snapshot)[int(name.removeprefix("step-"))])
        else:
            self.run_worker(self.run_action(name), exclusive=False)

    def _open_step(self, step: LoopStep) -> None:
        if step.kind == "compare":
            self.app.open_compare(step.values)
        else:
            self.app.open_form(step.kind, step.values)

    def action_model(self) -> None:
        """Ask for the path of a model; those nearby are suggested."""
        question = tr("Where is it? The path of a Hugging Face folder or a Megatron checkpoint; → accepts the suggestion.")
        self._ask("model", question, "~/models/Qwen3-VL-4B-Instruct")

        def look() -> None:
            models = models_nearby()
            if models:
                self.post_message(ThreadAnswer("models", models))

        self.in_thread(look, "models")

    def action_download(self) -> None:
        """Show the form of a download."""
        self.app.open_form("download", None)

    def action_recipe(self) -> None:
        """Ask for a line of the published script."""
        self._ask(
            "recipe", tr("Paste the values, or the whole line with the script's name."), "dsw 4B 1 128 1e-5 1e-6 2048 2048 bf16 1 1 1 …"
        )

    def _ask(self, what: str, question: str, hint: str) -> None:
        self.asking = what
        self.add_class("-asking")
        self.query_one("#question", Static).update(Content(question).stylize("$muted"))
        self.query_one("#verdict", Static).update("")
        field = self.query_one("#asked", Input)
        field.value, field.placeholder, field.suggester = "", hint, None
        field.focus()
        field.scroll_visible(animate=False)

    @on(ThreadAnswer)
    def _told(self, event: ThreadAnswer) -> None:
        if event.what == "models" and self.asking == "model":
            field = self.query_one("#asked", Input)
            field.suggester = SuggestFromList(event.value, case_sensitive=True)
            lines = [Content(tr("found here:")).stylize("$muted"), *(Content(f"  {printable(path)}") for path in event.value)]
            if not field.value:
                self.query_one("#verdict", Static).update(Content("\n").join(lines))
        elif event.what == "progress":
            self.query_one("#verdict", Static).update(Content(one_line(event.value, 200)).stylize("$muted"))
        elif event.what == "workspace":
            self._busy = False
            self.remove_class("-asking")
            self.app.open_workspace(event.value)
        elif event.what == "recipe":
            self._recipe_read(*event.value)

    @on(WorkFailed)
    def _failed(self, event: WorkFailed) -> None:
        self._busy = False
        self._problems([event.text])
        event.stop()

    @on(Input.Submitted, "#asked")
    def _submitted(self, event: Input.Submitted) -> None:
        if self.asking == "model":
            try:
                opened = open_model(event.value)
            except (RequestError, OSError) as error:
                self._problems([error_text(error)])
                return
            self.app.workspace = {**self.app.workspace, **opened.workspace}
            self.notify(tr("{model}; the forms begin with it", model=opened.words), title="Opened", markup=False)
            self._leave_field()
            self.app.open_form(opened.kind, None)
            return
        try:
            words = shlex.split(event.value)
        except ValueError:
            self._problems([tr("a quotation mark is not closed; close it or leave it out")])
            return
        start = next((place for place, word in enumerate(words) if word in ("dsw", "dlc")), 0)
        values = words[start:]

        def look() -> None:
            try:
                self.post_message(ThreadAnswer("recipe", (recipe.read(values), values)))
            except Exception as error:
                self.post_message(WorkFailed(one_line(error)))

        self.in_thread(look, "recipe")

    def _recipe_read(self, read: recipe.Recipe, values: list[str]) -> None:
        if read.problems:
            lines = [problem.shown for problem in read.problems]
            if any(problem.code == "recipe-count" for problem in read.problems):
                names = " ".join(f"{position.number} {position.name}" for position in recipe_values.FORM)
                lines.append(tr("they are: {names}", names=names))
            self._problems(lines)
            return
        options = {name: value for name, value in to_mapping(read.options).items() if value not in (None, "", [])}
        for note in read.notes:
            self.notify(note, markup=False)
        self._leave_field()
        self.app.remember_command("recipe", "--", *values)
        self.app.open_form("finetune", to_mapping(from_mapping(FinetuneOptions, options, partial=True)))

    def _problems(self, texts: list[str]) -> None:
        lines = [Content("✗ " + one_line(text, 400)).stylize("$text-error") for text in texts]
        self.add_class("-asking")
        verdict = self.query_one("#verdict", Static)
        verdict.update(Content("\n").join(lines))
        self.call_after_refresh(verdict.scroll_visible, animate=False)

    def _leave_field(self) -> None:
        self.asking = ""
        self.remove_class("-asking")
        self.query_one(Choices).focus()

    # the demo

    def action_demo(self) -> None:
        """Create the demo's workspace in a thread, then show its steps."""
        if self._busy:
            return
        if steps(self.app.workspace, self.app.snapshot):
            self.notify(tr("the demo is already open: these are its steps"))
            return
        self._busy = True
        self.asking = ""
        folder = (self.app.demo_folder or DEFAULT_DEMO).expanduser().absolute()
        self.add_class("-asking")
        self.query_one("#question", Static).update(Content(tr("Creating the demo's workspace in {folder}", folder=one_line(folder))))
        self.query_one("#asked", Input).display = False
        self.query_one("#verdict", Static).update(Content(tr("drawing 576 pictures …")).stylize("$muted"))
        self.app.remember_command("demo", "--dir", str(folder))

        def work() -> None:
            command = [sys.executable, "-m", "qwen3vl_core.cli", "demo", "--workspace-only", "--dir", str(folder)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
            last = ""
            assert process.stderr is not None  # it is a pipe
            for line in process.stderr:
                last = line.strip() or last
                self.post_message(ThreadAnswer("progress", last))
            if process.wait():
                why = log_lines.text_of(last) or tr("exit code {code}", code=process.returncode)
                self.post_message(WorkFailed(tr("the demo's workspace was not created: {why}", why=why)))
            else:
                self.post_message(ThreadAnswer("workspace", folder))

        self.in_thread(work, "demo")

    def _demo_folder(self, loop: list[LoopStep]) -> Path | None:
        """Workspace in which the demo's command can run; None if the console shows other runs, or if no step is left."""
        folder = self.app.workspace_folder
        offered = folder is not None and self.app.store_root == folder / "runs" and any(step.state == NEXT for step in loop)
        return folder if offered else None

    def action_all(self) -> None:
        """Start the demo's command in a separate process; it keeps running when the console is closed."""
        loop = steps(self.app.workspace, self.app.snapshot)
        folder = self._demo_folder(loop) if loop else None
        if folder is None:
            self.notify(tr("there is no demo to run here; d makes one"), severity="warning")
            return
        if any(row.alive for row in self.app.snapshot.rows):
            self.notify(tr("a run is under way; wait for its end, or stop it: 1, then x"), severity="warning")
            return
        text = tr("Prepare, convert, finetune, convert back and compare, in {folder}.", folder=one_line(folder))
        self.app.ask(tr("Start all five commands?"), text, tr("Start them"), lambda: self._start_all(folder))

    def _start_all(self, folder: Path) -> None:
        words = ["demo", "--headless", "--dir", str(folder)]
        try:
            with open(folder / "demo.log", "ab") as log:
                command = [sys.executable, "-m", "qwen3vl_core.cli", *words]
                subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            self.notify(
                tr("{file}: {reason}; the demo was not started", file=folder / "demo.log", reason=error.strerror),
                severity="error",
                markup=False,
            )
            return
        self.app.remember_command(*words)
        self.notify(tr("the loop is running; its output is in {file}", file=folder / "demo.log"), markup=False)
        self.app.action_show_screen("runs")

    # out

    def action_stores(self) -> None:
        """The runs of another folder."""
        self.app.action_stores()

    def action_doctor(self) -> None:
        """What is missing on this machine."""
        self.app.action_doctor()

    def action_leave(self) -> None:
        """Leave the field; pressed again, show the runs."""
        if isinstance(self.focused, Input) or (self.has_class("-asking") and not self._busy):
            self._leave_field()
        else:
            self.app.pop_screen()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "all":
            return bool(steps(self.app.workspace, self.app.snapshot))
        if action == "demo":
            return not steps(self.app.workspace, self.app.snapshot)
        return True

    def workspace_opened(self) -> None:
        """The app uses another workspace now."""
        self.query_one("#asked", Input).display = True
        self._entries = []
        self.show_snapshot(self.app.snapshot)
        self.query_one(Choices).focus()
