"""`qwen3vl runs ...`: everything that the console's screens do with runs, for shells and scripts."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from console import captions_command
from console.runs import filters, launch, run_json, run_text
from console.runs.store import Run, RunStore
from console.runs.tail import JsonlTail, LogTail
from qwen3vl_core.argument_parser import Parser
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError
from qwen3vl_core.formats import duration, quantity, seconds_of
from qwen3vl_core.locations import STORE_HELP, runs_directory
from qwen3vl_core.options import COMMANDS, check_options, from_mapping, options_of, shell_line
from qwen3vl_core.run_record import SAMPLES, version_problem

EXIT_INTERRUPTED = 130
LOG_LINES = 40


def say(value: Any) -> None:
    """One JSON object on a line of its own; NaN and infinity are null."""
    print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# starting


def begin(run: Run, start: Any, foreground: bool, as_json: bool = False) -> int:
    """Start or resume a run, then say how to follow it, or follow it. Gives the exit code."""
    offset = run.log.stat().st_size if run.log.exists() else 0
    if foreground:
        with launch.caught_signals() as signals:  # from before the start: a SIGTERM in that second must not leave the run behind
            start(run, columns=shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
            print(f"run {run.id} in {run.path}; Ctrl-C stops it", file=sys.stderr, flush=True)
            return _verdict(run, launch.follow(run, sys.stdout, offset=offset, signals=signals))
    start(run)
    if as_json:
        say(run_json.as_json(run_json.summarize(run)))
        return EXIT_DONE
    print(f"run {run.id} started\n  follow it  {_command(run, 'logs', '--follow')}\n  stop it    {_command(run, 'stop')}")
    return EXIT_DONE


def _verdict(run: Run, code: int) -> int:
    """Print how a followed run ended, and return the exit code for it."""
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
        line += f"; resume it by {_command(run, 'resume')}"
    print(line, file=sys.stderr)
    return EXIT_INTERRUPTED if status == "stopped" else EXIT_REQUEST if code == EXIT_REQUEST else EXIT_FAILED


def _command(run: Run, *words: str) -> str:
    """`qwen3vl runs logs 7 --follow`, with the store's folder where it is not the usual one."""
    store = [] if run.path.parent == runs_directory(None) else ["--runs", str(run.path.parent)]
    return shell_line(["qwen3vl", "runs", words[0], str(run.number), *words[1:], *store])


# qwen3vl runs


def _parser() -> argparse.ArgumentParser:
    where = Parser(add_help=False)
    where.add_argument("--runs", type=Path, default=argparse.SUPPRESS, metavar="DIR", help=STORE_HELP)
    where.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    about = "List, show, follow, stop, resume, compare and delete runs."
    parser = Parser(prog="qwen3vl runs", description=about, parents=[where], allow_abbrev=False)
    parser.set_defaults(action=_list, filter="", sort="newest", reverse=False)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=Parser)

    def add(name: str, action: Any, help: str, *refs: str, many: bool = False) -> argparse.ArgumentParser:
        about = help[0].upper() + help[1:] + "."
        sub = actions.add_parser(name, help=help, description=about, parents=[where], allow_abbrev=False)
        sub.set_defaults(action=action)
        for ref in refs:
            sub.add_argument(ref, metavar=ref.upper(), help="number, id or name of a run", nargs="+" if many else None)
        return sub

    listed = add("list", _list, "all runs, newest first (the default)")
    listed.add_argument(
        "--filter", default="", metavar="WORDS", help="only runs that all words fit: failed, status:running, size:8B, lr:1e-5"
    )
    listed.add_argument("--sort", default="newest", metavar="ORDER", help=f"one of {', '.join(filters.orders())} (default newest)")
    listed.add_argument("--reverse", action="store_true", help="reverse the order")
    add("show", _show, "plan, state and last metrics of a run, and why it failed", "id")
    logs = add("logs", _logs, "the last lines of a run's log", "id")
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing lines until the run ends; Ctrl-C ends this, not the run")
    logs.add_argument("-n", type=_count, default=LOG_LINES, metavar="N", help=f"lines (default {LOG_LINES})")
    logs.add_argument("--grep", default="", metavar="TEXT", help="only lines that hold this text, whatever its case")
    metrics = add("metrics", _metrics, "every value of a run's metrics over the steps", "id")
    metrics.add_argument("--metric", nargs="+", action="extend", default=[], metavar="NAME", help="only these: loss, lr, eval/loss, …")
    add("samples", _samples, "the captions that a run wrote", "id")
    stop = add("stop", _stop, "ask a run to stop, and wait until it has; a lost one: end what is left of it", "id")
    stop.add_argument(
        "--grace", type=_seconds, default=None, metavar="SECONDS",
        help="kill it after this long in place of its --grace, also when it is stopping already; a checkpoint that is being written is "
        "waited for, with 0 it is not",
    )  # fmt: skip
    stop.add_argument("--no-wait", action="store_true", help="do not wait")
    add("save", _save, "ask a live finetune for a checkpoint now", "id")
    resume = add("resume", _resume, "resume a run that failed, was stopped or lost", "id")
    clone = add("clone", _clone, "start a new run like this one, with some options changed", "id")
    clone.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="OPTION=VALUE", help="an option's new value; OPTION= is its default"
    )
    for sub in (resume, clone):
        sub.add_argument("--foreground", action="store_true", help="wait and show the run's output; Ctrl-C stops the run")
    captions_command.add(add, where_has_json=True)
    add("compare", _compare, "diff of two runs: options, and their last losses", "a", "b")
    delete = add("delete", _delete, "delete runs with their checkpoints", "ids", many=True)
    delete.add_argument("--yes", action="store_true", help="do not ask")
    board = add("tensorboard", _tensorboard, "TensorBoard on runs, on this machine only; Ctrl-C ends it", "ids", many=True)
    board.add_argument("--port", type=_port, default=None, metavar="N", help="where it listens (default: one that is free)")
    return parser


