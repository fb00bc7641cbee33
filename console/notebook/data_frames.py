"""Runs as pandas data frames, for a notebook that wants to do its own thing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from console.notebook.stores import as_run, open_store
from console.runs import exports, launch
from console.runs.captions import SampleFeed, read_votes
from console.runs.run_text import last_of
from console.runs.series import MetricSeries
from console.runs.state import ALIVE
from console.runs.store import Run, RunStore
from console.runs.tail import LogTail
from qwen3vl_core.caption import report
from qwen3vl_core.caption.word_diff import count
from qwen3vl_core.errors import WorkError
from qwen3vl_core.run_metrics import METRICS, in_order, key_of, listed_keys
from qwen3vl_core.run_record import EVAL, TRAIN

__all__ = ["captions", "events", "metrics", "open_store", "runs", "scores", "wait"]

END_OF_LOG = 20


def runs(store: RunStore | Path | str | None = None, options: Iterable[str] = ()) -> pd.DataFrame:
    """Every run, newest first, one a row under its number.

    store: folder of the run store; None is $QWEN3VL_RUNS, else the usual one. options: names of options to give columns
    (`["lr", "global_batch_size"]`). `step`, `loss`, `val_loss` and the other metrics that lists show are the last ones recorded.
    Raises RequestError.
    """
    rows = []
    listed = listed_keys()
    evaluated = [key for key in listed if METRICS[key].evaluated]
    for run in open_store(store).list():
        state, last = run.state, last_of(run)
        row = {
            "run": run.number, "name": run.name, "kind": run.kind, "status": state["status"], "step": last.get("step"),
            "train_iters": run.options.get("train_iters"), **{key: last.get(key) for key in listed},
            **{f"val_{key}": last_of(run, EVAL).get(key) for key in evaluated},
            "created": run.created, "started": state.get("started"), "ended": state.get("ended"), "exit_code": state.get("exit_code"),
        }  # fmt: skip
        rows.append(row | {name: run.options.get(name) for name in options} | {"path": str(run.path)})
    measured = [*listed, *(f"val_{key}" for key in evaluated)]
    columns = ["run", "name", "kind", "status", "step", "train_iters", *measured, "created", "started", "ended", "exit_code"]
    frame = pd.DataFrame(rows, columns=[*columns, *options, "path"]).set_index("run")
    for name in ("created", "started", "ended"):
        # whole seconds: nine places behind them would fill the table
        frame[name] = pd.to_datetime(pd.to_numeric(frame[name], errors="coerce"), unit="s", utc=True).dt.floor("s")
    for name in ("step", "train_iters", "exit_code"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("Int64")
    for name in measured:
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def metrics(run: Run | str | int | Path, kind: str = TRAIN, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """What a run measured, one step a row, one metric a column; NaN where a step has none.

    run: a number, id or name in the store, or a run's folder. kind: `train` or `eval`. After a resume each step is there
    once, as it was trained last. Raises RequestError for a run that is not there.
    """
    series = MetricSeries(as_run(run, store).metrics)
    series.update()
    prefix = key_of(kind, "")
    keys = [name.removeprefix(prefix) for name in series.keys if (name.startswith(prefix) if prefix else "/" not in name)]
    columns = {}
    for key in in_order(keys):
        x, y = series.xy(key_of(kind, key))
        columns[key] = pd.Series(y, index=pd.Index(x, name="step"))
    if not columns:
        return pd.DataFrame(index=pd.Index([], dtype="int64", name="step"))
    return pd.concat(columns, axis=1).rename_axis(index="step").sort_index()


def events(run: Run | str | int | Path, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """What happened in a run (start, save, resume, stop, ...): columns step, time, event, text, path of a checkpoint."""
    series = MetricSeries(as_run(run, store).metrics)
    series.update()
    frame = pd.DataFrame(series.events, columns=["step", "time", "event", "text", "path"])
    frame["time"] = pd.to_datetime(pd.to_numeric(frame["time"], errors="coerce"), unit="s", utc=True)
    return frame


def captions(run: Run | str | int | Path, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """The captions of a compare run, one picture a row: image, prompt, each model's caption under its name (`base`, `tuned`, or
    one for each checkpoint), their words and seconds, what people wrote (references), and the vote given to it."""
    feed = SampleFeed(as_run(run, store))
    feed.read()
    votes = read_votes(feed.run, feed.names).choices
    rows: list[dict[str, Any]] = []
    for sample in feed.samples:
        found = {name: sample.captions.get(name) for name in feed.names}
        row: dict[str, Any] = {"image": sample.image, "prompt": sample.prompt or feed.head.prompt}
        row |= {name: caption.text if caption else None for name, caption in found.items()}
        row |= {f"{name}_words": count(caption.text) if caption else None for name, caption in found.items()}
        row |= {f"{name}_seconds": caption.seconds if caption else None for name, caption in found.items()}
        rows.append(row | {"references": list(sample.references), "vote": votes.get(sample.image)})
    sides = [f"{name}{what}" for what in ("", "_words", "_seconds") for name in feed.names]
    return pd.DataFrame(rows, columns=["image", "prompt", *sides, "references", "vote"])


def scores(run: Run | str | int | Path, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """What can be counted about the captions of a compare run, as people read it: one count a row, one model a column.

    Words, repeated passages, votes; with references also ROUGE-L and CIDEr. Raises RequestError for a run of another kind,
    WorkError while no picture has all its captions.
    """
    comparison = exports.comparison_of(as_run(run, store))
    found = report.score_rows(comparison)
    return pd.DataFrame([values for _, values in found], columns=comparison.names, index=[name for name, _ in found])


def wait(
    run: Run | str | int | Path, *, store: RunStore | Path | str | None = None, timeout: float | None = None, show: bool = True
) -> str:
    """Wait until a run has ended, showing the last line of its log meanwhile; gives its status.

    An interrupt ends the waiting, not the run. timeout: seconds; the status it has then. Raises WorkError, with the end of
    its log, for a run that failed.
    """
    found = as_run(run, store)
    for line in _last_lines(found, timeout):
        if show:
            print(f"\r{line[:120]:<120}", end="", flush=True)
    status = found.status
    if show:
        print(f"\r{f'run {found.id}: {status}':<120}")
    if status == "failed":
        tail = LogTail(found.log, lines=END_OF_LOG)
        said = [*tail.read(), *filter(None, [tail.partial])]
        raise WorkError("\n".join([f"run {found.id}: failed, {found.error or f'exit code {found.exit_code}'}; its log ends with", *said]))
    return status


def _last_lines(run: Run, timeout: float | None) -> Iterator[str]:
    """The log's last line each time it has changed, until the run has ended."""
    until = None if timeout is None else time.monotonic() + timeout
    tail, before = LogTail(run.log, lines=1), ""
    while launch.wait(run, 0.25) in ALIVE and (until is None or time.monotonic() < until):
        tail.read()
        line = tail.partial or (tail.lines[-1] if tail.lines else "")
        if line != before:
            before = line
            yield line
