"""What the console adds to the `qwen3vl` command: recorded runs, `qwen3vl runs ...`, `qwen3vl console`, `qwen3vl notebook`."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from console import captionscommand
from console.runs import launch as launcher
from console.runs import text
from console.runs.store import Run, RunStore
from console.runs.tail import LogTail
from qwen3vl_core.cli import runs_directory
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError
from qwen3vl_core.options import COMMANDS, from_mapping, options_of, shell_line
from qwen3vl_core.progress import duration

EXIT_INTERRUPTED = 130
LOG_LINES = 40
STORE_HELP = "the run store (default $QWEN3VL_RUNS, else ~/.qwen3vl/runs)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise RequestError(f"{message}; see {self.prog} --help")


# starting


def launch(name: str, options: Any, *, runs: Path, foreground: bool) -> int:
    """Make and start a run of one command; in the foreground show its log and stay until it ends.

    name: a key of `COMMANDS`; options: that command's options object. Gives the exit code: of a detached run 0, else
    0 done, 1 failed, 2 its request was wrong, 130 stopped. Raises RequestError and WorkError when it cannot start.
    """
    return _begin(RunStore(runs).create(name, options), launcher.start, foreground)


def _begin(run: Run, begin: Any, foreground: bool) -> int:
    """Start or resume a run, then say how to follow it, or follow it."""
    offset = run.log.stat().st_size if run.log.exists() else 0
    columns = shutil.get_terminal_size().columns if foreground and sys.stdout.isatty() else None
    begin(run, columns=columns)
    if not foreground:
        print(f"run {run.id} started\n  follow it  {_command(run, 'logs', '--follow')}\n  stop it    {_command(run, 'stop')}")
        return EXIT_DONE
    print(f"run {run.id} in {run.path}; Ctrl-C stops it", file=sys.stderr, flush=True)
    code = launcher.follow(run, sys.stdout, offset=offset)
    return _verdict(run, code)


def _verdict(run: Run, code: int) -> int:
    """The last line about a run that was followed, and the exit code that stands for its end."""
    state = run.state
    status, begun, ended = state["status"], state.get("started"), state.get("ended")
    took = f" in {duration(ended - begun)}" if isinstance(begun, float) and isinstance(ended, float) else ""
    line = f"run {run.id}: {status}{took}"
    if status == "done":
        print(line, file=sys.stderr)
        return EXIT_DONE
    if status == "failed":
        line += f", {state.get('error') or f'exit code {code}'}; its log is {run.log}"
    else:
        line += f"; {_command(run, 'resume')} goes on with it"
    print(line, file=sys.stderr)
    return EXIT_INTERRUPTED if status == "stopped" else EXIT_REQUEST if code == EXIT_REQUEST else EXIT_FAILED


def _command(run: Run, *words: str) -> str:
    """`qwen3vl runs logs 7 --follow`, with the store's folder where it is not the usual one."""
    store = [] if run.path.parent == runs_directory(None) else ["--runs", str(run.path.parent)]
    return shell_line(["qwen3vl", "runs", words[0], str(run.number), *words[1:], *store])


# qwen3vl runs


def _parser() -> argparse.ArgumentParser:
    where = _Parser(add_help=False)
    where.add_argument("--runs", type=Path, default=argparse.SUPPRESS, metavar="DIR", help=STORE_HELP)
    about = "List, show, follow, stop and resume runs."
    parser = _Parser(prog="qwen3vl runs", description=about, parents=[where], allow_abbrev=False)
    parser.set_defaults(action=_list)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=_Parser)

    def add(name: str, action: Any, help: str, *refs: str) -> argparse.ArgumentParser:
        about = help[0].upper() + help[1:] + "."
        sub = actions.add_parser(name, help=help, description=about, parents=[where], allow_abbrev=False)
        sub.set_defaults(action=action)
        for ref in refs:
            sub.add_argument(ref, metavar=ref.upper(), help="number, id or name of a run")
        return sub

    add("list", _list, "all runs, newest first (the default)")
    add("show", _show, "plan, state and last metrics of a run", "id")
    logs = add("logs", _logs, "the last lines of a run's log", "id")
    logs.add_argument("-f", "--follow", action="store_true",
                      help="go on showing lines until the run ends; Ctrl-C leaves, the run goes on")
    logs.add_argument("-n", type=_count, default=LOG_LINES, metavar="N", help=f"lines (default {LOG_LINES})")
    stop = add("stop", _stop, "ask a run to stop, and wait until it has; a lost one: end what is left of it", "id")
    stop.add_argument("--no-wait", action="store_true", help="do not wait")
    resume = add("resume", _resume, "go on with a run that failed, was stopped or lost", "id")
    clone = add("clone", _clone, "start a new run like this one, with some options changed", "id")
    clone.add_argument("--set", nargs="+", action="extend", default=[], metavar="OPTION=VALUE",
                       help="an option's new value; OPTION= is its default")
    for sub in (resume, clone):
        sub.add_argument("--foreground", action="store_true", help="stay and show what the run prints; Ctrl-C stops it")
    captionscommand.add(add, where_has_json=False)
    add("compare", _compare, "options that differ between two runs, and their last losses", "a", "b")
    return parser


