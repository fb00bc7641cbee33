"""What the monitor and the comparison show, read off the screen's thread. Blocking; imports no Textual."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console.runs.store import Run
from console.runs.tail import JsonlTail, LogTail
from console.screens.watch import StoreWatcher
from console.widgets.curve import SLOTS, Line
from console.widgets.logpane import LogView
from console.widgets.raster import Smoother

LOG_LINES = 5000
METRICS = {
    "loss": "loss", "grad_norm": "gradient norm", "lr": "learning rate", "tokens_per_second": "trained tokens/s",
    "step_seconds": "seconds a step", "tokens": "trained tokens a step", "samples": "samples a step", "skipped": "samples skipped",
}  # fmt: skip
"""Metrics in the order of the monitor's key, with their titles; others follow under their own names."""
NOISY = ("loss", "grad_norm", "tokens_per_second", "step_seconds")
"""Metrics that smoothing makes clearer; an average of a schedule would only lag behind it."""


@dataclass(frozen=True)
class RunView:
    """The monitor's run at one look."""

    run_id: str
    metric: str
    weight: float
    lines: tuple[Line, ...] = ()
    metrics: tuple[str, ...] = ()
    """What can be shown."""
    log: LogView = field(default_factory=LogView)
    events: tuple[dict[str, Any], ...] = ()


class MonitorFeed:
    """Reads one run, and others to lay over it; keeps what it has read."""

    def __init__(self, watcher: StoreWatcher) -> None:
        self.watcher = watcher
        self.lock = threading.Lock()
        self._averages: dict[tuple[str, str, float], tuple[int, Smoother]] = {}
        self._log: tuple[str, LogTail] | None = None
        self._taken = 0

    def read(self, run: Run, others: Iterable[Run], metric: str, weight: float) -> RunView:
        """metric: as in METRICS. weight: of the smoothing, 0 for none."""
        with self.lock, self.watcher.lock:
            lines = []
            wanted = set()
            for slot, each in enumerate([run, *others]):
                series = self.watcher.series(each)
                lines.append(self._line(each.id, series, metric, weight, slot))
                wanted.add(each.id)
            main = self.watcher.series(run)
            if metric == "loss" and "eval/loss" in main.keys:
                x, y = main.xy("eval/loss")
                lines.append(Line("evaluation", x, y, None, SLOTS - 1))
            for key in [key for key in self._averages if key[0] not in wanted or key[1:] != (metric, weight)]:
                del self._averages[key]
            names = [name for name in METRICS if name in main.keys]
            names += [name for name in main.keys if name not in METRICS and "/" not in name]
            return RunView(run.id, metric, weight, tuple(lines), tuple(names), self._read_log(run), tuple(main.events))

    def _line(self, run_id: str, series: Any, metric: str, weight: float, slot: int) -> Line:
        x, y = series.xy(metric)
        if not weight or metric not in NOISY or not len(y):
            return Line(run_id, x, y, None, slot)
        key = (run_id, metric, weight)
        version, average = self._averages.get(key, (-1, None))
        if average is None or version != series.version or average.size > len(y):
            average = Smoother(weight)
        average.extend(y[average.size :])
        self._averages[key] = (series.version, average)
        return Line(run_id, x, y, average.values, slot)

    def _read_log(self, run: Run) -> LogView:
        if self._log is None or self._log[0] != run.id:
            self._log, self._taken = (run.id, LogTail(run.log, lines=LOG_LINES)), 0
        tail = self._log[1]
        resets = tail.resets
        new = tail.read()
        self._taken = (0 if tail.resets != resets else self._taken) + len(new)
        lines = tuple(tail.lines)
        return LogView(lines, tail.partial, max(self._taken - len(lines), 0), tail.resets)


@dataclass(frozen=True)
class Caption:
    """One model's caption of one picture, as far as it is written."""

    text: str = ""
    seconds: float | None = None
    done: bool = False


@dataclass
class Sample:
    """One picture with both captions."""

    image: str
    prompt: str = ""
    captions: dict[str, Caption] = field(default_factory=dict)
    """By model: `base`, `tuned`."""


class CaptionFeed:
    """Reads the samples of a compare run as they are written."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._path: Path | None = None
        self._tail: JsonlTail | None = None
        self._samples: dict[str, Sample] = {}

    def read(self, run: Run) -> tuple[Sample, ...]:
        """Samples in the order in which their pictures came; later rows of a picture and model replace earlier ones."""
        with self.lock:
            path = run.path / "samples.jsonl"
            if path != self._path or self._tail is None:
                self._path, self._tail, self._samples = path, JsonlTail(path), {}
            rows = self._tail.read()
            if self._tail.replaced:
                self._samples = {}
            for row in rows:
                self._take(row)
            return tuple(Sample(s.image, s.prompt, dict(s.captions)) for s in self._samples.values())

    def _take(self, row: dict[str, Any]) -> None:
        image, model, text = row.get("image"), row.get("model"), row.get("text")
        if not (isinstance(image, str) and isinstance(text, str) and model in ("base", "tuned")):
            return
        sample = self._samples.setdefault(image, Sample(image))
        if isinstance(row.get("prompt"), str):
            sample.prompt = row["prompt"]
        seconds = row.get("seconds")
        sample.captions[model] = Caption(
            text, float(seconds) if isinstance(seconds, int | float) else None, row.get("done") is not False
        )
