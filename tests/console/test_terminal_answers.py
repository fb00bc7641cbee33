"""What the console learns about the terminal before it runs: queried once, answered while it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import threading
import tty

import pytest

PROGRAM = """
import os, sys, termios
before = termios.tcgetattr(0)
from console import terminal
with terminal.query_terminal():
    pass
assert termios.tcgetattr(0) == before
from console.widgets.picture import PictureWidget
from textual_image.widget import get_cell_size
assert sys.__stdout__.isatty() and "TEXTUAL_CELL_WIDTH" not in os.environ
background = {None: [], True: ["light"], False: ["dark"]}[terminal.light_background]
print("found", terminal.picture_support.protocol, PictureWidget.__name__, tuple(get_cell_size()), *background, flush=True)
"""
ATTRIBUTES, SIXEL = b"\x1b[?62;22c", b"\x1b[?62;4;22c"
GRAPHICS, CELL = b"\x1b_Gi=31;OK\x1b\\", b"\x1b[6;30;15t"


def found(answers: list[bytes]) -> tuple[str, bytes]:
    """(what the program found, everything it wrote) in a terminal that gives these answers, one after the other."""
    master, slave = os.openpty()
    tty.setraw(master, termios.TCSANOW)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    wrote = b""

    def play() -> None:
        nonlocal wrote
        asked = False
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:
                return
            if not part:
                return
            wrote += part
            if not asked and b"\x1b[c" in wrote:
                asked = True
                for answer in answers:
                    os.write(master, answer)

    thread = threading.Thread(target=play)
    thread.start()
    assert process.wait(120) == 0, wrote.decode()
    thread.join()
    os.close(master)
    return wrote.decode().split("found ")[1].strip(), wrote


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([SIXEL], "sixel Image (10, 20)"),
        ([GRAPHICS, CELL, ATTRIBUTES], "kitty TGPImage (15, 30)"),
        ([GRAPHICS, CELL, SIXEL], "sixel Image (15, 30)"),
        ([b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\", ATTRIBUTES], "cells HalfcellImage (10, 20)"),
        ([ATTRIBUTES], "cells HalfcellImage (10, 20)"),
        ([b"typed before it was ready", CELL, ATTRIBUTES], "cells HalfcellImage (15, 30)"),
        ([b"\x1b[6;0;0t", ATTRIBUTES], "cells HalfcellImage (10, 20)"),
        ([], "cells HalfcellImage (10, 20)"),
        ([b"\x1b]11;rgb:ffff/fafa/f0f0\x1b\\", ATTRIBUTES], "cells HalfcellImage (10, 20) light"),
        ([b"\x1b]11;rgb:1c/1c/1c\x07", ATTRIBUTES], "cells HalfcellImage (10, 20) dark"),
    ],
    ids=["sixel", "kitty", "both", "graphics refused", "xterm.js", "typed ahead", "cells of no size", "silent", "light", "dark"],
)
def test_pictures_use_the_protocol_that_the_terminal_reports(answers, expected):
    way, wrote = found(answers)
    assert way == expected
    assert wrote.count(b"\x1b[c") == 1, "it is asked once"
    assert all(answer not in wrote for answer in answers), "no answer is echoed on the screen"


def test_without_a_terminal_no_query_is_sent():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("before = termios.tcgetattr(0)", "").replace("assert termios.tcgetattr(0) == before", "")
         .replace("sys.__stdout__.isatty() and ", "")], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "found cells HalfcellImage (10, 20)\n"
