"""The user's terminal and its capabilities, editor and browser."""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import filled

if TYPE_CHECKING:
    from textual.app import App

EDITORS = ("nano", "vim", "vi", "emacs")
"""Tried in this order when neither VISUAL nor EDITOR is set; the easiest for beginners first."""


def terminal_is_gone() -> bool:
    """Whether standard input's terminal was closed. The kernel signals it only to a session that has the terminal; another process reads
    the end of its input for ever."""
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        poll.register(sys.__stdin__.fileno(), 0)  # type: ignore[union-attr]  # None without standard streams
        return any(event & select.POLLHUP for _, event in poll.poll(0))
    return False


def prepare_terminal() -> None:
    """Enable full colours in JupyterLab's terminal, which supports but does not announce them; QWEN3VL_TRUECOLOR=0 turns this off."""
    environment = os.environ
    in_jupyter = "JUPYTER_SERVER_ROOT" in environment or "JUPYTER_SERVER_URL" in environment
    unannounced = not environment.get("COLORTERM") and environment.get("TERM") == "xterm-256color"
    if in_jupyter and unannounced and environment.get("QWEN3VL_TRUECOLOR") != "0":
        environment["COLORTERM"] = "truecolor"


# pictures

ANSWER_SECONDS = 0.2
"""How long to wait for answers after everything else is ready; a terminal that never answers delays the console by this."""
# queries: a picture of one pixel by the graphics protocol; the size of a cell; the background's colour; the attributes, last because
# every terminal answers them
_QUERIES = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[16t\x1b]11;?\x1b\\\x1b[c"
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL = b"4"
_BACKGROUND = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})")


class PictureSupport(NamedTuple):
    """How a terminal shows pictures."""

    protocol: str = "cells"
    """`sixel`, `kitty` (the graphics protocol), or `cells`: each pixel is half a character cell."""
    cell: tuple[int, int] | None = None
    """Width and height of a cell in pixels; None if unknown."""


picture_support = PictureSupport()
"""Of this terminal, set by `query_terminal` before the app starts; afterwards only the app reads the terminal's answers."""
light_background: bool | None = None
"""Whether this terminal's background is light, set likewise; None if it does not say."""


@contextmanager
def query_terminal() -> Iterator[None]:
    """Ask the terminal how it shows pictures and what its background is, and set `picture_support` and `light_background` at the end of
    the block: other work in the block is done while the terminal answers."""
    global picture_support, light_background
    if not (sys.__stdin__ and sys.__stdin__.isatty() and sys.__stdout__ and sys.__stdout__.isatty()):
        yield
        return
    stdin, stdout = sys.__stdin__.fileno(), sys.__stdout__.fileno()
    before = termios.tcgetattr(stdin)
    tty.setcbreak(stdin, termios.TCSANOW)  # otherwise the answer would appear on the screen
    try:
        os.write(stdout, _QUERIES)
        yield
        answer = _answer(stdin)
        picture_support, light_background = _parse(answer, _cell_size(stdout)), _is_light(answer)
    finally:
        termios.tcsetattr(stdin, termios.TCSANOW, before)


def _answer(stdin: int) -> bytes:
    """What the terminal answers, up to the last answer or the timeout."""
    answer, end = b"", time.monotonic() + ANSWER_SECONDS
    while not _ATTRIBUTES.search(answer) and select.select([stdin], [], [], max(0.0, end - time.monotonic()))[0]:
        data = os.read(stdin, 4096)
        if not data:
            break
        answer += data
    return answer


def _is_light(answer: bytes) -> bool | None:
    """Whether the background in a terminal's answer is nearer to white than to black; None without one."""
    found = _BACKGROUND.search(answer)
    if found is None:
        return None
    red, green, blue = (int(digits, 16) / (16 ** len(digits) - 1) for digits in found.groups())
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.5


def _cell_size(stdout: int) -> tuple[int, int] | None:
    """A cell's size from the window size in pixels; None if the terminal does not report it."""
    rows, columns, width, height = struct.unpack("HHHH", fcntl.ioctl(stdout, termios.TIOCGWINSZ, bytes(8)))
    return (width // columns, height // rows) if rows and columns and width >= columns and height >= rows else None


def _parse(answer: bytes, cell: tuple[int, int] | None) -> PictureSupport:
    reported = re.search(rb"\x1b\[6;(\d+);(\d+)t", answer)
    if cell is None and reported and int(reported[1]) and int(reported[2]):
        cell = int(reported[2]), int(reported[1])
    attributes = _ATTRIBUTES.search(answer)
    # sixel first: terminals with both support it better, and kitty itself has no sixel
    if attributes and _SIXEL in attributes[1].split(b";"):
        return PictureSupport("sixel", cell)
    return PictureSupport("kitty" if re.search(rb"\x1b_Gi=31;OK\x1b", answer) else "cells", cell)


@contextmanager
def without_queries() -> Iterator[None]:
    """Import `textual_image` inside this context. It would query the terminal, whose answers the running app would read as keys;
    inside it finds no terminal, but the cell size that `query_terminal` got."""
    names = ("TEXTUAL_CELL_WIDTH", "TEXTUAL_CELL_HEIGHT")
    saved, stdout = {name: os.environ.get(name) for name in names}, sys.__stdout__
    if picture_support.cell is not None:
        os.environ.update(zip(names, map(str, picture_support.cell), strict=True))
    sys.__stdout__ = io.StringIO()  # type: ignore[assignment, misc]  # restored below
    try:
        yield
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]  # as it was
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# editor and browser


def editor() -> list[str]:
    """The editor's command as a list of words. Raises RequestError when there is no editor."""
    variable = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        words = shlex.split(variable) if variable else []
    except ValueError:
        raise RequestError(filled("EDITOR={}: a quotation mark is not closed; for example export EDITOR=nano", variable)) from None
    command = words or [name for name in EDITORS if shutil.which(name)][:1]
    if not command:
        raise RequestError("no editor found; name one: export EDITOR=nano")
    if shutil.which(command[0]) is None:
        raise RequestError(filled("EDITOR={}: no such program; for example export EDITOR=nano", variable))
    return command


def edit(app: App[Any], file: Path) -> None:
    """Open a file in the user's editor, which takes over the terminal until it exits. Raises RequestError when that is not possible."""
    from textual.app import SuspendNotSupported

    words = editor()
    try:
        with app.suspend():
            subprocess.run([*words, str(file)], check=False)
    except SuspendNotSupported:
        raise RequestError(filled("{}: this terminal cannot run an editor; edit the file in another one", file)) from None
    app.refresh(layout=True)


def show_in_browser(url: str) -> bool:
    """Open a link if there is a graphical browser, which there is not over ssh or in a container. Returns whether it was opened."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.uname().sysname == "Darwin"):
        return False
    import webbrowser  # not before the first frame

    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False
