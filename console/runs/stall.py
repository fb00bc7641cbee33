"""Whether a finetune still makes steps, and which rank is behind when it does not. Standard library only."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from console.runs.processes import Process
from console.runs.state import host, read_json
from qwen3vl_core.errors import RequestError
from qwen3vl_core.formats import number, span
from qwen3vl_core.language import filled
from qwen3vl_core.run_record import AT_CHECKPOINT, AT_START, DOINGS, RANKS, rank_file

FACTOR = 10.0
"""A run that has made no step for this many times its median step stalls."""
LEAST_VARIABLE = "QWEN3VL_STALL_SECONDS"
LEAST_SECONDS = 60.0
"""Steps of milliseconds may be late by more than ten times their median; the environment variable overrides it."""
START_SECONDS = 600.0
"""The same before enough steps are known, and while a checkpoint is being written."""
FEWEST, MOST = 3, 64
LOOK_SECONDS = 5.0
"""Between two looks at the files of many ranks."""


def least_seconds() -> float:
    """LEAST_SECONDS, or what the environment says. Raises RequestError."""
    text = os.environ.get(LEAST_VARIABLE, "")
    try:
        seconds = float(text or LEAST_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 86400:
        raise RequestError(filled("{}={}: must be seconds above 0 and below 86400; use {:g}", LEAST_VARIABLE, text, LEAST_SECONDS))
    return seconds


@dataclass
class Rank:
    """One rank, as its file says."""

    rank: int
    pid: int
    host: str
    step: int
    doing: str
    seen: object
    since: float
    """When the note was first seen, by this process's clock: those of other machines may differ."""


class StallWatch:
    """The ranks of one attempt."""

    def __init__(self, run_dir: Path, least: float) -> None:
        self.folder, self.least = run_dir / RANKS, least
        self.ranks: dict[str, Rank] = {}
        self._old = {name: read_json(self.folder / name) for name in self._names()}
        self._durations: deque[float] = deque(maxlen=MOST)
        self._step: tuple[int, float] | None = None
        """(the step that all ranks have done, when that was first seen)."""
        self._stepped = False
        self._moved = self._looked = time.monotonic()

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except OSError:
            return []

    def look(self, busy: bool = False) -> None:
        """Read the files. busy: a checkpoint's files are growing, which counts as progress."""
        now = time.monotonic()
        if busy:
            self._moved = now
        if len(self.ranks) > MOST and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for name in self._names():
            note = read_json(self.folder / name)
            step, rank, pid, doing = (note.get(key) for key in ("step", "rank", "pid", "doing"))
            if note == self._old.get(name) or not (isinstance(step, int) and isinstance(rank, int) and isinstance(pid, int)):
                continue
            if name != rank_file(rank) or doing not in DOINGS:
                continue
            known = self.ranks.get(name)
            if known is None or known.seen != note:
                self.ranks[name] = Rank(rank, pid, str(note.get("host")), step, doing, note, now)
                self._moved = now
        if not self.ranks:
            return
        slowest = min(rank.step for rank in self.ranks.values())
        if self._step is None or slowest < self._step[0]:
            self._step = (slowest, now)
        elif slowest > self._step[0]:
            if self._stepped:  # the first step of an attempt takes its time
                self._durations.append((now - self._step[1]) / (slowest - self._step[0]))
            self._step, self._stepped = (slowest, now), True

    def stalled(self) -> str:
        """One line when no step comes any more: since when, and who is behind with what; else empty."""
        quiet = time.monotonic() - self._moved
        usual = median(self._durations) if len(self._durations) >= FEWEST else None
        behind = self._behind()
        limit = max(FACTOR * usual, self.least) if usual is not None else max(START_SECONDS, self.least)
        if behind and behind[0].doing in (AT_CHECKPOINT, AT_START):
            limit = max(limit, START_SECONDS)
        if quiet < limit or not behind:
            return ""
        pace = f" (the median is {number(usual, 2)} s)" if usual is not None else ""
        return f"no step for {span(quiet)}{pace}: {self._named(behind)}"

    def _behind(self) -> list[Rank]:
        """The ranks that the others wait for, the slowest first; all where none can be told."""
        order = list(DOINGS)
        ranks = sorted(self.ranks.values(), key=lambda r: (r.step, order.index(r.doing), r.since))
        return [r for r in ranks if (r.step, r.doing) == (ranks[0].step, ranks[0].doing)] if ranks else []

    def _named(self, behind: list[Rank]) -> str:
        """`rank 3 on node1 is behind at step 12, waiting for data, stopped by a signal`."""
        odd = [r for r in behind if _state_in_words(r)]
        if len(behind) == len(self.ranks) and 0 < len(odd) < len(behind):
            behind = odd  # all have begun the same work, and one of them cannot do it
        first = behind[0]
        activity = f"at step {first.step + 1}, {DOINGS[first.doing]}"
        if len(behind) == len(self.ranks) > 1:
            return f"all {len(behind)} ranks are {activity}"
        names = ", ".join(str(r.rank) for r in behind[:8]) + (f" and {len(behind) - 8} more" if len(behind) > 8 else "")
        machine = f" on {first.host}" if first.host != host() else ""
        many = len(behind) > 1
        late = " behind" if len(behind) < len(self.ranks) else ""
        return f"rank{'s' if many else ''} {names}{machine} {'are' if many else 'is'}{late} {activity}{_state_in_words(first)}"

    def here(self, processes: Iterable[Process]) -> list[Process]:
        """Those of these processes that are ranks."""
        pids = {rank.pid for rank in self.ranks.values() if rank.host == host()}
        return [p for p in processes if p.pid in pids]


_STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for a disk", "Z": "ended", "": "gone"}


def _state_in_words(rank: Rank) -> str:
    """What keeps a process of this machine from working, as the kernel says; empty where nothing does."""
    state = _STATES.get(_process_state(rank.pid)) if rank.host == host() else None
    return f", {state}" if state else ""


def _process_state(pid: int) -> str:
    """The letter of /proc; empty for a process that is gone."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[0]
    return ""
