"""Runs as text: a table, all about one run, two side by side."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console.formatting import GLYPHS
from console.runs.diagnosis import diagnose
from console.runs.forecast import words_of
from console.runs.state import owner_name, read_json, sign_of_life
from console.runs.store import Run
from console.runs.tail import LogTail, last_rows
from qwen3vl_core.formats import duration, number, printable, quantity, span
from qwen3vl_core.language import tr
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.options import COMMANDS, options_of, shell_line
from qwen3vl_core.run_metrics import METRICS, key_of, listed_keys, summary, title_of
from qwen3vl_core.run_record import ALIVE, ENDED, EVAL, MIRROR, TRAIN, version_problem

if TYPE_CHECKING:
    from console.runs.metric_columns import Column

NO_DIFFERENCE = "no option differs"
LEAST_ROOM = 6
"""Characters of a column of texts that a narrow terminal leaves."""
SEARCHED_LINES = 200_000
"""Number of lines at the end of a log that `runs logs --grep` searches."""


def plain(value: Any) -> str:
    """Any value of a record on one line, printable."""
    if isinstance(value, list):
        return " ".join(plain(v) for v in value)
    return "–" if value is None else printable(value).replace("\n", " ")


def last_of(run: Run, kind: str = TRAIN) -> dict[str, Any]:
    """The last row of a kind near the end of the metrics; empty if there is none."""
    return next((row for row in reversed(last_rows(run.metrics)) if row.get("kind") == kind), {})


def step_of(run: Run, row: dict[str, Any]) -> str:
    """`63/100`: progress of a training run."""
    return _step(row.get("step"), run.options.get("train_iters"))


def _step(step: Any, total: Any) -> str:
    if not isinstance(step, int):
        return "–"
    return f"{step}/{total}" if isinstance(total, int) else str(step)


def table(runs: list[Run], width: int | None = None) -> list[str]:
    """A header and one line per run: glyph, id, kind, status, step, the listed metrics, age."""
    listed = listed_keys()
    rows = [("", "ID", "KIND", "STATUS", "STEP", *(METRICS[key].title.upper() for key in listed), "AGE")]
    for run in runs:
        state, row = run.state, last_of(run)
        status, code = state["status"], state.get("exit_code")
        when = run.created
        shown = f"failed, exit {code}" if status == "failed" and isinstance(code, int) else status
        shown += ", stalled" if state.get("stalled") and status in ALIVE else ""
        since = span(time.time() - when if when else None)
        rows.append((GLYPHS[status], run.id, plain(run.kind), shown, step_of(run, row), *(number(row.get(key)) for key in listed), since))
    return _columns(rows, width, right=tuple(range(4, 6 + len(listed))))


def lost_words(run: Run) -> str:
    """What is known of a lost run: `its supervisor is gone since 3 min`."""
    quiet = sign_of_life(run.path)
    return tr("its supervisor is gone") if quiet is None else tr("its supervisor is gone since {time}", time=span(quiet))


def describe(run: Run) -> list[str]:
    """All about one run: its state, plan and last metrics; if it failed, the last lines of its log."""
    plan, state = run.plan, run.state
    status, code = state["status"], state.get("exit_code")
    head = f"{GLYPHS[status]} {run.id}  {plain(run.kind)}  {status}"
    lines = [head + (f", exit code {code}" if isinstance(code, int) and code else "")]
    if status == "lost":
        lines.append(f"  {lost_words(run)}; qwen3vl runs stop {run.number} ends what is left, qwen3vl runs resume {run.number} resumes it")
    if words := words_of(run):
        lines.append(f"  {words}; qwen3vl runs queue shows the order")
    if problem := version_problem(plan):
        lines.append(f"  {problem}")
    if state.get("stalled") and status in ALIVE:
        lines.append(f"  {plain(state['stalled'])}")
    if run.error:
        lines.append(f"  {plain(run.error)}")
    mirrored = read_json(run.path / MIRROR)
    if mirrored.get("error"):
        lines.append(f"  not mirrored: {plain(mirrored['error'])}")
    lines += _pairs("", {
        "folder": run.path,
        "owner": _owner(run),
        "created": _clock(run.created),
        "started": _clock(run.started),
        "took" if status in ENDED else "running for": _took(run.started, run.ended if status in ENDED else time.time()),
        "host": plan.get("host"),
        "processors": f"{plan.get('cpus', '?')} CPU, {plan.get('gpus', '?')} GPU",
        "git": plan.get("git"),
        "versions": ", ".join(f"{k} {v}" for k, v in _mapping(plan.get("versions")).items()),
        "command": shell_line(run.command),
        "mirror": _mirror(mirrored),
    })  # fmt: skip
    lines += _pairs("options that differ from their defaults", changed(run))
    for kind, title in ((TRAIN, "last step"), (EVAL, "last evaluation")):
        row = last_of(run, kind)
        if row:
            lines += _pairs(f"{title} {step_of(run, row)}", {name: number(value) for name, (value,) in summary({kind: [row]})})
    if status in ("failed", "lost"):
        tail = LogTail(run.log, lines=10)
        said = [*tail.read(), *filter(None, [tail.partial])]
        diagnosis = diagnose(run)
        if diagnosis is not None and diagnosis.advice:
            lines += ["", tr("why it ended: ") + f"{plain(tr(diagnosis.headline))}"]
            lines += [f"  {plain(tr(text))}" for text in (diagnosis.text, diagnosis.advice) if text and text != diagnosis.headline]
        lines += ["", "end of its log", *(f"  {untagged(line)}" for line in said)] if said else []
    return lines


def metrics_table(columns: Iterable[Column], width: int | None = None) -> list[str]:
    """One line per metric: its last step, last value, lowest and highest."""
    rows = [("METRIC", "STEPS", "LAST STEP", "LAST", "LOWEST", "HIGHEST")]
    for name, steps, values in columns:
        finite = values[values == values]  # without NaN
        last = number(values[-1].item()) if len(values) and values[-1] == values[-1] else "–"
        ends = (number(finite.min().item()), number(finite.max().item())) if len(finite) else ("–", "–")
        rows.append((plain(name), f"{len(steps):,}", f"{steps[-1]:,}" if len(steps) else "–", last, *ends))
    return _columns(rows, width, right=(1, 2, 3, 4, 5))


def background_check(state: Mapping[str, Any]) -> str:
    """One line about `check.json`: how far it is, or what it has found."""
    read, total = (value if isinstance(value := state.get(key), int) else 0 for key in ("read", "total"))
    if not state.get("done"):
        ended = "" if state.get("alive") else ", then it ended"
        return f"in the background: {quantity(read, 'B')} of {quantity(total, 'B')} read{ended}"
    checkpoints = [item for item in state.get("checkpoints") or [] if isinstance(item, dict)]
    damaged = [f"{plain(Path(str(item.get('path'))).name)}: {plain(item['problem'])}" for item in checkpoints if item.get("problem")]
    when = state.get("time")
    ago = f" {span(time.time() - when)} ago" if isinstance(when, int | float) else ""
    verdict = f"DAMAGED: {'; '.join(damaged)}" if damaged else f"{len(checkpoints)} as written"
    return f"in the background{ago}, every byte: {verdict}"


def samples(rows: list[dict[str, Any]]) -> list[str]:
    """Captions as lines: picture, then step or model with its text."""
    pictures: dict[str, list[str]] = {}
    for row in rows:
        who = f"step {row['step']}" if isinstance(row.get("step"), int) else plain(row.get("model"))
        pictures.setdefault(plain(row.get("image")), []).append(f"  {who:>10}  {' '.join(plain(row.get('text')).split())}")
    return [line for picture, lines in pictures.items() for line in (picture, *lines)]


def comparison_rows(difference: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (name, value of the first run, value of the second) of `run_json.differences`; the first row has their ids."""
    pairs: list[tuple[str, Iterable[str]]] = [
        ("", difference["runs"]), ("kind", map(plain, difference["kind"])), ("status", difference["status"]),
    ]  # fmt: skip
    pairs += [(f"--{name.replace('_', '-')}", map(plain, pair)) for name, pair in difference["options"].items()]
    for kind in (TRAIN, EVAL):
        if any(last := difference[kind]):
            steps = (_step(row.get("step"), total) for row, total in zip(last, difference["total"], strict=True))
            pairs.append((title_of(key_of(kind, "step")), steps))
            pairs += [(title, map(number, values)) for title, values in summary({kind: last})]
    return [(what, first, second) for what, (first, second) in pairs]


