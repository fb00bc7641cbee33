"""The plan of Launch's form as a file: written for `--plan`, and edited in the user's editor."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from console.formatting import error_text
from console.forms import Plan
from console.readers.form_defaults import free_path
from console.screens.base import ConsoleScreen
from console.terminal import edit
from console.widgets.option_form import OptionForm
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.language import tr
from qwen3vl_core.options import shell_line, to_arguments
from qwen3vl_core.options.planfile import read_plan_file, write_plan

COMMENT = "A plan. Lines may be left out: the option then has its default."


class PlanFiles(ConsoleScreen):
    """A screen with the form of a kind of run, whose plan can be saved and edited."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = "finetune"
        self.plan: Plan | None = None
        self._plan_file: Path | None = None
        """Edited text that could not be parsed yet."""

    @property
    def form(self) -> OptionForm | None:
        """The current form; None while it is replaced."""
        forms = self.query(OptionForm)
        return forms.first() if forms else None

    @property
    def current(self) -> Plan | None:
        """The values of the current form; None while it is replaced by another kind's."""
        return self.plan if self.plan is not None and self.plan.kind == self.kind else None

    def _plan_target(self) -> Path:
        """A file name that does not exist yet."""
        folder = self.app.workspace_folder or Path.cwd()
        return Path(free_path(folder / f"{self.kind}-plan.yaml"))

    def action_save(self) -> None:
        """Write the plan file."""
        plan = self.current
        if plan is None:
            return
        if self.kind != "finetune":
            self.notify(
                tr("only a finetune is read from a plan file; {key} copies the command", key=self.app.key_of("launch.copy")),
                severity="warning",
            )
            return
        try:
            target = write_plan(self._plan_target(), plan.partial, COMMENT)
        except WorkError as error:
            self.notify(error.shown, severity="error", markup=False)
            return
        if self.form is not None:
            self.form.keep()
        self.app.remember_command("plan", *to_arguments(plan.partial), "--save", str(target))
        self.copy(f"qwen3vl finetune --plan {shell_line([str(target)])}", tr("Saved {file}; command copied", file=target.name))

    def action_edit(self) -> None:
        """Edit the plan as YAML in the user's editor. The result fills the form; if it has problems, `e` opens it again."""
        plan = self.current
        if plan is None:
            return
        try:
            if self._plan_file is None:
                folder = Path(tempfile.mkdtemp(prefix="qwen3vl-plan-"))
                self._plan_file = write_plan(folder / f"{self.kind}.yaml", plan.partial, COMMENT)
            edit(self.app, self._plan_file)
            values = read_plan_file(type(plan.partial), self._plan_file)
        except (RequestError, WorkError, OSError) as error:
            # the file has a temporary name
            lines = [p.shown_explanation for p in error.problems] if isinstance(error, RequestError) else [error_text(error)]
            self.notify("\n".join([*lines, tr("{key} opens it again", key=self.app.key_of("launch.edit"))]), severity="error", markup=False)
            return
        shutil.rmtree(self._plan_file.parent, ignore_errors=True)
        self._plan_file = None
        if self.form is not None:
            self.form.change_values("the edited plan", values)
