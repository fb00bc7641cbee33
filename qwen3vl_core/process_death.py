"""A process that ends when the one that started it does, however that ends. Linux only."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def death_with_parent() -> Callable[[], None]:
    """A function by which a process asks Linux to kill it when its parent ends; elsewhere it does nothing.

    Look it up before a fork and call it in the child: there nothing is loaded any more. A parent that has ended before the call is
    not noticed by it.
    """
    if sys.platform == "linux":
        try:
            prctl = ctypes.CDLL(None).prctl
        except (OSError, AttributeError):
            return lambda: None
        return lambda: prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return lambda: None
