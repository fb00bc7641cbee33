"""The arguments of `qwen3vl runs ...`; what each action does is in `runs_command.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from console import captions_command, queue_command
from console.runs import filters
from console.runs.store import RunStore
from qwen3vl_core.argument_parser import Parser, port
from qwen3vl_core.formats import seconds_of
from qwen3vl_core.language import tr
from qwen3vl_core.locations import STORE_HELP
from qwen3vl_core.options import FinetuneOptions, add_arguments

LOG_LINES = 40
Action = Callable[[RunStore, argparse.Namespace], int]


def build_parser(actions: Mapping[str, Action]) -> argparse.ArgumentParser:
    """The parser. actions: by name; each returns the exit code, and is `action` of what is parsed."""
    common = Parser(add_help=False)
    common.add_argument("--runs", type=Path, default=argparse.SUPPRESS, metavar="DIR", help=STORE_HELP)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    about = "List, show, follow, stop, resume, compare and delete runs."
    parser = Parser(prog="qwen3vl runs", description=about, parents=[common], allow_abbrev=False)
    parser.set_defaults(action=actions["list"], filter="", sort="newest", reverse=False)
    sub_parsers = parser.add_subparsers(metavar="ACTION", parser_class=Parser)

    def add(name: str, help: str, *refs: str, many: bool = False) -> argparse.ArgumentParser:
        words = tr(help)
        about = words[0].upper() + words[1:] + ("." if words.isascii() else "。")
        sub = sub_parsers.add_parser(name, help=help, description=about, parents=[common], allow_abbrev=False)
        sub.set_defaults(action=actions[name])
        for ref in refs:
            sub.add_argument(ref, metavar=ref.upper(), help="number, id or name of a run", nargs="+" if many else None)
        return sub

    listed = add("list", "all runs, newest first (the default)")
    listed.add_argument(
        "--filter", default="", metavar="WORDS", help="only runs that match all words: failed, status:running, size:8B, lr:1e-5"
    )
    listed.add_argument(
        "--sort", default="newest", metavar="ORDER", help=tr("one of {orders} (default newest)", orders=", ".join(filters.orders()))
    )
    listed.add_argument("--reverse", action="store_true", help="reverse the order")
    add("show", "plan, state and last metrics of a run, and why it failed", "id")
    logs = add("logs", "the last lines of a run's log", "id")
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing lines until the run ends; Ctrl-C ends this, not the run")
    logs.add_argument("-n", type=_count, default=LOG_LINES, metavar="N", help=tr("lines (default {count})", count=LOG_LINES))
    logs.add_argument("--grep", default="", metavar="TEXT", help="only lines that contain this text, ignoring case")
    metrics = add("metrics", "every value of a run's metrics over the steps", "id")
    metrics.add_argument("--metric", nargs="+", action="extend", default=[], metavar="NAME", help="only these: loss, lr, eval/loss, …")
    add("samples", "the captions that a run wrote", "id")
    stop = add("stop", "ask a run to stop, and wait until it has; of a lost run: end the remaining processes", "id")
    stop.add_argument(
        "--grace", type=_seconds, default=None, metavar="SECONDS",
        help="kill it after this long in place of its --grace, also when it is stopping already; a checkpoint that is being written is "
        "waited for, with 0 it is not",
    )  # fmt: skip
    stop.add_argument("--no-wait", action="store_true", help="do not wait")
    add("save", "ask a live finetune for a checkpoint now", "id")
    checked = add("check", "whether a run's checkpoints are what was written; exit code 1 where one is not", "id")
    checked.add_argument("--read-data", action="store_true", help="read every byte; else only lengths and the small files")
    checked.add_argument("--background", action="store_true", help="with --read-data: return at once; runs check shows how far it is")
    about_resume = "resume a failed, stopped or lost run; a finetune with other options too: another layout, more steps, one that is done"
    resume = add("resume", about_resume, "id")
    add_arguments(resume, FinetuneOptions)
    resume.add_argument(
        "--from-mirror", action=argparse.BooleanOptionalAction, default=None,
        help="take the newest checkpoint of its --mirror, where its own are damaged or gone",
    )  # fmt: skip
    clone = add("clone", "start a new run like this one, with some options changed", "id")
    clone.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="OPTION=VALUE", help="an option's new value; OPTION= resets it"
    )
    for sub in (resume, clone):
        sub.add_argument("--foreground", action="store_true", help="wait and show the run's output; Ctrl-C stops the run")
    captions_command.add(add)
    queue_command.add(add)
    add("compare", "diff of two runs: options, and their last losses", "a", "b")
    delete = add("delete", "delete runs with their checkpoints", "ids", many=True)
    for sub in (stop, resume, delete):
        sub.add_argument("--foreign", action="store_true", help="also a run whose folder belongs to another user")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    board = add("tensorboard", "TensorBoard on runs, on this machine only; Ctrl-C ends it", "ids", many=True)
    board.add_argument("--port", type=port, default=None, metavar="N", help="port to listen on (default: a free one)")
    return parser


def _count(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number from 1 to 1000000; use {LOG_LINES}")
    return int(word)


def _seconds(word: str) -> float:
    seconds = 0.0 if word == "0" else seconds_of(word)
    if seconds is None or seconds >= 86400:
        raise argparse.ArgumentTypeError(f"{word}: must be seconds from 0 to 86399, or a time as 10m; leave it out")
    return seconds
