"""The person's terminal, editor and browser."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3vl_core.errors import RequestError

if TYPE_CHECKING:
    from textual.app import App

EDITORS = ("nano", "vim", "vi", "emacs")
"""Looked for when neither VISUAL nor EDITOR is set; the first that a beginner can leave again."""


def prepare_terminal() -> None:
    """Full colours in JupyterLab's terminal, which has them and does not say so; QWEN3VL_TRUECOLOR=0 leaves it alone."""
    environment = os.environ
    in_jupyter = "JUPYTER_SERVER_ROOT" in environment or "JUPYTER_SERVER_URL" in environment
    quiet = not environment.get("COLORTERM") and environment.get("TERM") == "xterm-256color"
    if in_jupyter and quiet and environment.get("QWEN3VL_TRUECOLOR") != "0":
        environment["COLORTERM"] = "truecolor"


def editor() -> list[str]:
    """Words of the editor's command. Raises RequestError when there is none."""
    asked = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        words = shlex.split(asked) if asked else []
    except ValueError:
        raise RequestError(f"EDITOR={asked}: a quotation mark is not closed; for example export EDITOR=nano") from None
    found = words or [name for name in EDITORS if shutil.which(name)][:1]
    if not found:
        raise RequestError("no editor found; name one: export EDITOR=nano")
    if shutil.which(found[0]) is None:
        raise RequestError(f"EDITOR={asked}: no such program; for example export EDITOR=nano")
    return found


def edit(app: App, file: Path) -> None:
    """Give the terminal to the editor with this file until it is left. Raises RequestError when that is not possible."""
    from textual.app import SuspendNotSupported

    words = editor()
    try:
        with app.suspend():
            subprocess.run([*words, str(file)], check=False)
    except SuspendNotSupported:
        raise RequestError(f"{file}: this terminal cannot be lent to an editor; edit the file in another one") from None
    app.refresh(layout=True)


def show_in_browser(url: str) -> bool:
    """Open a link where the person has a graphical browser; over ssh and in a container there is none."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.uname().sysname == "Darwin"):
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False
