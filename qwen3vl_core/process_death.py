"""Lets a process end when its parent ends, for whatever reason. Linux only."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def death_with_parent() -> Callable[[], None]:
    """A function with which a process asks Linux to kill it when its parent ends; on other systems it does nothing.

    Create it before a fork and call it in the child, so that the child loads no library. It has no effect if the parent has ended
    before the call.
    """
    if sys.platform != "linux":
        return lambda: None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return lambda: None
    return lambda: prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
