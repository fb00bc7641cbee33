"""`qwen3vl runs ...`: everything that the console's screens can do with runs, for shells and scripts."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import shutil
import sys
import time
from typing import Any

from console import bell, captions_command, queue_command
from console.formatting import plain_json
from console.runs import check, companions, diagnosis, filters, forecast, launch, mirror_restore, remedies, run_json, run_text
from console.runs.other_stores import elsewhere
from console.runs.store import Run, RunStore
from console.runs.tail import JsonlTail, LogTail
from console.runs_parser import build_parser
from qwen3vl_core.colour import paint
from qwen3vl_core.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEST, RequestError
from qwen3vl_core.formats import duration, quantity
from qwen3vl_core.language import filled, tr
from qwen3vl_core.locations import runs_directory
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.options import COMMANDS, FinetuneOptions, check_options, from_mapping, options_of, shell_line
from qwen3vl_core.progress import Progress
from qwen3vl_core.run_record import SAMPLES, version_problem

EXIT_INTERRUPTED = 130


def say(value: Any) -> None:
    """Print one JSON object on one line; NaN and infinity become null."""
    print(_json(value), flush=True)


_STEERING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _json(value: Any) -> str:
    """JSON that cannot steer a terminal: its writer escapes the control characters below 0x20, this the others."""
    text = json.dumps(plain_json(value), ensure_ascii=False, allow_nan=False)
    return _STEERING.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


# starting


def begin(run: Run, start: Any, foreground: bool, as_json: bool = False) -> int:
    """Start or resume a run, then follow it in the foreground, or print how to follow it. Returns the exit code."""
    offset = run.log.stat().st_size if run.log.exists() else 0
    for line in companions.unusable(run.options):
        print(f"qwen3vl: {line}", file=sys.stderr)
    if foreground:
        with launch.caught_signals() as signals:  # from before the start: a SIGTERM in that second must not leave the run behind
            start(run, columns=shutil.get_terminal_size().columns if sys.stdout.isatty() else None, foreground=True)
            print(f"run {run.id} in {run.path}; Ctrl-C stops it", file=sys.stderr, flush=True)
            code = _verdict(run, launch.follow(run, sys.stdout, offset=offset, signals=signals))
            bell.ring(f"run {run.id}: {run.status}", sys.stderr)
            _wait_for_helpers(run, signals)
            return code
    start(run)
    if as_json:
        say(run_json.as_json(run_json.summarize(run)))
        return EXIT_DONE
    if words := forecast.words_of(run):
        print(f"run {run.id} queued: {words}\n  the queue  {_store_command(run, 'queue')}\n"
              f"  end it     {_command(run, 'stop')}")  # fmt: skip
        return EXIT_DONE
    print(f"run {run.id} started\n  follow it  {_command(run, 'logs', '--follow')}\n  stop it    {_command(run, 'stop')}")
    return EXIT_DONE


def _wait_for_helpers(run: Run, signals: list[int]) -> None:
    """In a container all processes end with this one: wait for messages and for the last copy to the mirror. A signal ends the wait."""
    signals.clear()
    until = time.monotonic() + (companions.MIRROR_SECONDS if run.options.get("mirror") else companions.WAIT_SECONDS)
    said = False
    while time.monotonic() < until and not companions.wait_for_helpers(run.path, 1.0 if said else 0.2):
        if not said:
            said = True
            print("messages or the copy to the mirror are still on their way; Ctrl-C: do not wait", file=sys.stderr, flush=True)
        if signals:
            return


def _verdict(run: Run, code: int) -> int:
    """Print how a followed run ended. Returns the exit code."""
    state = run.state
    status, started, ended = state["status"], state.get("started"), state.get("ended")
    took = f" in {duration(ended - started)}" if isinstance(started, float) and isinstance(ended, float) else ""
    line = f"run {run.id}: {status}{took}"
    if status == "done":
        print(line, file=sys.stderr)
        if run.kind == "finetune" and sys.stderr.isatty():
            words = shell_line(["--base", str(run.options.get("load") or "…"), "--tuned", str(run.path)])
            print(paint(f"next: qwen3vl compare {words} --images …", "dim", sys.stderr), file=sys.stderr)
        return EXIT_DONE
    if status == "failed":
        line += f", {state.get('error') or f'exit code {code}'}; its log is {run.log}"
    else:
        line += f"; resume it by {_command(run, 'resume')}"
    print(line, file=sys.stderr)
    return EXIT_INTERRUPTED if status == "stopped" else EXIT_REQUEST if code == EXIT_REQUEST else EXIT_FAILED


def _command(run: Run, *words: str) -> str:
    """`qwen3vl runs logs 7 --follow`, with --runs if the store is not the default one."""
    return _store_command(run, words[0], str(run.number), *words[1:])


def _store_command(run: Run, *words: str) -> str:
    """`qwen3vl runs queue`, for the store of a run."""
    store = [] if run.path.parent == runs_directory(None) else ["--runs", str(run.path.parent)]
    return shell_line(["qwen3vl", "runs", *words, *store])


# qwen3vl runs


def parser() -> argparse.ArgumentParser:
    """The parser, whose actions are the functions below."""
    actions = {
        "list": _list, "show": _show, "logs": _logs, "metrics": _metrics, "samples": _samples, "stop": _stop, "save": _save,
        "check": _check, "resume": _resume, "clone": _clone, "compare": _compare, "delete": _delete, "tensorboard": _tensorboard,
        "captions": captions_command.captions, "queue": queue_command.queue,
    }  # fmt: skip
    return build_parser(actions)


def runs(arguments: list[str]) -> int:
    """`qwen3vl runs ...`. Returns the exit code; raises RequestError and WorkError."""
    args = parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 still gets the table
    args.json = getattr(args, "json", False)
    return args.action(RunStore(runs_directory(getattr(args, "runs", None))), args)


def _list(store: RunStore, args: argparse.Namespace) -> int:
    runs = store.list()
    if args.json or args.filter or args.sort != "newest" or args.reverse:
        rows = filters.select_runs(map(run_json.summarize, runs), args.filter, args.sort, args.reverse)
        if args.json:
            print("[" + ",\n ".join(_json(run_json.as_json(row)) for row in rows) + "]")
            return EXIT_DONE
        if runs and not rows:
            print(f"none of {len(runs)} runs matches --filter {args.filter}")
            return EXIT_DONE
        known = {run.id: run for run in runs}
        runs = [known[row.id] for row in rows]
    none = f"no runs in {store.root}; qwen3vl finetune starts one"
    print("\n".join(_painted(runs, run_text.table(runs))) if runs else none + elsewhere(store.root))
    return EXIT_DONE


def _painted(runs: list[Run], lines: list[str]) -> list[str]:
    """The table of runs with colours on a terminal: the header, and the glyph of each state."""
    colours = {"done": "green", "failed": "red", "lost": "red", "stopped": "yellow"}
    head, *rows = lines
    rows = [paint(line[:1], colours.get(run.status, "cyan")) + line[1:] for run, line in zip(runs, rows, strict=True)]
    return [paint(head, "bold"), *rows]


def _show(store: RunStore, args: argparse.Namespace) -> int:
    run = store.get(args.id)
    if args.json:
        say(run_json.details(run))
    else:
        print("\n".join(run_text.describe(run)))
        found = remedies.remedy(run, diagnosis.diagnose(run))
        if found is not None:
            words = remedies.command_words(run, found)
            print(f"\n{paint(tr('the fix'), 'green')}: {run_text.plain(found.headline)}\n  {_command(run, words[0], *words[2:])}")
    return EXIT_DONE


def _logs(store: RunStore, args: argparse.Namespace) -> int:
    run = store.get(args.id)
    needle = args.grep.lower()
    tail = LogTail(run.log, lines=args.n if not needle else run_text.SEARCHED_LINES)

    def matching(lines: list[str]) -> list[str]:
        # programs read the tags
        lines = lines if args.json else [untagged(line) for line in lines]
        return [line for line in lines if needle in line.lower()] if needle else lines

    if args.json and not args.follow:
        lines = matching([*tail.read(), *filter(None, [tail.partial])])[-args.n :]
        say({"id": run.id, "status": run.status, "lines": lines})
        return EXIT_DONE
    first, followed = True, args.follow and run.alive
    try:
        while True:
            # checked before the read: if the run has ended, the read gets everything that it wrote
            more = args.follow and run.alive
            lines = matching(tail.read())
            for line in lines[-args.n :] if first else lines:
                say({"line": line}) if args.json else print(line)
            first = False
            sys.stdout.flush()
            if not more:
                break
            time.sleep(launch.POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"\nrun {run.id}: {run.status}; {_command(run, 'logs', '--follow')} shows it again", file=sys.stderr)
        return EXIT_DONE
    for line in matching([tail.partial]) if tail.partial else ():
        say({"line": line}) if args.json else print(line)
    if args.follow:
        print(f"run {run.id}: {run.status}", file=sys.stderr)
        if followed:
            bell.ring(f"run {run.id}: {run.status}", sys.stderr)
    return EXIT_DONE


def _metrics(store: RunStore, args: argparse.Namespace) -> int:
    run = store.get(args.id)
    from console.runs.metric_columns import MetricColumns  # numpy, which nothing else here needs

    columns = MetricColumns(run.metrics)
    for name in args.metric:
        if name not in columns.names:
            names = ", ".join(map(run_text.plain, columns.names)) or "none yet"
            raise RequestError(filled("--metric {}: run {} has no such metric; choose from {}", name, run.id, names))
    wanted = args.metric or columns.names
    if args.json:
        for piece in columns.json(run.id, wanted):
            sys.stdout.write(_STEERING.sub(_escaped, piece))
        print(flush=True)
        return EXIT_DONE
    print("\n".join(run_text.metrics_table(columns.columns(wanted))) if wanted else f"run {run.id}: no metrics yet")
    return EXIT_DONE


def _samples(store: RunStore, args: argparse.Namespace) -> int:
    run = store.get(args.id)
    rows = JsonlTail(run.path / SAMPLES).read()
    if args.json:
        say({"id": run.id, "samples": rows})
        return EXIT_DONE
    none = f"run {run.id}: no captions; --sample-interval and --sample-images make a finetune write some"
    print("\n".join(run_text.samples(rows)) if rows else none)
    return EXIT_DONE


def _stop(store: RunStore, args: argparse.Namespace) -> int:
    run = store.get(args.id)
    launch.stop(run, args.grace, foreign=args.foreign)
    if args.no_wait:
        say({"id": run.id, "status": run.status}) if args.json else print(f"run {run.id}: asked to stop")
        return EXIT_DONE
    if run.alive:
        print(f"run {run.id}: asked to stop; saving may take a while; Ctrl-C: do not wait", file=sys.stderr, flush=True)
    status = launch.wait(run)
    say({"id": run.id, "status": status}) if args.json else print(f"run {run.id}: {status}")
    return EXIT_DONE


def _save(store: RunStore, args: argparse.Namespace) -> int:
    run = store.get(args.id)
    launch.save_now(run)
    follow = _command(run, "logs", "--follow")
    say({"id": run.id, "asked": "save"}) if args.json else print(f"run {run.id}: asked to save at its next step; {follow} shows it")
    return EXIT_DONE


def _check(store: RunStore, given: argparse.Namespace) -> int:
    run = store.get(given.id)
    checkpoints = check.checkpoints(run)
    if not checkpoints:
        raise RequestError(filled("run {}: no checkpoints; a finetune writes some with --save-interval and at its end", run.id))
    if given.background:
        if not given.read_data:
            raise RequestError("--background: only --read-data takes long enough for it; add --read-data, or leave --background out")
        check.start(run)
        say({"id": run.id, "background": True}) if given.json else print(f"run {run.id}: {_command(run, 'check')} shows how far it is")
        return EXIT_DONE
    last = check.state_of(run)
    total = check.bytes_to_read(checkpoints) if given.read_data else None
    results = []
    with Progress("check", total, "B") if given.read_data else contextlib.nullcontext() as progress:
        for step, path in checkpoints:
            results.append(check.check(step, path, given.read_data, None if progress is None else progress.update))
    if given.json:
        rows = [item.as_json() for item in results]
        say({"id": run.id, "read_data": given.read_data, "checkpoints": rows, "background": last or None})
    else:
        for item in results:
            verdict = "as it was written" if given.read_data else "complete; --read-data compares every byte"
            if item.problem:
                verdict = f"DAMAGED: {run_text.plain(item.problem)}"
            elif item.unknown:
                verdict = "has no digests: an older version or another program wrote it"
            print(f"{item.path.name}  {quantity(item.bytes, 'B') if item.bytes else '–'}  {verdict}")
        if last:
            print(run_text.background_check(last))
        if run.kind == "finetune" and any(item.problem for item in results):
            print(f"a resume passes over the damaged ones by itself: {_command(run, 'resume')}", file=sys.stderr)
    return EXIT_FAILED if any(item.problem for item in results) else EXIT_DONE


def _resume(store: RunStore, args: argparse.Namespace) -> int:
    options = {o.name for o in options_of(FinetuneOptions)}
    changes = {name: value for name, value in vars(args).items() if name in options}
    run = store.get(args.id)
    if args.from_mirror or (args.from_mirror is None and mirror_restore.asked(run)):
        launch.require_own(run, args.foreign)
        step = mirror_restore.restore(run)
        print(f"run {run.id}: step {step} is back from {mirror_restore.place(run)}", file=sys.stderr)
    return begin(run, functools.partial(launch.resume, changes=changes, foreign=args.foreign), args.foreground, args.json)


def _clone(store: RunStore, args: argparse.Namespace) -> int:
    run = store.get(args.id)
    cls = COMMANDS.get(run.kind)
    if cls is None:
        raise RequestError(
            filled("run {}: a run of kind {} cannot be cloned; only {} can", run.id, run_text.plain(run.kind), ", ".join(COMMANDS))
        )
    if problem := version_problem(run.plan):
        raise RequestError(f"run {run.id}: {problem}")
    options = from_mapping(cls, {**run.options, **_changes(cls, args.set)})
    check_options(options)
    return begin(store.create(run.kind, options), launch.start, args.foreground, args.json)


def _changes(cls: type, words: list[str]) -> dict[str, Any]:
    """Parse `["lr=1e-5", "images=a", "images=b"]` into a mapping. Raises RequestError."""
    declared = {o.name: o for o in options_of(cls)}
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        o = declared.get(key.removeprefix("--").replace("-", "_"))
        if not equals:
            raise RequestError(filled("--set {}: must be OPTION=VALUE; for example --set lr=1e-5", word))
        if o is None:
            raise RequestError(filled("--set {}: no such option {}; choose from {}", word, key, ", ".join(declared)))
        if value == "":
            changes[o.name] = o.default
        elif o.many:
            changes[o.name] = [*changes.get(o.name, []), value]
        else:
            changes[o.name] = value
    return changes


def _compare(store: RunStore, args: argparse.Namespace) -> int:
    first, second = store.get(args.a), store.get(args.b)
    result = run_json.differences(first, second)
    say(result) if args.json else print("\n".join(run_text.comparison(result)))
    return EXIT_DONE


def _delete(store: RunStore, args: argparse.Namespace) -> int:
    runs = list(dict.fromkeys(store.get(ref) for ref in args.ids))
    if not args.yes:
        sizes = {run.id: launch.disk_usage(run.path) for run in runs}
        if args.json or not sys.stdin.isatty():
            raise RequestError(filled("delete: {} would free {}; add --yes to do it", ", ".join(sizes), quantity(sum(sizes.values()), "B")))
        print("\n".join(f"{run_id}  {quantity(size, 'B')}" for run_id, size in sizes.items()))
        answer = input(f"delete {len(runs)} run{'s' if len(runs) > 1 else ''} with all checkpoints? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing deleted")
            return EXIT_DONE
    for run in runs:
        freed = launch.delete(run, foreign=args.foreign)
        say({"id": run.id, "freed_bytes": freed}) if args.json else print(f"run {run.id}: deleted, {quantity(freed, 'B')} freed")
    return EXIT_DONE


def _tensorboard(store: RunStore, args: argparse.Namespace) -> int:
    from console.runs.tensorboard import TensorBoard  # needs a package that not every machine has

    board = TensorBoard([store.get(ref) for ref in dict.fromkeys(args.ids)], args.port)
    try:
        board.wait()
        if args.json:
            say({"url": board.url, "pid": board.process.pid})
        else:
            print(f"TensorBoard: {board.url}  (Ctrl-C ends it)", flush=True)
        board.process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        board.close()
    return EXIT_DONE
