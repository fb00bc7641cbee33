"""`qwen3vl runs queue`: the runs that wait for GPUs, and their order."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable

from console.formatting import GLYPHS
from console.runs import forecast, launch
from console.runs import queue as store_queue
from console.runs.store import RunStore
from qwen3vl_core.errors import EXIT_DONE, RequestError
from qwen3vl_core.formats import printable, span
from qwen3vl_core.language import filled
from qwen3vl_core.layout.gpus import named, uses
from qwen3vl_core.run_record import QUEUED

CANCEL = "cancel"
_HELP = {
    store_queue.FIRST: "make it the next one", store_queue.LAST: "make it the last one", store_queue.UP: "one place forward",
    store_queue.DOWN: "one place back", store_queue.HOLD: "hold it back until it is released",
    store_queue.RELEASE: "let a run that is held back start again", CANCEL: "take it out of the queue; runs resume queues it again",
}  # fmt: skip


def add(add_action: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the arguments to the parser of `qwen3vl runs`."""
    about = "the runs that wait for GPUs, the next one first; with an id: change its place, hold it back, release it or end it"
    parser = add_action("queue", about)
    parser.add_argument("id", nargs="?", default=None, metavar="ID", help="number, id or name of a queued run")
    what = parser.add_mutually_exclusive_group()
    for name, text in _HELP.items():
        what.add_argument(f"--{name}", dest="what", action="store_const", const=name, help=text)
    what.add_argument(
        "--resume", dest="what", action="store_const", const="resume",
        help="let queued runs go on for which no process waits, as after a reboot; also of a machine that is gone",
    )  # fmt: skip


def queue(store: RunStore, args: argparse.Namespace) -> int:
    """`qwen3vl runs queue [ID --first]`. Returns the exit code; raises RequestError and WorkError."""
    if args.what == "resume":
        if args.id is not None:
            raise RequestError(filled("--resume: is for the whole queue; leave out {}", args.id))
        runs = store_queue.go_on(store.root, everywhere=True)
        if not args.json:
            print("\n".join(f"run {run.id}: waits for its GPUs again" for run in runs) or "a process waits for each queued run")
            return EXIT_DONE
    elif args.what is not None:
        if args.id is None:
            raise RequestError(
                filled("--{}: needs a run; qwen3vl runs queue lists them; for example runs queue 7 --{}", args.what, args.what)
            )
        run = store.get(args.id)
        if args.what == CANCEL:
            if run.status != QUEUED:
                raise RequestError(
                    filled("run {}: {}; only a queued run can be cancelled; qwen3vl runs stop {} stops it", run.id, run.status, run.number)
                )
            launch.stop(run)
            launch.wait(run, store_queue.LOCK_SECONDS)
        else:
            store_queue.change(run, args.what)
    elif args.id is not None:
        run = store.get(args.id)
        if run.status != QUEUED:
            raise RequestError(filled("run {}: {}; not queued", run.id, run.status))
    _show(store, args.json)
    return EXIT_DONE


def _show(store: RunStore, as_json: bool) -> None:
    """Print the queue, and what the GPUs do."""
    seen, runs, machine = store_queue.look(store.root), store.list(), uses()
    plan = {item.entry.run.id: item for item in forecast.schedule(seen, forecast.lengths(seen, runs), machine)}
    starts = [plan[entry.run.id].start for entry in seen.entries]
    waits = [forecast.waits_for(seen, entry, runs, machine) for entry in seen.entries]
    if as_json:
        rows = [
            {
                "place": place, "id": entry.run.id, "gpus": list(entry.gpus), "count": entry.count, "queued": entry.since,
                "held": entry.held, "waits_for": words,
                "attended": entry.attended, "starts_in": round(start) if math.isfinite(start) else None,
            }
            for place, (entry, start, words) in enumerate(zip(seen.entries, starts, waits, strict=True), 1)
        ]  # fmt: skip
        print(json.dumps({"queue": rows, "holders": {gpu: run.id for gpu, run in seen.holders}}))
        return
    width = shutil.get_terminal_size((160, 24)).columns
    if not seen.entries:
        print(f"no run in {store.root} waits for GPUs")
    longest = max((len(entry.run.id) for entry in seen.entries), default=0)
    for place, (entry, words) in enumerate(zip(seen.entries, waits, strict=True), 1):
        what = named(entry.gpus) if entry.gpus else f"any {entry.count}"
        print(_cut(f"{place:>2} {GLYPHS[QUEUED]} {entry.run.id:{longest}}  {what}, {span(time.time() - entry.since)} ago: {words}", width))
    for gpu in machine:
        holder = seen.held_gpus.get(gpu.index)
        print(_cut(f"   GPU {gpu.index}  {holder.id if holder is not None else gpu.words}", width))


def _cut(line: str, width: int) -> str:
    line = printable(line)
    return line if len(line) <= width else line[: width - 1] + "…"
