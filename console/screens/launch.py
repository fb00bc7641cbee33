"""Screen 2: choose what to do, see its exact command, start it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textual import events, on, work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static, Tab, Tabs

from console.actions import bindings_of
from console.formatting import one_line
from console.forms import FormCheck, Plan, look_here, read_plan
from console.messages import PlanChecked
from console.readers.form_defaults import KINDS, PRESETS, gpu_here, prefill, suggestions
from console.screens.base import WIDE
from console.screens.dialogs import PickPreset
from console.screens.plan_files import PlanFiles
from console.widgets import plan_view
from console.widgets.option_form import History, OptionForm
from qwen3vl_core.language import phrase, tr
from qwen3vl_core.layout.verdict import Verdict
from qwen3vl_core.options import COMMANDS, to_arguments
from qwen3vl_core.problems import Problem, unique

TAB = "kind-"
CHECK_SECONDS = 0.2
"""Seconds from the last change of the form to the checks that need the disk."""
OFFERED = 12
"""Number of paths that are suggested next to a field."""


class LaunchScreen(PlanFiles):
    """Kind, form, checks, command."""

    MODE = "launch"
    CSS_PATH = "launch.tcss"
    BINDINGS = bindings_of("launch")

    def __init__(self) -> None:
        super().__init__()
        self.revision = 0
        """Counts changes of the form; results for an older state are dropped."""
        self.checked: FormCheck | None = None
        """Result of the checks of disk and machine for the current state; None while they run."""
        self._judged: Verdict | None = None
        self._kept: dict[str, dict[str, str | bool]] = {}
        self._unsaved: set[str] = set()
        """Kinds whose form holds input that is nowhere else."""
        self._histories: dict[str, History] = {}
        """Of each kind of form: what can be undone."""
        self._timer: Any = None
        self._wanted: tuple[str, Mapping[str, Any] | None, bool] | None = None
        self._exchanging = False
        self._focus_next = ""
        """The option that gets the focus in the next form."""
        self._explanation = ""
        self._start_asked = False
        """Whether the run starts when the checks of the current state are done."""

    def body(self) -> ComposeResult:
        yield Tabs(*(Tab(kind, id=TAB + kind) for kind in KINDS), active=TAB + self.kind, id="kinds")
        with Vertical(id="launch"):
            yield Vertical(id="form-place")
            with VerticalScroll(id="beside", can_focus=False):
                yield Static(id="glance")
                yield Static(id="check")
                yield Static(id="memory")
                yield Static(id="command")
                yield Static(id="explained", markup=False)

    def on_mount(self) -> None:
        self.query_one("#check").border_title = tr("Will it run?")
        self.query_one("#glance").border_title = tr("Plan")
        self.query_one("#memory").border_title = tr("Memory of a GPU")
        self.query_one("#command").border_title = tr("Exact command")
        self.query_one("#command").border_subtitle = tr("y copies it")
        self.query_one("#explained").border_title = tr("This option")
        self._set_form(self.kind, None, focus=True)

    # the form

    def open(self, kind: str, values: Mapping[str, Any]) -> None:
        """Show a form of this kind with these values."""
        replaced = self._kept.pop(kind, None)
        if kind == self.kind and self.form is not None and self.form.edited:
            replaced = self.form.texts()
        if replaced:
            self._histories.setdefault(kind, []).append(("the new form", replaced))
        self._set_form(kind, values, focus=True)

    def show_option(self, kind: str, name: str) -> None:
        """Show the form of this kind, as it is, with the focus on an option."""
        if kind == self.kind and self.form is not None and self._wanted is None and not self._exchanging:
            self.form.focus_option(name)
            return
        self._focus_next = name
        coming = self._wanted[0] if self._wanted is not None else self.kind if self._exchanging else ""
        if kind != coming:  # else it gets the focus once it is there
            self._set_form(kind, None, focus=False)

    def _set_form(self, kind: str, values: Mapping[str, Any] | None, focus: bool) -> None:
        """Replace the form; of several requests during a replacement only the last one is executed."""
        waiting, self._wanted = self._wanted is not None or self._exchanging, (kind, values, focus)
        if kind != self.kind or values is not None:
            self._forget()
        if not waiting:
            self._exchange()

    def _forget(self) -> None:
        """Show nothing of the form that is replaced: no verdict, no command, no help."""
        self.plan = self.checked = self._judged = None
        self.revision += 1
        self._start_asked = False
        if self._timer is not None:
            self._timer.stop()
        self._explanation = ""
        for name in ("check", "command", "explained"):
            self.query_one(f"#{name}", Static).update("")
        for name in ("glance", "memory"):
            self.query_one(f"#{name}").display = False
        self.query_one("#check").set_class(False, "broken")
        self.query_one("#check").border_subtitle = ""

    @work(group="form")
    async def _exchange(self) -> None:
        self._exchanging = True
        try:
            while self._wanted is not None:
                wanted, self._wanted = self._wanted, None
                await self._exchange_once(*wanted)
        finally:
            self._exchanging = False

    async def _exchange_once(self, kind: str, values: Mapping[str, Any] | None, focus: bool) -> None:
        place = self.query_one("#form-place")
        if (old := self.form) is not None:
            if values is None or kind != self.kind:
                self._kept[self.kind] = old.texts()
                (self._unsaved.add if old.edited else self._unsaved.discard)(self.kind)
            await old.remove()
        self.kind, self._judged = kind, None
        self.query_one(Tabs).active = TAB + kind
        begin = dict(values) if values is not None else prefill(kind, self.app.workspace, self.app.workspace_folder)
        form = OptionForm(COMMANDS[kind], begin, self._histories.setdefault(kind, []))
        await place.mount(form)
        if values is None and kind in self._kept:
            kept = self._kept.pop(kind)
            form.fill_texts(kept)
        if self._focus_next in form.options:
            form.focus_option(self._focus_next)
        elif focus:
            form.focus_first()
        self._focus_next = ""
        self._edited()

    @on(Tabs.TabActivated)
    def _kind_chosen(self, event: Tabs.TabActivated) -> None:
        kind = (event.tab.id or "").removeprefix(TAB)
        if kind and kind != self.kind:
            self._set_form(kind, None, focus=False)

    @on(OptionForm.Edited)
    def _edited(self) -> None:
        form = self.form
        if form is None:
            return
        self.plan = read_plan(self.kind, form.texts())
        self.revision += 1
        self.checked, self._start_asked = None, False
        self.query_one("#command", Static).update(
            Content("$ " + self.plan.command).stylize("" if self.plan.options is not None else "$muted")
        )
        if self._timer is not None:
            self._timer.stop()
        self._show()
        # a plan with problems may have problems of the layout too, and has an estimate: all are shown together
        if self.plan.options is not None or self.kind == "finetune":
            revision, plan = self.revision, self.plan
            self._timer = self.set_timer(CHECK_SECONDS, lambda: self._look(revision, plan))

    def _look(self, revision: int, plan: Plan) -> None:
        def look() -> None:
            self.post_message(PlanChecked(revision, look_here(plan.kind, plan.partial, self.app.store_root)))

        self.in_thread(look, "check")

    @on(PlanChecked)
    def _checked(self, event: PlanChecked) -> None:
        if event.revision == self.revision:
            self.checked = event.check
            self._show()
            if self._start_asked:
                self.action_start()

    def _note(self) -> str:
        """The line for a plan without problems; empty until it is checked."""
        if self.checked is None:
            return ""
        parts = [tr("all checks passed"), phrase(self.checked.note)]
        estimate = self.checked.verdict.estimate if self.checked.verdict is not None else None
        if estimate is not None and self.size.width < WIDE:
            parts.append(tr("{peak} of {memory} GiB", peak=f"{estimate.peak_gib:g}", memory=f"{estimate.memory_gib:.4g}"))
        return " · ".join(filter(None, parts))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All known problems of the current state."""
        own = self.plan.problems if self.plan is not None else ()
        return unique((*own, *(self.checked.problems if self.checked is not None else ())))

    @property
    def _advice(self) -> tuple[Problem, ...]:
        """Options that would be better than those of the current state, which can be started."""
        verdict = self.checked.verdict if self.checked is not None and self.kind == "finetune" else None
        return (*verdict.cautions, *verdict.notes) if verdict is not None else ()

    def _show(self) -> None:
        form, plan = self.form, self.current
        if form is None or plan is None:
            return
        problems = self.problems
        check = self.query_one("#check", Static)
        check.set_class(bool(problems), "broken")
        check.border_subtitle = "" if problems or self.checked is None else tr("{key} starts it", key=self._key("launch.start"))
        check.update(plan_view.problem_lines(problems, self._note(), form.options, self._key("launch.fix"), advice=self._advice))
        glance, memory = self.query_one("#glance", Static), self.query_one("#memory", Static)
        glance.display = self.kind == "finetune" and self.size.width >= WIDE
        if self.checked is not None:
            self._judged = self.checked.verdict  # until then the last result stays on screen
        judged = self._judged if self.kind == "finetune" else None
        estimate = judged.estimate if judged is not None else None
        memory.display = estimate is not None and self.size.width >= WIDE
        if self.kind == "finetune":
            glance.update(plan_view.glance(plan.partial, judged))
        if judged is not None and estimate is not None and memory.display:
            width = max(self.query_one("#beside").size.width - 6, 30)
            memory.update(plan_view.memory(estimate, judged.gpus_needed, width, gpu_here(), pending=self.checked is None))
        self.keys_changed()

    def _key(self, action: str) -> str:
        """The key of an action as text, also if the user's settings change it."""
        return self.app.key_of(action)

    @on(OptionForm.Explained)
    def _explained(self, event: OptionForm.Explained) -> None:
        self._explanation = event.text
        self.query_one("#explained", Static).update(event.text)

    @on(OptionForm.Offered)
    def _offered(self, event: OptionForm.Offered) -> None:
        text = self._explanation
        if event.paths:
            names = [Path(path).name + ("/" if path.endswith("/") else "") for path in event.paths[:OFFERED]]
            text += (
                "\n"
                + tr("tab completes: ")
                + "  ".join(one_line(name, 30) for name in names)
                + ("  …" if len(event.paths) > OFFERED else "")
            )
        self.query_one("#explained", Static).update(text)

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._show)

    @on(Input.Submitted)
    def _next_field(self) -> None:
        if self.form is not None:
            self.form.action_step(1)

    # actions

    def action_start(self) -> None:
        """Start the run of the form once it is checked; with problems, name the first."""
        plan = self.current
        if plan is None or self.form is None:
            return
        if self.problems or plan.options is None:
            self.notify(self.problems[0].shown, title="Not started", severity="error", markup=False)
        elif self.checked is None:
            self._start_asked = True
            self.notify("it starts when disk and machine are checked", timeout=2)
        else:
            self._start_asked = False
            self.app.ask_to_start(plan.kind, plan.options, self.MODE, phrase(self.checked.note), self.form.keep)

    def action_copy(self) -> None:
        """Put the command of the form on the clipboard."""
        if self.current is not None:
            self.copy(self.current.command, tr("Command copied"))

    def action_fix(self) -> None:
        """Apply the fix of the first problem that has one; without problems, what would be better."""
        if self.form is None:
            return
        fix = plan_view.first_fix(self.problems or self._advice, self.form.options)
        if fix is None:
            words = tr("no problem has a fix that a key could apply" if self.problems else "there is nothing to fix")
            self.notify(words, severity="warning")
            return
        self.form.change("the fix", dict(fix.changes))
        self.notify(str(fix), title="Changed", markup=False, timeout=3)

    def action_preset(self) -> None:
        """Choose a preset, or a layout that fits these GPUs."""
        plan = self.current
        if plan is None:
            return

        def chosen(values: Mapping[str, Any] | None) -> None:
            if values and self.form is not None:
                self.form.change_values("the preset", values)
                self.notify(", ".join(f"{name.replace('_', '-')} {value}" for name, value in values.items()), title="Preset", markup=False)

        ask = (lambda: suggestions(plan.partial)) if self.kind == "finetune" and (plan.partial.load or plan.partial.size) else None
        if ask is not None:
            self.app.remember_command("plan", *to_arguments(plan.partial), "--suggest")
        self.app.push_screen(PickPreset(PRESETS[self.kind], ask), chosen)

    def action_gpus(self) -> None:
        """Choose the GPUs of the run among those of this machine."""
        form = self.form
        if form is None or self.kind != "finetune":
            self.notify("only a finetune runs on chosen GPUs", severity="warning")
            return
        if not self.app.gpus:
            self.notify("nvidia-smi shows no GPU on this machine", severity="warning")
            return
        from console.screens.gpus import PickGpus

        named = {word.strip() for word in str(form.texts()["gpu_ids"]).split(",")}
        known = {gpu.index for gpu in self.app.gpus}

        def chosen(ids: str | None) -> None:
            if ids is not None and self.form is form:
                form.change("the GPUs", {"gpu_ids": ids})
                self.notify(f"GPU {ids}" if ids else tr("all GPUs of this machine"), title="GPUs", markup=False, timeout=3)

        self.app.push_screen(PickGpus(self.app.gpus, named & known), chosen)

    def action_next_kind(self) -> None:
        """The form of the next kind of run."""
        self._set_form(KINDS[(KINDS.index(self.kind) + 1) % len(KINDS)], None, focus=False)

    def action_reset(self) -> None:
        """Every field as the form began."""
        if self.form is not None:
            self.form.reset()
            self.notify(tr("as the form began; {key} takes it back", key=self._key("launch.undo")), timeout=3)

    def action_undo(self) -> None:
        """Take back the last change of many fields."""
        if self.form is None:
            return
        what = self.form.undo()
        self.notify(
            tr("{what} was taken back", what=tr(what)) if what else tr("nothing to take back"),
            severity="information" if what else "warning",
            timeout=2,
        )

    def action_difference(self) -> None:
        """Show which options differ from their defaults."""
        if self.form is not None:
            from console.screens.dialogs import ChangedOptions

            self.app.push_screen(ChangedOptions(self.kind, self.form.options, self.form.texts()))

    @property
    def edited(self) -> bool:
        """Whether leaving the console would lose input."""
        return bool(self._unsaved - {self.kind}) or (self.form is not None and self.form.edited)

    def useful(self, action: str) -> bool:
        form, plan = self.form, self.current
        if form is None or plan is None:
            return action in ("launch.next_kind", "launch.leave")
        if action == "launch.start":
            return not self.problems
        if action == "launch.fix":
            return plan_view.first_fix(self.problems or self._advice, form.options) is not None
        if action == "launch.gpus":
            return self.kind == "finetune" and bool(self.app.gpus)
        if action == "launch.undo":
            return bool(form.history)
        if action == "launch.reset":
            return form.edited
        return action != "launch.save" or self.kind == "finetune"

    def action_leave(self) -> None:
        """Out of the form, to the kinds of run."""
        self.query_one(Tabs).focus()

    def check_action(self, action: str, parameters: tuple[Any, ...]) -> bool | None:
        return action != "leave" or not isinstance(self.focused, Tabs)
