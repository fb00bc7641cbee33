"""Screen 2: choose what to do, see its exact command, start it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static, Tab, Tabs

from console.actions import bindings_of
from console.messages import PlanChecked
from console.screens.base import ConsoleScreen
from console.screens.plan import KINDS, Plan, check_here, prefill, read_plan
from console.widgets.optionform import OptionForm
from qwen3vl_core.options import COMMANDS

TAB = "kind-"
CHECK_SECONDS = 0.25
"""From the last change of the form to the checks that need the disk."""


class LaunchScreen(ConsoleScreen):
    """Kind, form, checks, command."""

    MODE = "launch"
    BINDINGS = bindings_of("launch")

    def __init__(self) -> None:
        super().__init__()
        self.kind = "finetune"
        self.plan: Plan | None = None
        self.revision = 0
        """Number of the form's state; an answer about an older one is dropped."""
        self.verdict = ""
        """Broken rule that the disk or the machine told of the current state."""
        self._kept: dict[str, dict[str, str | bool]] = {}
        self._timer: Any = None
        self._wanted: tuple[str, Mapping[str, Any] | None, bool] | None = None
        self._exchanging = False

    def body(self) -> ComposeResult:
        yield Tabs(*(Tab(kind, id=TAB + kind) for kind in KINDS), active=TAB + self.kind, id="kinds")
        with Vertical(id="launch"):
            yield Vertical(id="form-place")
            with Vertical(id="beside"):
                yield Static(id="check")
                yield Static(id="command")
                yield Static(id="explained", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#check").border_title = "Will it run?"
        self.query_one("#command").border_title = "Exact command"
        self.query_one("#explained").border_title = "This option"
        self._set_form(self.kind, None, focus=True)

    @property
    def form(self) -> OptionForm | None:
        """The form that is shown; None while it is exchanged."""
        found = self.query(OptionForm)
        return found.first() if found else None

    # the form

    def open(self, kind: str, values: Mapping[str, Any]) -> None:
        """Show a form of this kind with these values: a clone."""
        self._kept.pop(kind, None)
        self._set_form(kind, values, focus=True)

    def _set_form(self, kind: str, values: Mapping[str, Any] | None, focus: bool) -> None:
        """Exchange the form; while one exchange is under way only the last of those that were asked for follows."""
        waiting, self._wanted = self._wanted is not None or self._exchanging, (kind, values, focus)
        if not waiting:
            self._exchange()

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
            await old.remove()
        self.kind = kind
        self.query_one(Tabs).active = TAB + kind
        begin = dict(values) if values is not None else prefill(kind, self.app.workspace, self.app.workspace_folder)
        form = OptionForm(COMMANDS[kind], begin)
        await place.mount(form)
        if values is None and kind in self._kept:
            kept = self._kept.pop(kind)
            form.fill_texts(kept)
        if focus:
            form.focus_first()
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
        self.verdict = ""
        self.query_one("#command", Static).update(
            Content("$ " + self.plan.command).stylize("" if self.plan.options is not None else "$muted")
        )
        if self._timer is not None:
            self._timer.stop()
        if self.plan.options is None:
            self._say(self.plan.problem)
        else:
            self._say("", "looking …")
            revision, plan = self.revision, self.plan
            self._timer = self.set_timer(CHECK_SECONDS, lambda: self._look(revision, plan))

    def _look(self, revision: int, plan: Plan) -> None:
        def look() -> None:
            self.post_message(PlanChecked(revision, *check_here(plan.kind, plan.options)))

        self.in_thread(look, "check")

    @on(PlanChecked)
    def _checked(self, event: PlanChecked) -> None:
        if event.revision == self.revision:
            self.verdict = event.problem
            self._say(event.problem, event.note or "every rule holds")

    def _say(self, problem: str, note: str = "") -> None:
        check = self.query_one("#check", Static)
        check.set_class(bool(problem), "broken")
        if problem:
            check.update(Content("✗ " + problem).stylize("$text-error"))
        else:
            check.update(Content.assemble(("✓ ", "$text-success"), (note, "$text-success"), ("  ctrl+g starts it", "$muted")))

    @on(OptionForm.Explained)
    def _explained(self, event: OptionForm.Explained) -> None:
        self.query_one("#explained", Static).update(event.text)

    @on(Input.Submitted)
    def _next_field(self) -> None:
        if self.form is not None:
            self.form.action_step(1)

    # actions

    def action_start(self) -> None:
        plan = self.plan
        if plan is None or self.form is None:
            return
        problem = plan.problem or self.verdict
        if problem:
            self.notify(problem, title="Not started", severity="error", markup=False)
        else:
            self.app.start_run(plan.kind, plan.options, self.MODE)

    def action_copy(self) -> None:
        if self.plan is not None:
            self.copy(self.plan.command, "Command")

    def action_next_kind(self) -> None:
        self._set_form(KINDS[(KINDS.index(self.kind) + 1) % len(KINDS)], None, focus=False)

    def action_defaults(self) -> None:
        if self.form is not None:
            self.form.reset()

    def action_leave(self) -> None:
        self.query_one(Tabs).focus()

    def check_action(self, action: str, parameters: tuple[Any, ...]) -> bool | None:
        return action != "leave" or not isinstance(self.focused, Tabs)
