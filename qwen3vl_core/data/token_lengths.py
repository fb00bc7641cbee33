"""How long a dataset's samples are in tokens, without decoding a pixel, and what training would leave out.

The lengths are those of `ChatProcessor.plan`: what the loader counts. Imports torch only where samples are measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect.samples import Samples, open_samples
from qwen3vl_core.data.storage import Place
from qwen3vl_core.data.workers import Workers
from qwen3vl_core.progress import Progress

_AT_ONCE = 512
_WORTH_A_PROCESS = 8192
"""Samples below which starting processes takes longer than measuring here."""


@dataclass
class Lengths:
    """Of some samples, in tokens."""

    total: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [n]: tokens of each sample that can be used."""
    trained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [n]: how many of them are trained."""
    faults: Counter[str] = field(default_factory=Counter)
    """Reason -> samples that training would leave out, whatever their length."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first of them."""

    def summary(self) -> dict[str, Any]:
        """As a report holds it."""
        counts = self.total if len(self.total) else np.zeros(1, np.int64)
        return {
            "samples": len(self.total),
            "total": int(self.total.sum()),
            "trained": int(self.trained.sum()),
            "mean": round(float(counts.mean()), 1),
            "median": int(np.percentile(counts, 50, method="nearest")),
            "p95": int(np.percentile(counts, 95, method="nearest")),
            "longest": int(counts.max()),
            "unusable": dict(self.faults),
            "examples": dict(self.examples),
        }


class Measurer:
    """Holds what measuring needs, made where it is first used: each process has its own."""

    def __init__(self, path: Place, model: Path, images: Path | None = None) -> None:
        self.path, self.model, self.images = path, model, images
        """path: of a dataset, a shard or a source; images: where a source's media are."""
        self._processor: Any = None
        self._opened: dict[str, Samples] = {}

    @property
    def processor(self) -> Any:
        """The model's ChatProcessor. Raises RequestError when the folder is none."""
        if self._processor is None:
            from qwen3vl_core.data.processor import ChatProcessor

            self._processor = ChatProcessor.from_pretrained(self.model)
        return self._processor

    def samples(self, name: str) -> Samples:
        """Those of a split, or the only ones there are."""
        if name not in self._opened:
            self._opened |= open_samples(self.path, name, self.images)
        return self._opened[name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_processor": None, "_opened": {}}


def _measure(measurer: Measurer, task: tuple[str, list[int]]) -> list[tuple[int, int] | tuple[str, str]]:
    """(tokens, trained) of each sample, or (reason, detail)."""
    from qwen3vl_core.data.sample_encoder import messages_of

    name, numbers = task
    samples = measurer.samples(name)
    made: list[tuple[int, int] | tuple[str, str]] = []
    for number in numbers:
        key = samples.place(number)
        try:
            key, parts = samples.read(number)
            tokenized = measurer.processor.tokenize(messages_of(parts), parts, key=key)
            made.append((len(tokenized.ids), int((tokenized.labels >= 0).sum())))
        except DataError as fault:
            made.append((fault.reason, f"{name} {key}: {fault.detail}"))
    return made


def measure(measurer: Measurer, chosen: dict[str, list[int]], workers: int = 0) -> Lengths:
    """chosen: split -> the numbers of the samples to measure. Raises RequestError for a model folder that is none."""
    # said here, once, before any process is started
    _ = measurer.processor
    total = sum(map(len, chosen.values()))

    def tasks() -> Iterator[tuple[str, list[int]]]:
        for name, numbers in chosen.items():
            for begin in range(0, len(numbers), _AT_ONCE):
                yield name, numbers[begin : begin + _AT_ONCE]

    made: list[tuple[int, int]] = []
    found = Lengths()
    with Progress("tokens", total=total, unit="samples") as progress, Workers(workers, measurer) as pool:
        for results in pool.map(_measure, tasks(), small=total < _WORTH_A_PROCESS):
            for first, second in results:
                if isinstance(first, str):
                    found.faults[first] += 1
                    found.examples.setdefault(first, " ".join(second.split())[:300])
                else:
                    made.append((first, second))
            progress.update(len(results))
    table = np.array(made, dtype=np.int64).reshape(-1, 2)
    found.total, found.trained = table[:, 0].copy(), table[:, 1].copy()
    return found


def histogram(lengths: np.ndarray, seq_length: int, bins: int = 12) -> list[tuple[int, int, int]]:
    """[(from, up to and without, samples)] of about `bins` bins of a round width; `seq_length` + 1 is the edge of one."""
    if not len(lengths):
        return []
    longest = int(lengths.max())
    rough = max(1, longest // bins + 1)
    width = next(w * 10**power for power in range(12) for w in (1, 2, 5) if w * 10**power >= rough)
    edges = sorted({*range(0, longest + width + 1, width), *([seq_length + 1] if 0 < seq_length < longest else [])})
    counts, _ = np.histogram(lengths, bins=[*edges[:-1], edges[-1]])
    made = [(begin, end, int(count)) for begin, end, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    while made and not made[-1][2]:
        made.pop()
    while len(made) > 1 and not made[0][2]:
        made.pop(0)
    return made
