"""The installed `qwen3vl`, and what the console adds: recorded runs, `qwen3vl runs`, `qwen3vl console`,
`qwen3vl notebook`, `qwen3vl notify`."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from console.command_parsers import console_parser, notebook_parser
from console.terminal import query_terminal
from qwen3vl_core import cli
from qwen3vl_core.errors import RequestError
from qwen3vl_core.language import filled
from qwen3vl_core.locations import runs_directory, store_folder


def main() -> int:
    """Entry point of `qwen3vl`. Its own commands are passed on, so that the console starts without a search for entry points."""
    return cli.main(commands={"console": console, "runs": runs, "notebook": notebook, "notify": notify, "completion": completion})


def launch(name: str, options: Any, *, runs: Path, foreground: bool, as_json: bool = False) -> int:
    """Create and start a run of one command; in the foreground show its log until it ends.

    name: a key of `COMMANDS`; options: that command's options object. as_json: print a detached run as JSON. Returns the exit code:
    0 for a detached run, else 0 done, 1 failed, 2 invalid request, 130 stopped. Raises RequestError and WorkError when it cannot start.
    """
    from console import runs_command
    from console.runs import launch as launcher
    from console.runs.store import RunStore

    return runs_command.begin(RunStore(runs).create(name, options), launcher.start, foreground, as_json)


def runs(arguments: list[str]) -> int:
    """`qwen3vl runs ...`. Returns the exit code; raises RequestError and WorkError."""
    # imported late: the console does not need it
    return importlib.import_module("console.runs_command").runs(arguments)


def notify(arguments: list[str]) -> int:
    """`qwen3vl notify --test [ADDRESS …]`. Returns the exit code; raises RequestError."""
    return importlib.import_module("console.notify_command").notify(arguments)


def completion(arguments: list[str]) -> int:
    """`qwen3vl completion bash|zsh|fish`: prints the shell's completion. Returns the exit code; raises RequestError."""
    return importlib.import_module("console.completion").completion(arguments)


def console(arguments: list[str]) -> int:
    """`qwen3vl console [--runs DIR] [--workspace DIR] [--web]`. Returns the exit code; raises RequestError."""
    args = console_parser().parse_args(arguments)
    for flag, used in (("--port", args.port is not None), ("--no-browser", args.no_browser), ("--behind-proxy", args.behind_proxy)):
        if used and not args.web:
            raise RequestError(filled("{}: needs --web; leave it out or add --web", flag))
    store = store_folder(runs_directory(args.runs))
    workspace = args.workspace.expanduser().absolute() if args.workspace else None
    if workspace is not None and not workspace.is_dir():
        raise RequestError(filled("--workspace {}: no such folder; qwen3vl demo creates one", workspace))
    if args.web:
        return importlib.import_module("console.web").serve(store, workspace, args.port, not args.no_browser, args.behind_proxy)
    # objects of imported modules live as long as the process: nothing to collect before the first frame
    gc.disable()
    try:
        with query_terminal():
            _without_tls()
            app = importlib.import_module("console.app")
        return app.run(store, workspace)
    finally:
        gc.enable()


def _without_tls() -> None:
    """Import asyncio as in a Python without ssl: the console's event loop has no encrypted connections, and importing ssl takes a
    twentieth of the time to the first frame. A later import of ssl works as usual."""
    if "asyncio" not in sys.modules and "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]
        try:
            importlib.import_module("asyncio")
        finally:
            del sys.modules["ssl"]


# qwen3vl notebook


def notebook(arguments: list[str]) -> int:
    """`qwen3vl notebook`: copies the examples into the JupyterLab that is open, else replaces this process by one. Raises RequestError."""
    lab = importlib.import_module("console.notebook.jupyterlab")
    args = notebook_parser().parse_args(arguments)
    runs = runs_directory(args.runs) if args.runs is not None else None
    if args.copy and (args.port is not None or args.base_url is not None):
        raise RequestError("--copy: starts no JupyterLab; leave out --port and --base-url")
    starts = args.port is not None or args.base_url is not None
    if args.copy or (not starts and lab.inside_jupyter.root_of(os.environ) is not None):
        return lab.copy(args.dir, runs)
    return lab.start(args.dir, runs, args.port, args.ip, not args.no_browser, args.base_url)
