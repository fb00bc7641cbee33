"""What is found in data: how many samples, what is in them, how long they are, and which cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect.samples import BLEND, DATASET, SHARD, Samples, evenly, kind_of_path
from qwen3vl_core.data.inspect.show import plain
from qwen3vl_core.data.prepare.report import REPORT, reason_counts
from qwen3vl_core.data.storage import Place
from qwen3vl_core.errors import WorkError
from qwen3vl_core.options import InspectOptions
from qwen3vl_core.progress import Progress

KINDS = {DATASET: "a prepared dataset", BLEND: "a blend of datasets", SHARD: "one shard of a dataset"}


@dataclass
class DataSurvey:
    """What was found in the samples that were looked at."""

    path: str
    kind: str
    samples: dict[str, int]
    """Split, or the file's name -> samples."""
    seq_length: int
    looked_at: int = 0
    pictures: int = 0
    videos: int = 0
    turns: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    """Reason -> samples that cannot be used."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first of them."""
    tokens: dict[str, Any] | None = None
    histogram: list[tuple[int, int, int]] = field(default_factory=list)
    """(from, up to and without, samples)"""
    too_long: int = 0
    """Samples looked at that are longer than seq_length."""
    too_long_tokens: int = 0
    blended: list[str] = field(default_factory=list)
    """The datasets of a blend and their shares, a line each."""
    prepared: dict[str, Any] = field(default_factory=dict)
    """What prepare reported of the dataset: source, kind, refused."""


def shares(opened: dict[str, Samples], wanted: int) -> dict[str, list[int]]:
    """Which samples to take of each split, in proportion, so that `wanted` are taken together."""
    total = sum(map(len, opened.values()))
    if not wanted or wanted >= total:
        return {name: list(range(len(samples))) for name, samples in opened.items()}
    return {name: evenly(len(samples), max(1, wanted * len(samples) // total)) for name, samples in opened.items()}


def survey(
    path: Place, opened: dict[str, Any], options: InspectOptions, model: Path | None, images: Path | None
) -> tuple[DataSurvey, Any]:  # fmt: skip
    """(what is there, the model's processor or None)"""
    from qwen3vl_core.data.sample_encoder import messages_of
    from qwen3vl_core.data.token_lengths import Measurer, histogram, measure

    kind = KINDS.get(kind_of_path(path) or "") or f"{next(iter(opened.values())).kind}, not prepared"
    found = DataSurvey(str(path), kind, {name: len(samples) for name, samples in opened.items()}, options.seq_length)
    found.prepared = _prepared(path)
    if kind_of_path(path) == BLEND:
        found.blended = [f"{name}: {line}" for name, samples in opened.items() for line in samples.lines()]
    chosen = shares(opened, options.limit)
    faults: Counter[str] = Counter()
    with Progress("look", total=sum(map(len, chosen.values())), unit="samples") as progress:
        for name, numbers in chosen.items():
            for number in numbers:
                found.looked_at += 1
                try:
                    messages = messages_of(opened[name].read(number)[1])
                    parts = [part for message in messages for part in _parts(message)]
                except DataError as error:
                    faults[error.reason] += 1
                    found.examples.setdefault(error.reason, _line(f"{opened[name].place(number)}: {error.detail}"))
                else:
                    found.turns += len(messages)
                    found.pictures += sum(part.get("type") == "image" for part in parts)
                    found.videos += sum(part.get("type") == "video" for part in parts)
                progress.update(1)
    found.faults = dict(faults)
    if model is None:
        return found, None
    measurer = Measurer(path, model, images)
    lengths = measure(measurer, chosen, workers=0 if kind_of_path(path) in (DATASET, BLEND) else 1)
    found.tokens = {"model": str(model)} | lengths.summary()
    found.faults, found.examples = dict(lengths.problems), {reason: _line(text) for reason, text in lengths.examples.items()}
    found.histogram = histogram(lengths.total, options.seq_length)
    longer = lengths.total > options.seq_length
    found.too_long, found.too_long_tokens = int(longer.sum()), int(lengths.total[longer].sum())
    return found, measurer.processor


def _parts(message: Any) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise DataError("bad_messages", "a message must be an object")
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _prepared(path: Place) -> dict[str, Any]:
    """What stands in the dataset's report that its shards do not tell."""
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8")) if path.suffix != ".yaml" and path.is_dir() else {}
    except (OSError, ValueError, WorkError):
        return {}
    return {key: report[key] for key in ("source", "kind", "check", "refused") if key in report} if isinstance(report, dict) else {}


def summary_lines(found: DataSurvey, width: int = 100) -> list[str]:
    """What a person wants to know, line by line."""
    total = sum(found.samples.values())
    lines = [f"{found.path}: {found.kind}, {total:,} sample{'s' * (total != 1)}"]
    if len(found.samples) > 1:
        lines.append("  " + ", ".join(f"{name} {count:,}" for name, count in found.samples.items()))
    lines += [f"  {line}" for line in found.blended]
    if found.prepared.get("source"):
        lines.append(f"  made from {found.prepared['source']} ({found.prepared.get('kind', 'LLaVA JSON')})")
    if isinstance(found.prepared.get("refused"), dict) and found.prepared["refused"]:
        lines.append(f"  left out when it was made: {reason_counts(found.prepared['refused'])}")
    seen = "" if found.looked_at == total else f" in {found.looked_at:,} of them, evenly spread"
    lines.append(f"  {found.pictures:,} pictures, {found.videos:,} videos, {found.turns:,} turns{seen}")
    if found.faults:
        lines.append(f"  {sum(found.faults.values()):,} cannot be used ({reason_counts(found.faults)})")
        lines += [f"    {text}" for text in found.examples.values()]
    if found.tokens is None:
        return [plain(line) for line in [*lines, "  give --model for token lengths and what is trained"]]
    t = found.tokens
    lines += [
        f"  {t['total']:,} tokens, {t['trained']:,} of them trained ({t['trained'] / max(t['total'], 1):.0%})",
        f"  a sample has {t['mean']:,} on average, half of them at most {t['median']:,}, 95% at most {t['p95']:,}, "
        f"the longest {t['longest']:,}",
        "", *histogram_lines(found, min(width, 100)), "",
    ]  # fmt: skip
    if found.too_long:
        share = found.too_long / max(t["samples"], 1)
        lines.append(f"  --seq-length {found.seq_length}: {found.too_long:,} samples ({share:.1%}) with {found.too_long_tokens:,} tokens "
                     f"are longer and would be left out; the longest needs {t['longest']:,}")  # fmt: skip
    else:
        lines.append(f"  --seq-length {found.seq_length}: every sample fits; {t['longest']:,} would do")
    return [plain(line) for line in lines]


def histogram_lines(found: DataSurvey, width: int) -> list[str]:
    """The histogram, one line a bin; those beyond the sequence length are hollow."""
    most = max((count for _, _, count in found.histogram), default=1)
    label = max((len(f"{begin:,}–{end - 1:,}") for begin, end, _ in found.histogram), default=1)
    room = max(10, width - label - 20)
    lines = []
    for begin, end, count in found.histogram:
        cells = max(round(count / most * room), 1 if count else 0)
        mark = "░" if begin > found.seq_length else "█"
        lines.append(f"  {f'{begin:,}–{end - 1:,}'.rjust(label)} {mark * cells} {count:,}")
    return lines
