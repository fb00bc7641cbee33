"""A console whose terminal was closed without a signal ends: it read the end of its input for ever, on a whole core."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios


def test_the_console_ends_when_its_terminal_is_closed(tmp_path):
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    console = subprocess.Popen(
        [sys.executable, "-m", "console", "console", "--runs", str(tmp_path)], stdin=end, stdout=end, stderr=end, start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(end)
    try:
        # more than the terminal is asked before the first frame
        shown = 0
        while shown < 4096:
            shown += len(os.read(terminal, 65536))
        os.close(terminal)
        assert console.wait(60) == 0
    finally:
        console.kill()
        console.wait()