def _count(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number from 1 to 1000000; use {LOG_LINES}")
    return int(word)


def runs(arguments: list[str]) -> int:
    """`qwen3vl runs ...`. Gives the exit code; raises RequestError and WorkError."""
    given = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 still gets the table
    return given.action(RunStore(runs_directory(getattr(given, "runs", None))), given)


def _list(store: RunStore, given: argparse.Namespace) -> int:
    found = store.list()
    print("\n".join(text.table(found)) if found else f"no runs in {store.root}; qwen3vl finetune starts one")
    return EXIT_DONE


def _show(store: RunStore, given: argparse.Namespace) -> int:
    print("\n".join(text.describe(store.get(given.id))))
    return EXIT_DONE


def _logs(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    tail = LogTail(run.log, lines=given.n)
    try:
        while True:
            # asked before the read: when the run had ended by then, the read sees all it wrote
            more = given.follow and run.alive
            for line in tail.read():
                print(line)
            sys.stdout.flush()
            if not more:
                break
            time.sleep(launcher.POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"\nrun {run.id}: {run.status}; {_command(run, 'logs', '--follow')} shows it again", file=sys.stderr)
        return EXIT_DONE
    if tail.partial:
        print(tail.partial)
    if given.follow:
        print(f"run {run.id}: {run.status}", file=sys.stderr)
    return EXIT_DONE


def _stop(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    launcher.stop(run)
    if given.no_wait:
        print(f"run {run.id}: asked to stop")
        return EXIT_DONE
    if run.alive:
        print(f"run {run.id}: asked to stop, and may take its time to save; Ctrl-C: do not wait", file=sys.stderr, flush=True)
    status = launcher.wait(run)
    print(f"run {run.id}: {status}")
    return EXIT_DONE


def _resume(store: RunStore, given: argparse.Namespace) -> int:
    return _begin(store.get(given.id), launcher.resume, given.foreground)


def _clone(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    cls = COMMANDS.get(run.kind)
    if cls is None:
        raise RequestError(f"run {run.id}: a run of kind {text.plain(run.kind)} cannot be cloned; only {', '.join(COMMANDS)} can")
    options = from_mapping(cls, {**run.options, **_changes(cls, given.set)})
    if callable(getattr(options, "check", None)):
        options.check()
    return _begin(store.create(run.kind, options), launcher.start, given.foreground)


def _changes(cls: type, words: list[str]) -> dict[str, Any]:
    """`["lr=1e-5", "images=a", "images=b"]` as a mapping. Raises RequestError."""
    declared = {o.name: o for o in options_of(cls)}
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        o = declared.get(key.removeprefix("--").replace("-", "_"))
        if not equals:
            raise RequestError(f"--set {word}: must be OPTION=VALUE; for example --set lr=1e-5")
        if o is None:
            raise RequestError(f"--set {word}: there is no option {key}; there are {', '.join(declared)}")
        if value == "":
            changes[o.name] = o.default
        elif o.many:
            changes[o.name] = [*changes.get(o.name, []), value]
        else:
            changes[o.name] = value
    return changes


def _compare(store: RunStore, given: argparse.Namespace) -> int:
    print("\n".join(text.comparison(store.get(given.a), store.get(given.b))))
    return EXIT_DONE


# qwen3vl console


def console(arguments: list[str]) -> int:
    """`qwen3vl console [--runs DIR] [--workspace DIR]`. Gives the exit code; raises RequestError."""
    parser = _Parser(prog="qwen3vl console", description="The terminal console.", allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=None, metavar="DIR", help=STORE_HELP)
    parser.add_argument("--workspace", type=Path, default=None, metavar="DIR",
                        help="folder with models and data to offer, such as the demo's")
    given = parser.parse_args(arguments)
    store = RunStore(runs_directory(given.runs))
    workspace = given.workspace.expanduser().absolute() if given.workspace else None
    if workspace is not None and not workspace.is_dir():
        raise RequestError(f"--workspace {workspace}: no such folder; qwen3vl demo makes one")
    return importlib.import_module("console.app").run(store.root, workspace)


# qwen3vl notebook


def notebook(arguments: list[str]) -> int:
    """`qwen3vl notebook`: JupyterLab in place of this process. Gives no exit code of its own; raises RequestError."""
    lab = importlib.import_module("console.notebook.lab")
    parser = _Parser(
        prog="qwen3vl notebook", description="JupyterLab on copies of the example notebooks; only who has its token comes in.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--dir", type=Path, default=None, metavar="DIR",
                        help=f"folder to work in; examples that it does not have are copied there (default {lab.DEFAULT_FOLDER})")
    parser.add_argument("--runs", type=Path, default=None, metavar="DIR", help=STORE_HELP)
    parser.add_argument("--port", type=_port, default=None, metavar="N", help="where it listens (default 8888, or the next that is free)")
    parser.add_argument("--ip", default="127.0.0.1", metavar="ADDRESS",
                        help="what it listens on; 0.0.0.0: every network (default 127.0.0.1)")
    parser.add_argument("--no-browser", action="store_true", help="only print the link")
    given = parser.parse_args(arguments)
    runs = runs_directory(given.runs) if given.runs is not None else None
    return lab.start(given.dir, runs, given.port, given.ip, not given.no_browser)


def _port(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 65535:
        raise argparse.ArgumentTypeError(f"{word}: must be a port from 1 to 65535; leave it out")
    return int(word)