def comparison(difference: Mapping[str, Any], width: int | None = None) -> list[str]:
    """The result of `run_json.differences`, side by side."""
    lines = _columns(comparison_rows(difference), width)
    return lines if difference["options"] else [*lines, NO_DIFFERENCE]


def changed(run: Run) -> dict[str, Any]:
    """Options that differ from their defaults; all options if the kind is unknown."""
    cls = COMMANDS.get(run.kind)
    if cls is None:
        return run.options
    defaults = {o.name: o.default for o in options_of(cls)}
    return {k: v for k, v in run.options.items() if k not in defaults or v != defaults[k]}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mirror(record: Mapping[str, Any]) -> str | None:
    """The folder with the run's copies, and their steps."""
    steps = record.get("steps")
    if not isinstance(steps, list) or not steps:
        return None
    return f"{plain(record.get('to'))}, step{'s' if len(steps) > 1 else ''} {plain(steps[-8:])}"


def _owner(run: Run) -> str | None:
    """Of a run of another user."""
    uid = run.path.lstat().st_uid
    return None if uid == os.geteuid() else owner_name(uid)


def _clock(when: float | None) -> str | None:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if when is not None else None
    except (OverflowError, ValueError, OSError):
        return None


def _took(begin: float | None, end: float | None) -> str | None:
    return duration(end - begin) if begin is not None and end is not None else None


