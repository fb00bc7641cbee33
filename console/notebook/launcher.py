"""A form that starts runs: fields from the option declarations, rules checked while typing, the exact command."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as W
import pandas as pd

from console.fixes import Fix, fixes
from console.forms import Plan, look_here, read_plan, value_of
from console.notebook.answers import BOX, Answers
from console.notebook.brief import Brief
from console.notebook.command_line import CommandLine
from console.notebook.form import Form
from console.notebook.html import box, code, escape, say, table
from console.notebook.live import close_all, take_cell, telling
from console.notebook.memory_bar import MemoryBar
from console.notebook.stored import Stored
from console.notebook.stores import open_store
from console.runs import forecast, launch, plan_record
from console.runs.store import Run, RunStore
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import is_url
from qwen3vl_core.locations import runs_directory
from qwen3vl_core.options import COMMANDS, options_of, shell_line, to_mapping
from qwen3vl_core.problems import Problem, unique
from qwen3vl_core.run_record import ALIVE

CHECK_SECONDS = 0.3
"""Seconds from the last change of the form to the checks that need disk and machine."""
VALID = "all checks passed"
MOST_FIXES = 6


def _lines(problems: Iterable[Problem]) -> str:
    """Problems as lines with marks, except the first mark, which `say` adds."""
    return "\n✗ ".join(map(str, problems))


class Launcher(Stored, W.VBox, metaclass=Brief):
    """Choose options, see whether they are valid and the exact command, start the run.

    kind: `finetune`, `download`, `prepare`, `inspect`, `convert` or `compare`. values: initial values, by option name.
    store: folder of the run store. `start()` does the same as the button. The run keeps running when the kernel is closed.
    """

    _closed = True  # until __init__ has finished: a form that could not be created has nothing to close

    def __init__(
        self, kind: str = "finetune", values: Mapping[str, Any] | None = None, *, store: RunStore | Path | str | None = None, **options: Any
    ) -> None:
        if kind not in COMMANDS:
            raise RequestError(f"{kind}: no such command; choose from {', '.join(COMMANDS)}")
        self.kind, self.store = kind, open_store(store)
        self.run: Run | None = None
        """The run that was started last."""
        self._timer: threading.Timer | None = None
        self._revision = 0
        self._lock = threading.RLock()
        self.form = Form(COMMANDS[kind], {**(values or {}), **options}, self._edited)
        self.check_line, self.command_line, self.message = W.HTML(), CommandLine(), W.HTML()
        self.fix_buttons = W.HBox([], layout=W.Layout(flex_flow="row wrap"))
        """A button for each fix of the problems that are shown."""
        self.start_button = W.Button(description=f"Start {kind}", icon="play", button_style="primary")
        self.reset_button = W.Button(description="Reset", icon="undo", tooltip="Reset every field to its initial value")
        self.start_button.on_click(self._clicked)
        self.reset_button.on_click(lambda button: self.form.reset())
        self.plan = Plan(kind, "")
        self.memory = MemoryBar(self._edited) if kind == "finetune" else None
        """The memory estimate; only in the form of a finetune."""
        if self.memory is not None:
            self.memory.suggest_button.on_click(self._suggest_clicked)
        super().__init__(children=[
            self.form, self.check_line, self.fix_buttons, *([self.memory] if self.memory is not None else []), self.command_line,
            W.HBox([self.start_button, self.reset_button]), self.message, Answers(),
        ])  # fmt: skip
        self.add_class(BOX)
        self._closed = False
        take_cell(self)
        self._edited()

    # content

    @property
    def values(self) -> dict[str, Any]:
        """All options by name. Raises RequestError with every broken rule."""
        return to_mapping(self.options)

    @property
    def options(self) -> Any:
        """The options object. Raises RequestError with every broken rule."""
        if self.plan.options is None:
            raise RequestError(*self.plan.problems)
        return self.plan.options

    def __repr__(self) -> str:
        return f"Launcher({self.kind!r}, {self.plan.problem or 'valid'!r})"

    @property
    def command(self) -> str:
        """The equivalent command, which records its run in the same store."""
        default = self.store.root == runs_directory(None)
        return self.plan.command + ("" if default else f" {shell_line(['--runs', str(self.store.root)])}")

    def fill(self, values: Mapping[str, Any] | pd.Series | pd.DataFrame | None = None, **options: Any) -> None:
        """Fill values into the form: from a mapping such as another run's `options`, a series, a frame such as `frame()`, or by name.
        Raises RequestError."""
        if isinstance(values, pd.DataFrame):
            if "value" not in values:
                raise RequestError(f"fill: a frame without the column value; it has {', '.join(map(str, values)) or 'none'}")
            values = values["value"]
        merged = {**(dict(values) if values is not None else {}), **options}
        self.form.fill({name: self._from_pandas(name, value) for name, value in merged.items()})

    def _from_pandas(self, name: str, value: Any) -> Any:
        """Undo the conversions of pandas, which makes floats of integers and NaN of missing values."""
        option = self.form.options.get(name)
        if option is not None and isinstance(value, float) and (math.isnan(value) or (option.type is int and value.is_integer())):
            return None if math.isnan(value) else int(value)
        return value

    def frame(self) -> pd.DataFrame:
        """All options of the form, one per row: value (text if it cannot be parsed), default, unit, group, help."""
        rows = {}
        for name, option in self.form.options.items():
            value: Any = self.form.fields[name].value
            with contextlib.suppress(RequestError):
                value = value_of(option, value)
            rows[name] = (value, option.default, option.unit, option.group, option.help)
        columns = ["value", "default", "unit", "group", "help"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=object).rename_axis("option")

    def _edited(self) -> None:
        with self._lock:
            self._revision += 1
            revision, self.plan = self._revision, read_plan(self.kind, self.form.texts())
            plan = self.plan
            if self._timer is not None:
                self._timer.cancel()
        self.command_line.text = self.command
        self.start_button.disabled = plan.options is None
        self.check_line.value = say(_lines(plan.problems), "bad") if plan.options is None else say("looking …", "dim")
        self._offer(plan.problems)
        if not plan.understood:
            if self.memory is not None:
                self.memory.shown.value = ""
            return
        with self._lock:
            if not self._closed:
                self._timer = threading.Timer(CHECK_SECONDS, self._check, (revision, plan))
                self._timer.daemon = True
                self._timer.start()

    def _check(self, revision: int, plan: Plan) -> None:
        """Check disk and machine and estimate memory, and show the results unless the form has changed since."""
        check = look_here(self.kind, plan.options, self.store.root) if plan.options is not None else None
        bar, others = self.memory.estimate(plan.partial) if self.memory is not None else ("", ())
        problems = check.problems if check is not None else unique((*plan.problems, *others))
        good = not problems
        shown = ((check.note if check is not None else "") or VALID) if good else _lines(problems)
        with self._lock:
            if revision == self._revision and not self._closed:
                self.check_line.value = say(shown, "good" if good else "bad")
                self._offer(problems)
                if self.memory is not None:
                    self.memory.shown.value = bar

    def _offer(self, problems: Iterable[Problem]) -> None:
        """Show a button for each fix."""
        offered = list({str(fix): fix for problem in problems for fix in fixes(problem, self.form.options)}.values())[:MOST_FIXES]
        if [str(fix) for fix in offered] == [button.description for button in self.fix_buttons.children]:
            return
        before = self.fix_buttons.children
        self.fix_buttons.children = tuple(self._fix_button(fix) for fix in offered)
        for button in before:
            close_all(button)
            button.close()

    def _fix_button(self, fix: Fix) -> W.Button:
        button = W.Button(description=str(fix), icon="wrench", tooltip=f"Fix it: {fix}", layout=W.Layout(width="auto"))
        button.on_click(lambda _: self.form.fill({n: value_of(self.form.options[n], text) for n, text in fix.changes.items()}))
        return button

    def suggest(self) -> str:
        """Fill the fastest layout that fits into the form. Returns its summary. Raises RequestError when there is none."""
        if self.memory is None:
            raise RequestError(f"{self.kind}: has no layout; only finetune has one")
        if not self.plan.understood:
            raise RequestError(*self.plan.problems)
        values, text = self.memory.suggestion(self.plan.partial)
        self.fill(values)
        return text

    def _suggest_clicked(self, button: W.Button) -> None:
        with telling(self.message):
            self.message.value = say(self.suggest(), "good")

    # starting

    def start(self, again: bool = False) -> Run:
        """Start the run, and return it. If a run with the same options is alive or done, it is returned instead, so that a cell may be
        executed twice.

        again: start a new run in any case. Raises RequestError and WorkError.
        """
        options = self.options
        old = None if again else self._same(options)
        if old is not None:
            self.run = old
            self._started(old, f"run {old.id}: {old.status}, with the same options; start(again=True) starts another one")
            return old
        problems = look_here(self.kind, options).problems
        if problems:
            raise RequestError(*problems)
        run = self.store.create(self.kind, options)
        self.run = run
        launch.start(run)
        words = forecast.words_of(run)
        queued = f"run {run.id} is queued: {words}"
        self._started(run, queued if words else f"run {run.id} started; it keeps running when this notebook is closed")
        return run

    def _started(self, run: Run, text: str) -> None:
        self.renew(now=True)
        folder = f'<span class="dim">{escape(run.path)}</span>'
        self.message.value = say(text, "good") + box(folder)

    def _same(self, options: Any, alive_only: bool = False) -> Run | None:
        """The newest run with the same options that is alive, or done with its output still there."""
        values = to_mapping(plan_record.with_absolute_paths(options))
        defaults = {o.name: o.default for o in options_of(type(options))}
        outputs = [getattr(options, o.name) for o in options_of(type(options)) if o.path == "folder" and o.required]
        for run in self.store.list():
            if run.kind != self.kind or {**defaults, **run.options} != values:
                continue
            status = run.status
            has_output = all(is_url(path) or Path(path).expanduser().exists() for path in outputs)
            if status in ALIVE or (status == "done" and has_output and not alive_only):
                return run
        return None

    def _clicked(self, button: W.Button) -> None:
        # a double click arrives as two: the second finds the run of the first
        self.start_button.disabled = True
        self.message.value = say("starting …", "dim")
        with telling(self.message):
            old = self._same(self.options, alive_only=True)
            if old is not None:
                self.run = old
                self._started(old, f"run {old.id} is already running with the same options; to start another one, change --name")
            else:
                self.start(again=True)
        self.start_button.disabled = self.plan.options is None

    # closing

    def close(self) -> None:
        """Close the form; runs keep running."""
        if self._closed:
            return
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        close_all(self)
        super().close()

    def _repr_html_(self) -> str:
        plan = self.plan
        rows = []
        for name, option in self.form.options.items():
            text = self.form.fields[name].value
            if text != self.form.begin[name] or option.required or text not in (str(option.default), "", False):
                rows.append((escape(option.flag), escape(text)))
        problem = say(plan.problem, "bad")
        return box(f"<b>qwen3vl {escape(self.kind)}</b>{table(('option', 'value'), rows)}") + code("$ " + self.command) + problem
