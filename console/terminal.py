"""The user's terminal and its capabilities, editor and browser."""

from __future__ import annotations

import fcntl
import io
import os
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import time
import tty
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


# what it can show

ANSWER_SECONDS = 0.2
"""How long an answer is waited for after everything else is ready; a terminal that never answers delays the console so much."""
# a picture of one pixel by the graphics protocol; the size of a cell; last, since every terminal answers it, the attributes
_QUESTIONS = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[16t\x1b[c"
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL = b"4"


@dataclass(frozen=True)
class Shows:
    """How a terminal shows pictures."""

    way: str = "cells"
    """`sixel`, `kitty` (the graphics protocol), or `cells`: half a cell a pixel."""
    cell: tuple[int, int] | None = None
    """Width and height of a cell in pixels, where it was told."""


shows = Shows()
"""Of this terminal: as `asked` found it before the app ran; after that only the app reads what a terminal says."""


@contextmanager
def asked() -> Iterator[None]:
    """Ask the terminal what it can show; what is done within, while it answers, costs no time. Afterwards `shows` says it."""
    global shows
    if not (sys.__stdin__ and sys.__stdin__.isatty() and sys.__stdout__ and sys.__stdout__.isatty()):
        yield
        return
    reads, writes = sys.__stdin__.fileno(), sys.__stdout__.fileno()
    before = termios.tcgetattr(reads)
    tty.setcbreak(reads, termios.TCSANOW)  # or the answer would be written on the screen
    try:
        os.write(writes, _QUESTIONS)
        yield
        shows = _understood(_answer(reads), _pixels(writes))
    finally:
        termios.tcsetattr(reads, termios.TCSANOW, before)


def _answer(reads: int) -> bytes:
    """What the terminal said, until the last answer or the time is out."""
    said, end = b"", time.monotonic() + ANSWER_SECONDS
    while not _ATTRIBUTES.search(said) and select.select([reads], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(reads, 4096)
        if not part:
            break
        said += part
    return said


def _pixels(writes: int) -> tuple[int, int] | None:
    """A cell's size by the terminal's own record; None where it keeps none."""
    rows, columns, width, height = struct.unpack("HHHH", fcntl.ioctl(writes, termios.TIOCGWINSZ, bytes(8)))
    return (width // columns, height // rows) if rows and columns and width >= columns and height >= rows else None


def _understood(said: bytes, cell: tuple[int, int] | None) -> Shows:
    told = re.search(rb"\x1b\[6;(\d+);(\d+)t", said)
    if cell is None and told and int(told[1]) and int(told[2]):
        cell = int(told[2]), int(told[1])
    attributes = _ATTRIBUTES.search(said)
    # sixel first: what speaks both does sixel better, and kitty itself speaks no sixel
    if attributes and _SIXEL in attributes[1].split(b";"):
        return Shows("sixel", cell)
    return Shows("kitty" if re.search(rb"\x1b_Gi=31;OK\x1b", said) else "cells", cell)


@contextmanager
def unasked() -> Iterator[None]:
    """Import `textual_image` within: it would ask the terminal, whose answers the running app reads; so it finds no terminal, but
    the size of a cell that `asked` found."""
    names = ("TEXTUAL_CELL_WIDTH", "TEXTUAL_CELL_HEIGHT")
    kept, stdout = {name: os.environ.get(name) for name in names}, sys.__stdout__
    if shows.cell is not None:
        os.environ.update(zip(names, map(str, shows.cell), strict=True))
    sys.__stdout__ = io.StringIO()  # type: ignore[assignment, misc]  # it is put back
    try:
        yield
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]  # as it was
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# editor and browser


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