def _pairs(title: str, values: dict[str, Any]) -> list[str]:
    """`name  value` lines under a title; names without a value are omitted."""
    shown = {plain(name): plain(value) for name, value in values.items() if value not in (None, "", [])}
    if not shown:
        return []
    room = max(map(len, shown))
    return [*(["", title] if title else []), *(f"  {name:{room}s}  {text}" for name, text in shown.items())]


def _columns(rows: Sequence[tuple[str, ...]], width: int | None, right: tuple[int, ...] = ()) -> list[str]:
    """Rows with their columns aligned in the terminal's width: the widest texts are cut, numbers and the last column stay."""
    width = width or shutil.get_terminal_size((160, 24)).columns
    rooms = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    while (over := sum(rooms) + 2 * (len(rooms) - 1) - width) > 0:
        widest = max((i for i in range(len(rooms)) if i not in right), key=lambda i: rooms[i], default=None)
        if widest is None or rooms[widest] <= LEAST_ROOM:
            break
        # no narrower at once than the next one
        next_room = max((rooms[i] for i in range(len(rooms)) if i not in right and rooms[i] < rooms[widest]), default=LEAST_ROOM)
        rooms[widest] = max(rooms[widest] - over, next_room, LEAST_ROOM) if next_room < rooms[widest] else rooms[widest] - 1
    lines = []
    for row in rows:
        cut = [c if len(c) <= room else c[: room - 1] + "…" for c, room in zip(row, rooms, strict=True)]
        cells = [c.rjust(room) if i in right else c.ljust(room) for i, (c, room) in enumerate(zip(cut, rooms, strict=True))]
        line = "  ".join(cells).rstrip()
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return lines
