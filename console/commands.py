"""The installed `qwen3vl`, and what the console adds to it: recorded runs, `qwen3vl runs`, `qwen3vl console`, `qwen3vl notebook`."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from pathlib import Path
from typing import Any

from console.runs.state import store_folder
from console.terminal import asked
from qwen3vl_core import cli
from qwen3vl_core.argument_parser import Parser
from qwen3vl_core.errors import RequestError
from qwen3vl_core.locations import STORE_HELP, runs_directory


def main() -> int:
    """Entry point of `qwen3vl`. The console begins at once: nothing is looked up among what is installed."""
    return cli.main(commands={"console": console, "runs": runs, "notebook": notebook})


def launch(name: str, options: Any, *, runs: Path, foreground: bool) -> int:
    """Make and start a run of one command; in the foreground show its log and stay until it ends.

    name: a key of `COMMANDS`; options: that command's options object. Gives the exit code: of a detached run 0, else
    0 done, 1 failed, 2 its request was wrong, 130 stopped. Raises RequestError and WorkError when it cannot start.
    """
    from console import runs_command
    from console.runs import launch as launcher
    from console.runs.store import RunStore

    return runs_command.begin(RunStore(runs).create(name, options), launcher.start, foreground)


def runs(arguments: list[str]) -> int:
    """`qwen3vl runs ...`. Gives the exit code; raises RequestError and WorkError."""
    # the console does not wait for it
    return importlib.import_module("console.runs_command").runs(arguments)


def console(arguments: list[str]) -> int:
    """`qwen3vl console [--runs DIR] [--workspace DIR] [--web]`. Gives the exit code; raises RequestError."""
    parser = Parser(prog="qwen3vl console", description="The terminal console.", allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=None, metavar="DIR", help=STORE_HELP)
    parser.add_argument(
        "--workspace", type=Path, default=None, metavar="DIR", help="folder with models and data to offer, such as the demo's"
    )
    parser.add_argument("--web", action="store_true", help="in a browser tab, on this machine only; the link holds a token")
    parser.add_argument("--port", type=_port, default=None, metavar="N", help="of --web (default 8866, or the next that is free)")
    parser.add_argument("--no-browser", action="store_true", help="with --web only print the link")
    given = parser.parse_args(arguments)
    for flag, used in (("--port", given.port is not None), ("--no-browser", given.no_browser)):
        if used and not given.web:
            raise RequestError(f"{flag}: only together with --web; leave it out or add --web")
    store = store_folder(runs_directory(given.runs))
    workspace = given.workspace.expanduser().absolute() if given.workspace else None
    if workspace is not None and not workspace.is_dir():
        raise RequestError(f"--workspace {workspace}: no such folder; qwen3vl demo makes one")
    if given.web:
        return importlib.import_module("console.web").serve(store, workspace, given.port, not given.no_browser)
    # objects of imported modules live as long as the process: nothing to collect before the first frame
    gc.disable()
    try:
        with asked():
            _without_tls()
            app = importlib.import_module("console.app")
        return app.run(store, workspace)
    finally:
        gc.enable()


def _without_tls() -> None:
    """Import asyncio as in a Python built without ssl: the console has no encrypted connections on its event loop, and the library
    takes a twentieth of the time to the first frame. A later import of ssl works as usual."""
    if "asyncio" not in sys.modules and "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]
        try:
            importlib.import_module("asyncio")
        finally:
            del sys.modules["ssl"]


# qwen3vl notebook


def notebook(arguments: list[str]) -> int:
    """`qwen3vl notebook`: JupyterLab in place of this process. Gives no exit code of its own; raises RequestError."""
    lab = importlib.import_module("console.notebook.jupyterlab")
    parser = Parser(
        prog="qwen3vl notebook", description="JupyterLab on copies of the example notebooks; only who has its token comes in.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--dir",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"folder to work in; examples that it does not have are copied there (default {lab.DEFAULT_FOLDER})",
    )
    parser.add_argument("--runs", type=Path, default=None, metavar="DIR", help=STORE_HELP)
    parser.add_argument("--port", type=_port, default=None, metavar="N", help="where it listens (default 8888, or the next that is free)")
    parser.add_argument(
        "--ip", default="127.0.0.1", metavar="ADDRESS", help="what it listens on; 0.0.0.0: every network (default 127.0.0.1)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the link")
    given = parser.parse_args(arguments)
    runs = runs_directory(given.runs) if given.runs is not None else None
    return lab.start(given.dir, runs, given.port, given.ip, not given.no_browser)


def _port(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 65535:
        raise argparse.ArgumentTypeError(f"{word}: must be a port from 1 to 65535; leave it out")
    return int(word)
