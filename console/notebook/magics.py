"""`%qwen3vl` shows a widget, `%%qwen3vl finetune` starts a run with the options that its cell holds as YAML."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable
from typing import Any

from console.notebook.compare import CompareCaptions
from console.notebook.launcher import Launcher
from console.notebook.monitor import RunMonitor
from console.notebook.preview import DatasetPreview
from console.notebook.table import RunsTable
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import COMMANDS
from qwen3vl_core.options.planfile import read_plan_text

SHOWN: dict[str, Callable[..., Any]] = {
    "monitor": RunMonitor, "captions": CompareCaptions, "runs": RunsTable, "preview": DatasetPreview, "form": Launcher,
}  # fmt: skip
USAGE = {
    "monitor": "monitor [RUN ...]", "captions": "captions [RUN]", "runs": "runs", "preview": "preview FOLDER [SPLIT]",
    "form": f"form {'|'.join(COMMANDS)}",
}  # fmt: skip
FORM = "--form"


def magic(line: str, cell: str | None = None) -> Any:
    """`%qwen3vl monitor 7`, `captions 9`, `runs`, `preview FOLDER`, `form finetune`: the widget. With a cell: `%%qwen3vl finetune`.

    A cell is a plan file, in YAML: it starts its run, unless one with the same options runs or is done, and shows it; with `--form` it
    fills the form.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise RequestError(f"%qwen3vl {line}: {error}; close the quotes") from None
    if cell is not None:
        return _of_cell(words, cell)
    what, *given = words or [""]
    if what not in SHOWN:
        close = difflib.get_close_matches(what, SHOWN, 1, 0.5)
        advice = f"did you mean %qwen3vl {USAGE[close[0]]}?" if close else ", or ".join(f"%qwen3vl {usage}" for usage in USAGE.values())
        raise RequestError(f"%qwen3vl {line}".rstrip() + f": no such widget; {advice}")
    most = {"monitor": None, "captions": 1, "runs": 0, "preview": 2, "form": 1}[what]
    least = 1 if what == "preview" else 0
    if len(given) < least or (most is not None and len(given) > most):
        raise RequestError(f"%qwen3vl {line}: must be %qwen3vl {USAGE[what]}")
    return SHOWN[what](*given)


def _of_cell(words: list[str], cell: str) -> Any:
    kinds = [word for word in words if word != FORM]
    if len(kinds) != 1 or kinds[0] not in COMMANDS:
        raise RequestError(f"%%qwen3vl {' '.join(words)}: must be %%qwen3vl and one of {', '.join(COMMANDS)}; {FORM} shows the form")
    (kind,) = kinds
    launcher = Launcher(kind, read_plan_text(COMMANDS[kind], cell, "the cell"))
    if FORM in words:
        return launcher
    run = launcher.start()
    launcher.close()
    if kind == "finetune":
        return RunMonitor(run)
    if kind == "compare":
        return CompareCaptions(run)
    table = RunsTable(run.path.parent)
    table.choose(run)
    return table


def register(shell: Any) -> None:
    """Register the magics with an IPython shell."""
    shell.register_magic_function(magic, "line_cell", "qwen3vl")
