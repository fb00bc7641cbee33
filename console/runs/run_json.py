"""Runs as JSON: what `--json` prints, for scripts. The same values as on the screens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from console.runs.diagnosis import diagnose
from console.runs.run_text import changed, last_of
from console.runs.store import Run
from qwen3vl_core.run_metrics import listed, listed_keys
from qwen3vl_core.run_record import ALIVE, CHECKPOINTS, EVAL, TRAIN, checkpoint_step, finite


@dataclass
class RunSummary:
    """One run in a list."""

    id: str
    number: int
    name: str
    kind: str
    status: str
    exit_code: int | None
    error: str | None
    stalled: str | None
    """Of a stalled run: since when, and which rank is behind."""
    step: int | None
    total: int | None
    metrics: Mapping[str, float]
    """Metrics of the last train row: those that the lists show."""
    created: float | None
    started: float | None
    ended: float | None
    path: str
    options: dict[str, Any] = field(repr=False)


def summarize(run: Run) -> RunSummary:
    """Current summary of one run."""
    state, row = run.state, last_of(run)
    step, total = row.get("step"), run.options.get("train_iters")
    code, error = state.get("exit_code"), state.get("error")
    stalled = state.get("stalled") if state["status"] in ALIVE else None
    return RunSummary(
        id=run.id, number=run.number, name=run.name, kind=run.kind, status=state["status"],
        exit_code=code if isinstance(code, int) else None, error=error if isinstance(error, str) else None,
        stalled=stalled if isinstance(stalled, str) else None,
        step=step if isinstance(step, int) else None, total=total if isinstance(total, int) else None, metrics=listed(row),
        created=run.created, started=run.started, ended=run.ended, path=str(run.path), options=run.options,
    )  # fmt: skip


def as_json(summary: RunSummary) -> dict[str, Any]:
    """A row of `runs list --json`, with the listed metrics by key, without the options (`runs show` has them)."""
    row: dict[str, Any] = {}
    for name, value in vars(summary).items():
        if name == "metrics":
            row |= {key: finite(summary.metrics.get(key)) for key in listed_keys()}
        elif name != "options":
            row[name] = value
    return row


def checkpoints(run: Run) -> list[int]:
    """Steps of the existing checkpoints, in ascending order."""
    try:
        names = [path.name for path in (run.path / CHECKPOINTS).iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(step for name in names if (step := checkpoint_step(name)) is not None)


def details(run: Run) -> dict[str, Any]:
    """Everything of one run: `runs show --json`."""
    diagnosis = diagnose(run)
    return {
        **as_json(summarize(run)), "plan": run.plan, "state": run.state, TRAIN: last_of(run), EVAL: last_of(run, EVAL),
        "checkpoints": checkpoints(run), "trouble": diagnosis.as_json() if diagnosis else None,
    }  # fmt: skip


def differences(first: Run, second: Run) -> dict[str, Any]:
    """What `runs compare` shows, as JSON or as text: kind, status, options that differ, planned steps and last rows, each as
    [first, second].

    For two runs of different kinds, whose options all differ: only the options that are not at their default.
    """
    runs, options = [first, second], [first.options, second.options]
    names = [name for name in {**options[0], **options[1]} if name != "name"]
    if first.kind != second.kind:
        set_by_hand = {name for run in (first, second) for name in changed(run)}
        names = [name for name in names if name in set_by_hand]
    return {
        "runs": [run.id for run in runs], "kind": [run.kind for run in runs], "status": [run.status for run in runs],
        "options": {n: [o.get(n) for o in options] for n in names if options[0].get(n) != options[1].get(n)},
        "total": [o.get("train_iters") for o in options],
        TRAIN: [last_of(run) for run in runs], EVAL: [last_of(run, EVAL) for run in runs],
    }  # fmt: skip
