"""Token lengths of a dataset's samples, without decoding a pixel, and which samples training would skip.

The lengths are those of `ChatProcessor.tokenize`, as the loader counts them. Imports torch only where samples are measured.
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
from qwen3vl_core.data.media_limits import MediaLimits
from qwen3vl_core.data.storage import Place
from qwen3vl_core.data.workers import Workers
from qwen3vl_core.progress import Progress

_NO_LIMITS = MediaLimits()
_AT_ONCE = 512
_WORTH_A_PROCESS = 8192
"""With fewer samples, starting processes takes longer than measuring in this one."""


@dataclass
class Lengths:
    """Token counts of some samples."""

    total: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [n]: tokens of each sample that can be used."""
    trained: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [n]: how many of them are trained."""
    problems: Counter[str] = field(default_factory=Counter)
    """Reason -> samples that training would skip, whatever their length."""
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
            "unusable": dict(self.problems),
            "examples": dict(self.examples),
        }


class Measurer:
    """Processor and open samples for measuring, created on first use: each process has its own."""

    def __init__(
        self, path: Place, model: Path, images: Path | None = None, columns: str | None = None,
        limits: MediaLimits = _NO_LIMITS,
    ) -> None:  # fmt: skip
        self.path, self.model, self.images, self.columns, self.limits = path, model, images, columns, limits
        """path: of a dataset, a shard or a source; images: where a source's media are; columns: as its records call them."""
        self._processor: Any = None
        self._opened: dict[str, Samples] = {}

    @property
    def processor(self) -> Any:
        """The model's ChatProcessor. Raises RequestError when the folder is not a model."""
        if self._processor is None:
            from qwen3vl_core.data.processor import ChatProcessor

            self._processor = ChatProcessor.from_pretrained(self.model, self.limits)
        return self._processor

    def samples(self, name: str) -> Samples:
        """The samples of a split, or of a source without splits."""
        if name not in self._opened:
            self._opened |= open_samples(self.path, name, self.images, self.columns)
        return self._opened[name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_processor": None, "_opened": {}}


def _measure(measurer: Measurer, task: tuple[str, list[int]]) -> list[tuple[int, int] | tuple[str, str]]:
    """(tokens, trained) of each sample, or (reason, detail)."""
    from qwen3vl_core.data.sample_encoder import messages_of, tools_of

    name, numbers = task
    samples = measurer.samples(name)
    results: list[tuple[int, int] | tuple[str, str]] = []
    for number in numbers:
        key = samples.place(number)
        try:
            key, parts = samples.read(number)
            tokenized = measurer.processor.tokenize(messages_of(parts), parts, key=key, tools=tools_of(parts))
            results.append((len(tokenized.ids), int((tokenized.labels >= 0).sum())))
        except DataError as error:
            results.append((error.reason, f"{name} {key}: {error.detail}"))
    return results


def measure(measurer: Measurer, chosen: dict[str, list[int]], workers: int = 0) -> Lengths:
    """chosen: split -> the numbers of the samples to measure. Raises RequestError when the model folder is not a model."""
    # raises here, once, before any process is started
    _ = measurer.processor
    total = sum(map(len, chosen.values()))

    def tasks() -> Iterator[tuple[str, list[int]]]:
        for name, numbers in chosen.items():
            for begin in range(0, len(numbers), _AT_ONCE):
                yield name, numbers[begin : begin + _AT_ONCE]

    counts: list[tuple[int, int]] = []
    lengths = Lengths()
    with Progress("tokens", total=total, unit="samples") as progress, Workers(workers, measurer) as pool:
        for results in pool.map(_measure, tasks(), small=total < _WORTH_A_PROCESS):
            for first, second in results:
                if isinstance(first, str):
                    lengths.problems[first] += 1
                    lengths.examples.setdefault(first, " ".join(second.split())[:300])
                else:
                    counts.append((first, second))
            progress.update(len(results))
    table = np.array(counts, dtype=np.int64).reshape(-1, 2)
    lengths.total, lengths.trained = table[:, 0].copy(), table[:, 1].copy()
    return lengths


def histogram(lengths: np.ndarray, seq_length: int, bins: int = 12) -> list[tuple[int, int, int]]:
    """[(begin, end, samples)] of about `bins` bins of a round width; `seq_length` + 1 is a bin edge."""
    if not len(lengths):
        return []
    longest = int(lengths.max())
    rough = max(1, longest // bins + 1)
    width = next(w * 10**power for power in range(12) for w in (1, 2, 5) if w * 10**power >= rough)
    edges = sorted({*range(0, longest + width + 1, width), *([seq_length + 1] if 0 < seq_length < longest else [])})
    counts, _ = np.histogram(lengths, bins=[*edges[:-1], edges[-1]])
    rows = [(begin, end, int(count)) for begin, end, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    while rows and not rows[-1][2]:
        rows.pop()
    while len(rows) > 1 and not rows[0][2]:
        rows.pop(0)
    return rows
