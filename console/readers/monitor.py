"""Reads what the monitor shows, outside the screen's thread. Blocking; imports no Textual."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from console.curves.lines import SLOTS, CurveLine, Extremes, extremes
from console.readers.store_watcher import StoreWatcher
from console.runs.caption_history import CaptionHistory, HistoryFeed
from console.runs.diagnosis import Diagnosis, explain, explain_more
from console.runs.remedies import Remedy, remedy
from console.runs.run_text import lost_words
from console.runs.series import MetricSeries
from console.runs.store import Run
from console.runs.tail import LogTail, LogView
from qwen3vl_core.log_lines import untagged
from qwen3vl_core.run_metrics import in_order, is_noisy, key_of, title_of
from qwen3vl_core.run_record import EVAL

LOG_LINES = 5000
READ_BYTES = 4 << 20
"""Of one run's metrics at one look; a run of a million steps is drawn as it is read."""
FAILED_STATES = ("failed", "lost")


@dataclass(frozen=True)
class RunView:
    """State of the monitor's run at one moment."""

    run_id: str
    metric: str
    lines: tuple[CurveLine, ...] = ()
    metrics: tuple[str, ...] = ()
    """Metrics that can be shown."""
    extremes: Extremes | None = None
    """Smallest and largest value of the metric in this run."""
    evaluated: Extremes | None = None
    """The same of its evaluations."""
    log: LogView = field(default_factory=LogView)
    events: tuple[dict[str, Any], ...] = ()
    diagnosis: Diagnosis | None = None
    """Why a run failed, if that is known."""
    lost: str = ""
    """What is known of a lost run in a few words."""
    stories: tuple[CaptionHistory, ...] = ()
    reading: bool = False
    """Whether there is more to read now."""
    charts: Mapping[str, CurveLine] = field(default_factory=dict)
    """Lines of other metrics that were asked for and the run has."""
    remedy: Remedy | None = None
    """The change that gets a failed run to work, if one is known."""


class MonitorFeed:
    """Reads one run, and others to overlay; keeps what it has read."""

    def __init__(self, watcher: StoreWatcher) -> None:
        self.watcher = watcher
        self.lock = threading.Lock()
        self._extremes: dict[str, tuple[tuple[str, int, int], Extremes | None]] = {}
        """By metric: (run, version and length of its series; its extremes)"""
        self._log: tuple[str, LogTail] | None = None
        self._taken = 0
        self._diagnosis: tuple[tuple[Any, ...], tuple[int, str], Diagnosis | None] | None = None
        """(key of the run's state and log, how far the log was searched, the diagnosis)"""
        self._remedy: tuple[tuple[str, Diagnosis | None], Remedy | None] | None = None
        self._samples: HistoryFeed | None = None

    def read(self, run: Run, others: Iterable[Run], metric: str, charted: Iterable[str] = ()) -> RunView:
        """metric: a key of a train row. charted: others, of which only this run's lines are read."""
        with self.lock, self.watcher.lock:
            lines = []
            reading = False
            for slot, each in enumerate([run, *others]):
                series = self.watcher.series(each, READ_BYTES)
                reading = reading or series.behind
                lines.append(CurveLine(each.id, *series.xy(metric), is_noisy(metric), slot))
            main = self.watcher.series(run, 0)
            evaluated = key_of(EVAL, metric)
            if evaluated in main.keys:
                x, y = main.xy(evaluated)
                lines.append(CurveLine(title_of(evaluated), x, y, False, SLOTS - 1))
            charts = {name: CurveLine(run.id, *main.xy(name), is_noisy(name)) for name in charted if name in main.keys and name != metric}
            names = in_order([name for name in main.keys if "/" not in name])
            log = self._read_log(run)
            diagnosis = self._explain(run, log)
            return RunView(
                run.id, metric, tuple(lines), tuple(names), self._extremes_of(run, main, metric), self._extremes_of(run, main, evaluated),
                log, tuple(main.events), diagnosis, lost_words(run) if run.status == "lost" else "", self._read_samples(run),
                reading, charts, self._remedy_of(run, diagnosis),
            )  # fmt: skip

    def _explain(self, run: Run, log: LogView) -> Diagnosis | None:
        state = run.state
        code = state.get("exit_code")
        if state["status"] not in FAILED_STATES:
            return None
        code = code if isinstance(code, int) else None
        key = (run.id, state["status"], code, log.resets, log.whole)
        count = log.dropped + len(log.lines)
        assert self._log is not None  # it has been read
        tail = self._log[1]
        raw = (*tail.lines, *filter(None, [tail.partial]))  # with the tags, which the diagnosis reads
        if self._diagnosis is None or self._diagnosis[0] != key:
            diagnosis = explain(raw, code)
        else:
            _, (before, cut), diagnosis = self._diagnosis
            if (count, log.partial) != (before, cut):
                # what runs on elsewhere may write for hours after its supervisor was lost: only what is new is searched
                diagnosis = explain_more(diagnosis, raw[max(before - log.dropped, 0) :], code)
        self._diagnosis = (key, (count, log.partial), diagnosis)
        return diagnosis

    def _remedy_of(self, run: Run, diagnosis: Diagnosis | None) -> Remedy | None:
        """Found once for each diagnosis: the planner takes its time."""
        key = (run.id, diagnosis)
        if self._remedy is None or self._remedy[0] != key:
            self._remedy = (key, remedy(run, diagnosis))
        return self._remedy[1]

    def _read_samples(self, run: Run) -> tuple[CaptionHistory, ...]:
        if self._samples is None or self._samples.run.id != run.id:
            self._samples = HistoryFeed(run)
        return self._samples.read()

    def _extremes_of(self, run: Run, series: MetricSeries, key: str) -> Extremes | None:
        x, y = series.xy(key)
        now = (run.id, series.version, len(y))
        known = self._extremes.get(key)
        if known is None or known[0] != now:
            known = self._extremes[key] = (now, extremes(x, y))
        return known[1]

    def _read_log(self, run: Run) -> LogView:
        if self._log is None or self._log[0] != run.id:
            self._log, self._taken = (run.id, LogTail(run.log, lines=LOG_LINES)), 0
        tail = self._log[1]
        resets = tail.resets
        new = tail.read()
        self._taken = (0 if tail.resets != resets else self._taken) + len(new)
        lines = tuple(map(untagged, tail.lines))
        return LogView(lines, untagged(tail.partial), max(self._taken - len(lines), 0), tail.resets, tail.begin == 0)
