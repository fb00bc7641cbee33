"""Runs as pandas data frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from console.notebook.metric_table import STEP, TIME, read_columns
from console.notebook.stores import as_run, open_store
from console.runs import exports
from console.runs.captions import SampleFeed, read_votes
from console.runs.run_text import last_of
from console.runs.series import MetricSeries
from console.runs.store import Run, RunStore
from qwen3vl_core.caption.word_diff import count
from qwen3vl_core.run_metrics import METRICS, in_order, listed_keys
from qwen3vl_core.run_record import EVAL, TRAIN

__all__ = ["captions", "events", "metrics", "open_store", "runs", "scores"]


def runs(store: RunStore | Path | str | None = None, options: Iterable[str] = ()) -> pd.DataFrame:
    """All runs, newest first, one per row, indexed by their number.

    store: folder of the run store; default: $QWEN3VL_RUNS, else ~/.qwen3vl/runs. options: names of options to add as columns
    (`["lr", "global_batch_size"]`). `step`, `loss`, `val_loss` and the other listed metrics are those recorded last.
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
    metric_columns = [*listed, *(f"val_{key}" for key in evaluated)]
    columns = ["run", "name", "kind", "status", "step", "train_iters", *metric_columns, "created", "started", "ended", "exit_code"]
    frame = pd.DataFrame(rows, columns=[*columns, *options, "path"]).set_index("run")
    for name in ("created", "started", "ended"):
        # whole seconds: nine decimals would fill the table
        frame[name] = pd.to_datetime(pd.to_numeric(frame[name], errors="coerce"), unit="s", utc=True).dt.floor("s")
    for name in ("step", "train_iters", "exit_code"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("Int64")
    for name in metric_columns:
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def metrics(run: Run | str | int | Path, kind: str = TRAIN, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """The metrics of a run: one row per step, the time of the row, one column per metric; NaN where a step lacks one.

    run: a number, id or name in the store, or a run's folder. kind: `train` or `eval`. A step that was trained again after a
    resume appears once, with its last values. Raises RequestError for a run that does not exist.
    """
    columns = read_columns(as_run(run, store).metrics, kind)
    index = pd.Index(columns.pop(STEP, np.empty(0, np.int64)), name=STEP)
    times = columns.pop(TIME, None)
    frame = pd.DataFrame({key: columns[key] for key in in_order(list(columns))}, index=index, copy=False)
    if times is not None:
        frame.insert(0, TIME, pd.to_datetime(times, unit="s", utc=True))
    return frame


def events(run: Run | str | int | Path, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """The events of a run (start, save, resume, stop, ...): step, time, event, text, and the path of a saved checkpoint."""
    series = MetricSeries(as_run(run, store).metrics)
    series.update()
    frame = pd.DataFrame(series.events, columns=["step", "time", "event", "text", "path"])
    frame["time"] = pd.to_datetime(pd.to_numeric(frame["time"], errors="coerce"), unit="s", utc=True)
    return frame


def captions(run: Run | str | int | Path, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """The captions of a compare run, one row per picture: image, prompt, each model's caption under its name (`base`, `tuned`, or
    one for each checkpoint), their words and seconds, the references, and the vote."""
    feed = SampleFeed(as_run(run, store))
    feed.read()
    votes = read_votes(feed.run, feed.names).choices
    rows: list[dict[str, Any]] = []
    for sample in feed.samples:
        by_model = {name: sample.captions.get(name) for name in feed.names}
        row: dict[str, Any] = {"image": sample.image, "prompt": sample.prompt or feed.head.prompt}
        row |= {name: caption.text if caption else None for name, caption in by_model.items()}
        row |= {f"{name}_words": count(caption.text) if caption else None for name, caption in by_model.items()}
        row |= {f"{name}_seconds": caption.seconds if caption else None for name, caption in by_model.items()}
        rows.append(row | {"references": list(sample.references), "vote": votes.get(sample.image)})
    model_columns = [f"{name}{suffix}" for suffix in ("", "_words", "_seconds") for name in feed.names]
    return pd.DataFrame(rows, columns=["image", "prompt", *model_columns, "references", "vote"])


def scores(run: Run | str | int | Path, *, store: RunStore | Path | str | None = None) -> pd.DataFrame:
    """The scores of a compare run's captions as numbers: one row per score, one column per model.

    Words, repeated passages (a share), empty captions, votes; with references also the ratio of lengths, ROUGE-L (0 to 1) and CIDEr-D
    (0 to 10), NaN for fewer than two pictures. Raises RequestError for a run of another kind, WorkError while no picture has all its
    captions.
    """
    comparison = exports.comparison_of(as_run(run, store))
    found, votes = comparison.scores(), comparison.tally()
    by_model = {
        name: {
            "words": m.words, "fewest words": m.fewest_words, "most words": m.most_words, "repeated passages": m.repetition,
            "empty captions": m.empty, "length to references'": m.length_ratio, "ROUGE-L": m.rouge_l,
            "CIDEr-D": m.cider if found.referenced > 1 else None, "votes": votes[name],
        } for name, m in found.models.items()
    }  # fmt: skip
    return pd.DataFrame(by_model, columns=comparison.names).astype(float)
