"""How fast a finetune is, and when it ends, from the last rows of its metrics."""

from __future__ import annotations

from typing import Any

from console.runs.store import Run
from console.runs.tail import last_rows
from qwen3vl_core.run_metrics import STEP_SECONDS
from qwen3vl_core.run_record import TRAIN, finite

LIKE = ("load", "size", "nproc", "tp", "pp", "cp", "ep", "seq_length", "global_batch_size", "precision", "packing", "lora_rank")
"""Options with which runs take about as long for a step."""
LAST_ROWS_BYTES = 64 << 10


def pace(rows: list[dict[str, Any]]) -> float | None:
    """Average seconds per step over the last rows of the current attempt; None if unknown."""
    steps = [(r["step"], r["time"]) for r in rows if isinstance(r.get("step"), int) and isinstance(r.get("time"), int | float)][-20:]
    # a resume goes back in steps or leaves a gap in time: only the rows after it count
    begin = max((i for i in range(1, len(steps)) if steps[i][0] <= steps[i - 1][0]), default=0)
    steps = steps[begin:]
    if len(steps) < 2:
        seconds = rows[-1].get(STEP_SECONDS) if rows else None
        return float(seconds) if isinstance(seconds, int | float) else None
    return max(steps[-1][1] - steps[0][1], 0.0) / (steps[-1][0] - steps[0][0])


def seconds_left(run: Run, like: list[Run]) -> float | None:
    """Seconds to the last step of a finetune once it works, by its own steps, else by those of the newest of `like` with the same
    layout; None if unknown."""
    total = finite(run.options.get("train_iters"))
    if total is None:
        return None
    rows = _train_rows(run)
    seconds, step = pace(rows), finite(rows[-1].get("step")) if rows else 0.0
    if seconds is None:
        options = run.options
        same = (other for other in like if other != run and all(other.options.get(name) == options.get(name) for name in LIKE))
        seconds = next(filter(None, (pace(_train_rows(other)) for other in same)), None)
    if seconds is None or step is None:
        return None
    return max(total - step, 0) * seconds


def _train_rows(run: Run) -> list[dict[str, Any]]:
    return [row for row in last_rows(run.metrics, LAST_ROWS_BYTES) if row.get("kind") == TRAIN]