def _port(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 65535:
        raise argparse.ArgumentTypeError(f"{word}: must be a port from 1 to 65535; leave it out")
    return int(word)


def _count(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number from 1 to 1000000; use {LOG_LINES}")
    return int(word)


def _seconds(word: str) -> float:
    seconds = 0.0 if word == "0" else seconds_of(word)
    if seconds is None or seconds >= 86400:
        raise argparse.ArgumentTypeError(f"{word}: must be seconds from 0 to 86399, or a time as 10m; leave it out")
    return seconds


def runs(arguments: list[str]) -> int:
    """`qwen3vl runs ...`. Gives the exit code; raises RequestError and WorkError."""
    given = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 still gets the table
    given.json = getattr(given, "json", False)
    return given.action(RunStore(runs_directory(getattr(given, "runs", None))), given)


def _list(store: RunStore, given: argparse.Namespace) -> int:
    runs = store.list()
    if given.json or given.filter or given.sort != "newest" or given.reverse:
        rows = filters.select_runs(map(run_json.summarize, runs), given.filter, given.sort, given.reverse)
        if given.json:
            print("[" + ",\n ".join(json.dumps(_plain(run_json.as_json(row)), ensure_ascii=False) for row in rows) + "]")
            return EXIT_DONE
        if runs and not rows:
            print(f"no run of {len(runs)} passes --filter {given.filter}")
            return EXIT_DONE
        known = {run.id: run for run in runs}
        runs = [known[row.id] for row in rows]
    print("\n".join(run_text.table(runs)) if runs else f"no runs in {store.root}; qwen3vl finetune starts one")
    return EXIT_DONE


def _show(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    if given.json:
        say(run_json.details(run))
    else:
        print("\n".join(run_text.describe(run)))
    return EXIT_DONE


def _logs(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    needle = given.grep.lower()
    tail = LogTail(run.log, lines=given.n if not needle else run_text.SEARCHED_LINES)

    def wanted(lines: list[str]) -> list[str]:
        return [line for line in lines if needle in line.lower()] if needle else lines

    if given.json and not given.follow:
        lines = wanted([*tail.read(), *filter(None, [tail.partial])])[-given.n :]
        say({"id": run.id, "status": run.status, "lines": lines})
        return EXIT_DONE
    first = True
    try:
        while True:
            # asked before the read: when the run had ended by then, the read sees all it wrote
            more = given.follow and run.alive
            lines = wanted(tail.read())
            for line in lines[-given.n :] if first else lines:
                say({"line": line}) if given.json else print(line)
            first = False
            sys.stdout.flush()
            if not more:
                break
            time.sleep(launch.POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"\nrun {run.id}: {run.status}; {_command(run, 'logs', '--follow')} shows it again", file=sys.stderr)
        return EXIT_DONE
    for line in wanted([tail.partial]) if tail.partial else ():
        say({"line": line}) if given.json else print(line)
    if given.follow:
        print(f"run {run.id}: {run.status}", file=sys.stderr)
    return EXIT_DONE


def _metrics(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    found = run_json.series(run, given.metric)
    for name in given.metric:
        if not found["metrics"][name]["step"]:
            there = ", ".join(run_json.series(run, [])["metrics"]) or "none yet"
            raise RequestError(f"--metric {name}: run {run.id} has no such metric; choose from {there}")
    if given.json:
        say(found)
        return EXIT_DONE
    print("\n".join(run_text.metrics_table(found["metrics"])) if found["metrics"] else f"run {run.id}: no metrics yet")
    return EXIT_DONE


def _samples(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    rows = JsonlTail(run.path / SAMPLES).read()
    if given.json:
        say({"id": run.id, "samples": rows})
        return EXIT_DONE
    none = f"run {run.id}: no captions; --sample-interval and --sample-images make a finetune write some"
    print("\n".join(run_text.samples(rows)) if rows else none)
    return EXIT_DONE


def _stop(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    launch.stop(run, given.grace)
    if given.no_wait:
        say({"id": run.id, "status": run.status}) if given.json else print(f"run {run.id}: asked to stop")
        return EXIT_DONE
    if run.alive:
        print(f"run {run.id}: asked to stop, and may take its time to save; Ctrl-C: do not wait", file=sys.stderr, flush=True)
    status = launch.wait(run)
    say({"id": run.id, "status": status}) if given.json else print(f"run {run.id}: {status}")
    return EXIT_DONE


def _save(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    launch.save_now(run)
    follow = _command(run, "logs", "--follow")
    say({"id": run.id, "asked": "save"}) if given.json else print(f"run {run.id}: asked to save at its next step; {follow} shows it")
    return EXIT_DONE


def _resume(store: RunStore, given: argparse.Namespace) -> int:
    return begin(store.get(given.id), launch.resume, given.foreground, given.json)


def _clone(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    cls = COMMANDS.get(run.kind)
    if cls is None:
        raise RequestError(f"run {run.id}: a run of kind {run_text.plain(run.kind)} cannot be cloned; only {', '.join(COMMANDS)} can")
    if problem := version_problem(run.plan):
        raise RequestError(f"run {run.id}: {problem}")
    options = from_mapping(cls, {**run.options, **_changes(cls, given.set)})
    check_options(options)
    return begin(store.create(run.kind, options), launch.start, given.foreground, given.json)


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
            raise RequestError(f"--set {word}: no such option {key}; choose from {', '.join(declared)}")
        if value == "":
            changes[o.name] = o.default
        elif o.many:
            changes[o.name] = [*changes.get(o.name, []), value]
        else:
            changes[o.name] = value
    return changes


def _compare(store: RunStore, given: argparse.Namespace) -> int:
    first, second = store.get(given.a), store.get(given.b)
    found = run_json.differences(first, second)
    say(found) if given.json else print("\n".join(run_text.comparison(found)))
    return EXIT_DONE


def _delete(store: RunStore, given: argparse.Namespace) -> int:
    found = list(dict.fromkeys(store.get(ref) for ref in given.ids))
    if not given.yes:
        sizes = {run.id: launch.disk_usage(run.path) for run in found}
        if given.json or not sys.stdin.isatty():
            raise RequestError(f"delete: {', '.join(sizes)} would free {quantity(sum(sizes.values()), 'B')}; add --yes to do it")
        print("\n".join(f"{run_id}  {quantity(size, 'B')}" for run_id, size in sizes.items()))
        answer = input(f"delete {len(found)} run{'s' if len(found) > 1 else ''} with all checkpoints? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing deleted")
            return EXIT_DONE
    for run in found:
        freed = launch.delete(run)
        say({"id": run.id, "freed_bytes": freed}) if given.json else print(f"run {run.id}: deleted, {quantity(freed, 'B')} freed")
    return EXIT_DONE


def _tensorboard(store: RunStore, given: argparse.Namespace) -> int:
    from console.runs.tensorboard import TensorBoard  # asks for a package that not every machine has

    board = TensorBoard([store.get(ref) for ref in dict.fromkeys(given.ids)], given.port)
    try:
        board.wait()
        if given.json:
            say({"url": board.url, "pid": board.process.pid})
        else:
            print(f"TensorBoard: {board.url}  (Ctrl-C ends it)", flush=True)
        board.process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        board.close()
    return EXIT_DONE
