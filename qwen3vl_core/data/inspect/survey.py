"""Summary of data: how many samples, their media and turns, their lengths, and which cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect.samples import BLEND, DATASET, SHARD, Samples, evenly, kind_of_path
from qwen3vl_core.data.media_limits import limits_of
from qwen3vl_core.data.prepare.report import REPORT, reason_counts
from qwen3vl_core.data.storage import Place
from qwen3vl_core.errors import WorkError
from qwen3vl_core.formats import printable
from qwen3vl_core.options import InspectOptions
from qwen3vl_core.progress import Progress

KINDS = {DATASET: "a prepared dataset", BLEND: "a blend of datasets", SHARD: "one shard of a dataset"}


@dataclass
class DataSurvey:
    """Counts over the samples that were read."""

    path: str
    kind: str
    samples: dict[str, int]
    """Name of the split or file -> samples."""
    seq_length: int
    looked_at: int = 0
    pictures: int = 0
    videos: int = 0
    turns: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    """Reason -> samples that cannot be used."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first such sample."""
    tokens: dict[str, Any] | None = None
    histogram: list[tuple[int, int, int]] = field(default_factory=list)
    """(from, up to but excluding, samples)"""
    too_long: int = 0
    """Samples read that are longer than seq_length."""
    too_long_tokens: int = 0
    blended: list[str] = field(default_factory=list)
    """The datasets of a blend and their shares, a line each."""
    prepared: dict[str, Any] = field(default_factory=dict)
    """Fields of the report of prepare: source, kind, check, refused."""

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes; scripts know the problems as `faults`."""
        fields = asdict(self)
        return {"v": 1} | {"faults" if name == "problems" else name: value for name, value in fields.items()}


def shares(opened: dict[str, Samples], wanted: int) -> dict[str, list[int]]:
    """Which samples to take of each split, in proportion, about `wanted` in total."""
    total = sum(map(len, opened.values()))
    if not wanted or wanted >= total:
        return {name: list(range(len(samples))) for name, samples in opened.items()}
    return {name: evenly(len(samples), max(1, wanted * len(samples) // total)) for name, samples in opened.items()}


def survey(
    path: Place, opened: dict[str, Any], options: InspectOptions, model: Path | None, images: Path | None
) -> tuple[DataSurvey, Any]:  # fmt: skip
    """(summary, the model's processor or None)"""
    from qwen3vl_core.data.sample_encoder import messages_of
    from qwen3vl_core.data.token_lengths import Measurer, histogram, measure

    kind = KINDS.get(kind_of_path(path) or "") or f"{next(iter(opened.values())).kind}, not prepared"
    summary = DataSurvey(str(path), kind, {name: len(samples) for name, samples in opened.items()}, options.seq_length)
    summary.prepared = _prepared(path)
    if kind_of_path(path) == BLEND:
        summary.blended = [f"{name}: {line}" for name, samples in opened.items() for line in samples.lines()]
    chosen = shares(opened, options.limit)
    problems: Counter[str] = Counter()
    with Progress("look", total=sum(map(len, chosen.values())), unit="samples") as progress:
        for name, numbers in chosen.items():
            for number in numbers:
                summary.looked_at += 1
                try:
                    messages = messages_of(opened[name].read(number)[1])
                    parts = [part for message in messages for part in _parts(message)]
                except DataError as error:
                    problems[error.reason] += 1
                    summary.examples.setdefault(error.reason, _line(f"{opened[name].place(number)}: {error.detail}"))
                else:
                    summary.turns += len(messages)
                    summary.pictures += sum(part.get("type") == "image" for part in parts)
                    summary.videos += sum(part.get("type") == "video" for part in parts)
                progress.update(1)
    summary.problems = dict(problems)
    if model is None:
        return summary, None
    measurer = Measurer(path, model, images, options.columns, limits_of(options))
    lengths = measure(measurer, chosen, workers=0 if kind_of_path(path) in (DATASET, BLEND) else 1)
    summary.tokens = {"model": str(model)} | lengths.summary()
    summary.problems, summary.examples = dict(lengths.problems), {reason: _line(text) for reason, text in lengths.examples.items()}
    summary.histogram = histogram(lengths.total, options.seq_length)
    is_longer = lengths.total > options.seq_length
    summary.too_long, summary.too_long_tokens = int(is_longer.sum()), int(lengths.total[is_longer].sum())
    return summary, measurer.processor


def _parts(message: Any) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise DataError("message-not-an-object")
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _prepared(path: Place) -> dict[str, Any]:
    """Fields of the dataset's report that cannot be read from its shards."""
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8")) if path.suffix != ".yaml" and path.is_dir() else {}
    except (OSError, ValueError, WorkError):
        return {}
    return {key: report[key] for key in ("source", "kind", "check", "refused") if key in report} if isinstance(report, dict) else {}


def summary_lines(summary: DataSurvey, width: int = 100, *, histogram: bool = True) -> list[str]:
    """The summary as lines for a terminal, with the histogram of lengths drawn in it."""
    total = sum(summary.samples.values())
    lines = [f"{summary.path}: {summary.kind}, {total:,} sample{'s' * (total != 1)}"]
    if len(summary.samples) > 1:
        lines.append("  " + ", ".join(f"{name} {count:,}" for name, count in summary.samples.items()))
    lines += [f"  {line}" for line in summary.blended]
    if summary.prepared.get("source"):
        lines.append(f"  made from {summary.prepared['source']} ({summary.prepared.get('kind', 'LLaVA JSON')})")
    if isinstance(summary.prepared.get("refused"), dict) and summary.prepared["refused"]:
        lines.append(f"  left out when it was made: {reason_counts(summary.prepared['refused'])}")
    seen = "" if summary.looked_at == total else f" in {summary.looked_at:,} of them, evenly spread"
    lines.append(f"  {summary.pictures:,} pictures, {summary.videos:,} videos, {summary.turns:,} turns{seen}")
    if summary.problems:
        lines.append(f"  {sum(summary.problems.values()):,} cannot be used ({reason_counts(summary.problems)})")
        lines += [f"    {text}" for text in summary.examples.values()]
    if summary.tokens is None:
        return [printable(line) for line in [*lines, "  give --model for token lengths and what is trained"]]
    t = summary.tokens
    lines += [
        f"  {t['total']:,} tokens, {t['trained']:,} of them trained ({t['trained'] / max(t['total'], 1):.0%})",
        f"  a sample has {t['mean']:,} on average, half of them at most {t['median']:,}, 95% at most {t['p95']:,}, "
        f"the longest {t['longest']:,}",
        *(["", *histogram_lines(summary, min(width, 100)), ""] if histogram else []),
    ]  # fmt: skip
    if summary.too_long:
        share = summary.too_long / max(t["samples"], 1)
        lines.append(f"  --seq-length {summary.seq_length}: {summary.too_long:,} samples ({share:.1%}) with "
                     f"{summary.too_long_tokens:,} tokens are longer and would be left out; "
                     f"the longest needs {t['longest']:,}")  # fmt: skip
    else:
        lines.append(f"  --seq-length {summary.seq_length}: every sample fits; {t['longest']:,} would do")
    return [printable(line) for line in lines]


def histogram_lines(summary: DataSurvey, width: int) -> list[str]:
    """The histogram, one line per bin; bins beyond the sequence length are drawn light."""
    most = max((count for _, _, count in summary.histogram), default=1)
    label = max((len(f"{begin:,}–{end - 1:,}") for begin, end, _ in summary.histogram), default=1)
    bar_width = max(10, width - label - 20)
    lines = []
    for begin, end, count in summary.histogram:
        cells = max(round(count / most * bar_width), 1 if count else 0)
        mark = "░" if begin > summary.seq_length else "█"
        lines.append(f"  {f'{begin:,}–{end - 1:,}'.rjust(label)} {mark * cells} {count:,}")
    return lines
