"""Reads what the list of runs shows beside it of the run under the cursor. Blocking; imports no Textual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from console.curves.lines import CurveLine
from console.formatting import metric_title
from console.runs.diagnosis import diagnose
from console.runs.remedies import remedy
from console.runs.run_text import changed, plain
from console.runs.store import Run
from console.runs.tail import LogTail, sampled_rows
from qwen3vl_core.language import tr
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.problems import flag_of
from qwen3vl_core.run_metrics import LOSS, key_of
from qwen3vl_core.run_record import EVAL, TRAIN

PARTS = 120
"""Pieces of a large file of metrics that are read for the curve: about one for each column."""
LOG_LINES = 40
NO_OPTIONS = ("name", "load", "train_data")
"""Options that say nothing beside a list: nearly every run has them."""


@dataclass(frozen=True)
class Preview:
    """The run under the cursor at one moment."""

    run_id: str
    lines: tuple[CurveLine, ...] = ()
    """Its loss, and that of its evaluations."""
    options: tuple[tuple[str, str], ...] = ()
    """(flag, value) of those that differ from their defaults; paths last."""
    cause: str = ""
    """Why it failed."""
    fix: str = ""
    """The change that gets it to work."""
    log: tuple[str, ...] = ()


def read(run: Run) -> Preview:
    """The preview of a run. Reads at most half a megabyte of its metrics."""
    rows = sampled_rows(run.metrics, PARTS) if run.kind == "finetune" else []
    lines = [_line(rows, TRAIN, metric_title(LOSS), 0), _line(rows, EVAL, metric_title(key_of(EVAL, LOSS)), 1)]
    found = diagnose(run)
    fix = remedy(run, found)
    values = {name: value for name, value in changed(run).items() if name not in NO_OPTIONS}
    options = sorted(((flag_of(name), _shown(value)) for name, value in values.items()), key=lambda pair: "/" in pair[1])
    tail = LogTail(run.log, lines=LOG_LINES)
    said = [*tail.read(), *filter(None, [tail.partial])]
    return Preview(
        run.id, tuple(line for line in lines if line is not None), tuple(options), tr(found.headline) if found is not None else "",
        fix.headline if fix is not None else "", tuple(untagged(line) for line in said),
    )  # fmt: skip


def _line(rows: list[dict[str, Any]], kind: str, label: str, slot: int) -> CurveLine | None:
    """The losses among the rows of a kind, the last of each step; None without any."""
    own = [row for row in rows if row.get("kind") == kind]
    points = {row["step"]: row[LOSS] for row in own if _is_number(row.get("step")) and _is_number(row.get(LOSS))}
    if not points:
        return None
    steps = sorted(points)
    return CurveLine(label, np.array(steps, dtype=float), np.array([float(points[step]) for step in steps]), False, slot)


def _shown(value: Any) -> str:
    return tr("on" if value else "off") if isinstance(value, bool) else plain(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
