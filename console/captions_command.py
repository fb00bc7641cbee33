"""`qwen3vl runs captions ID`: shows, votes on and exports captions like the console's Compare screen, for shells and scripts."""

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
from qwen3vl_core.language import filled, tr

SHOWN = 8


def add(action: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `captions` to the actions of `qwen3vl runs`. action(name, help, *positionals) returns its parser."""
    sub = action("captions", "captions, scores and votes of a compare run; --html writes them as a page", "id")
    sub.add_argument("--html", type=Path, default=None, metavar="FILE", help="write one page with pictures, differences and votes")
    sub.add_argument(
        "--show",
        type=_count,
        default=SHOWN,
        metavar="N",
        help=tr("print the captions of the first N pictures; 0: all (default {count})", count=SHOWN),
    )
    sub.add_argument(
        "--vote",
        nargs=2,
        action="append",
        default=[],
        metavar=("PICTURE", "MODEL"),
        help="vote for the best caption of a picture: a model's name, or same; none withdraws the vote",
    )


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number from 0; use {SHOWN}")
    return int(word)


def captions(store: RunStore, args: argparse.Namespace) -> int:
    """Print or write the captions. Returns the exit code; raises RequestError and WorkError."""
    # imported late: the other actions do not need it
    exports = importlib.import_module("console.runs.exports")
    run = store.get(args.id)
    if args.vote:
        _vote(run, args.vote)
    if args.html:
        for path in exports.export(run, args.html):
            print(f"wrote {path}", file=sys.stderr)
    comparison = exports.comparison_of(run)
    if getattr(args, "json", False):
        sys.stdout.write(importlib.import_module("qwen3vl_core.caption.report").to_json(comparison))
    elif not args.html:
        table = importlib.import_module("qwen3vl_core.caption.terminal").table
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(table(comparison, width=shutil.get_terminal_size((100, 24)).columns, colour=colour, show=args.show))
    return EXIT_DONE


def _vote(run: Run, votes: list[list[str]]) -> None:
    """Record all votes, or none when one of them is invalid."""
    captions_module = importlib.import_module("console.runs.captions")
    feed = captions_module.SampleFeed(run)
    feed.read()
    chosen = {}
    for picture, model in votes:
        images = [sample.image for sample in feed.samples if picture in (sample.image, Path(sample.image).name)]
        if len(images) != 1:
            count = "several pictures have" if images else "no picture has"
            raise RequestError(filled("--vote {}: {} this name in {}; give a name as --json shows it", picture, count, run.id))
        if model not in (*feed.names, "same", "none"):
            raise RequestError(filled("--vote {} {}: must be one of {}, same, none", picture, model, ", ".join(feed.names)))
        chosen[images[0]] = None if model == "none" else model
    for image, choice in chosen.items():
        captions_module.vote(run, image, choice, feed.names)
