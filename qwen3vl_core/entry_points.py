"""What an installed package (the console) adds to the `qwen3vl` command line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from qwen3vl_core.errors import RequestError

CONSOLE_COMMANDS = ("console", "runs", "notebook", "notify", "completion")


def registered(group: str, name: str) -> Callable[..., int]:
    """The function that an entry point names. Raises RequestError when no installed package has it."""
    # imported late: not needed when the console is the caller
    from importlib.metadata import PackageNotFoundError, distribution, entry_points

    with contextlib.suppress(PackageNotFoundError):
        # this distribution first: searching all installed packages takes a tenth of the time to the console's first frame
        for point in distribution("qwen3vl-console").entry_points:
            if (point.group, point.name) == (group, name):
                return point.load()
    for point in entry_points(group=group):
        if point.name == name:
            return point.load()
    raise RequestError(f"{name}: the console is not installed; install the whole package with pip")
