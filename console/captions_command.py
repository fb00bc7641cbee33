"""`qwen3vl runs captions ID`: what the console's Compare screen shows, votes on and exports, for shells and scripts."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from console.runs.store import Run, RunStore
from qwen3vl_core.errors import EXIT_DONE, RequestError

SHOWN = 8


def add(action: Callable[..., argparse.ArgumentParser], *, where_has_json: bool = True) -> None:
    """Add `captions` to the actions of `qwen3vl runs`. action(name, function, help, *positionals) gives its parser."""
    sub = action("captions", captions, "captions, scores and votes of a compare run; --html writes them as a page", "id")
    if not where_has_json:
        sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--html", type=Path, default=None, metavar="FILE", help="write one page with pictures, differences and votes")
    sub.add_argument(
        "--show", type=_count, default=SHOWN, metavar="N", help=f"print the captions of the first N pictures; 0: of all (default {SHOWN})"
    )
    sub.add_argument(
        "--vote",
        nargs=2,
        action="append",
        default=[],
        metavar=("PICTURE", "MODEL"),
        help="vote for the best caption of a picture: a model's name, or same; none takes the vote back",
    )


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number from 0; use {SHOWN}")
    return int(word)


def captions(store: RunStore, given: argparse.Namespace) -> int:
    """Print or write them. Gives the exit code; raises RequestError and WorkError."""
    # only this action needs them: every other one starts without
    exports = importlib.import_module("console.runs.exports")
    run = store.get(given.id)
    if given.vote:
        _vote(run, given.vote)
    if given.html:
        for path in exports.export(run, given.html):
            print(f"wrote {path}", file=sys.stderr)
    comparison = exports.comparison_of(run)
    if getattr(given, "json", False):
        sys.stdout.write(importlib.import_module("qwen3vl_core.caption.report").to_json(comparison))
    elif not given.html:
        table = importlib.import_module("qwen3vl_core.caption.terminal").table
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(table(comparison, width=shutil.get_terminal_size((100, 24)).columns, colour=colour, show=given.show))
    return EXIT_DONE


def _vote(run: Run, votes: list[list[str]]) -> None:
    """All or none of them."""
    reads = importlib.import_module("console.runs.captions")
    feed = reads.SampleFeed(run)
    feed.read()
    chosen = {}
    for picture, model in votes:
        named = [sample.image for sample in feed.samples if picture in (sample.image, Path(sample.image).name)]
        if len(named) != 1:
            count = "several pictures are" if named else "no picture is"
            raise RequestError(f"--vote {picture}: {count} called that in {run.id}; give one as --json shows it")
        if model not in (*feed.names, "same", "none"):
            raise RequestError(f"--vote {picture} {model}: must be one of {', '.join(feed.names)}, same, none")
        chosen[named[0]] = None if model == "none" else model
    for image, choice in chosen.items():
        reads.vote(run, image, choice, feed.names)
