"""The report of a new dataset, as JSON and as a table, and its refused records. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qwen3vl_core.data.errors import REASONS, listed
from qwen3vl_core.data.prepare.check import Refusal, TarSample
from qwen3vl_core.data.prepare.shard_writer import Shard
from qwen3vl_core.data.records import cut
from qwen3vl_core.formats import quantity

REPORT = "report.json"
REFUSED = "refused.jsonl"
_TEXTS = ("bad_record", "control_token")
"""Reasons that concern the records themselves, not their media."""
_ENTRY = 300
"""Characters of one record's problem in a message."""
_NOTES = 50
"""Kinds of notes that a report lists."""
_COUNTED = ("samples", "pictures", "videos", "turns")


def share_of(shards: list[Shard]) -> dict[str, Any]:
    """Counts, bytes and shards of a split."""
    counts = {
        "samples": sum(len(shard.samples) for shard in shards),
        "pictures": sum(sample.pictures for shard in shards for sample in shard.samples),
        "videos": sum(sample.videos for shard in shards for sample in shard.samples),
        "turns": sum(sample.turns for shard in shards for sample in shard.samples),
        "bytes": sum(sample.size for shard in shards for sample in shard.samples),
    }
    return counts | {"shards": [shard.name for shard in shards]}


def total_of(shares: Iterable[dict[str, Any]]) -> dict[str, int]:
    """The sums over all splits."""
    shares = list(shares)
    return {what: sum(share[what] for share in shares) for what in (*_COUNTED, "bytes")}


def reasons(refused: list[Refusal]) -> str:
    """`the picture is not there: 2, …`"""
    return reason_counts(Counter(refusal.reason for refusal in refused))


def reason_counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{REASONS.get(reason, reason)}: {count:,}" for reason, count in ordered)


def note_counts(samples: list[TarSample], kind: str) -> dict[str, int]:
    """Keys that are not used, or remarks: text -> records, the most frequent first. kind: `records.UNUSED_KEY` or `REMARK`."""
    counts = Counter(text for sample in samples if sample.notes for note, text in set(sample.notes) if note == kind)
    return dict(counts.most_common(_NOTES))


def refusal(refused: list[Refusal], total: int, source: Path, images: Path) -> str:
    """One line for all records that cannot be used."""
    # one of each rule before a second of any
    shown = [each for row in zip_longest(*by_rule(refused)) for each in row if each is not None]
    entries = [f"record {each.number}: {cut(each.detail, _ENTRY)}" for each in shown]
    if total == 1 or len(refused) == 1:
        have = "one record" if total == 1 else f"one of {total:,} records"
    else:
        have = f"{len(refused):,} of {total:,} records"
    ways = ["fix or remove them"] if any(each.reason in _TEXTS for each in refused) else []
    if any(each.reason not in _TEXTS for each in refused):
        ways.append(f"put pictures and videos under {images}, or give --images")
    return (
        f"{source}: {have} cannot be used ({reasons(refused)}): {listed(entries)}; {'; '.join(ways)}; "
        "or add --skip-missing to leave them out (records are counted from 0)"
    )


def by_rule(refused: list[Refusal]) -> list[list[Refusal]]:
    """The refusals of each rule, the most frequent rule first."""
    groups: dict[str, list[Refusal]] = {}
    for each in refused:
        groups.setdefault(each.code, []).append(each)
    return sorted(groups.values(), key=len, reverse=True)


def rule_lines(refused: list[Refusal]) -> list[str]:
    """For each rule how many records break it, with up to three of them."""
    lines = []
    for group in by_rule(refused):
        examples = "; ".join(f"record {each.number}: {cut(each.detail, _ENTRY)}" for each in group[:3])
        lines.append(f"{len(group):,} × {examples}{'; …' if len(group) > 3 else ''}")
    return lines


def refused_rows(refused: list[Refusal]) -> str:
    """JSON Lines of the records left out."""
    rows = ({"record": each.number, "id": each.id, "reason": each.reason, "code": each.code, "detail": each.detail} for each in refused)
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def table(report: dict[str, Any], target: Path) -> str:
    """Summary of a new dataset for a terminal."""
    shown = {name: share for name, share in report["splits"].items() if share["samples"]}
    if len(shown) > 1:
        shown["all"] = {**report, "shards": [shard for share in report["splits"].values() for shard in share["shards"]]}
    columns = [counted for counted in _COUNTED if counted in ("samples", "turns") or report[counted]]
    rows = [("", *columns, "size", "shards")]
    for name, share in shown.items():
        counts = (f"{share[counted]:,}" for counted in columns)
        rows.append((name, *counts, quantity(share["bytes"], "B"), f"{len(share['shards']):,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{target}: {report['samples']:,} samples from {report['kind']}"]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join(["", row[0].ljust(widths[0]), *cells]))
    tokens = report.get("tokens")
    if tokens:
        lines.append(
            f"  {tokens['total']:,} tokens, {tokens['trained']:,} of them trained; a sample has {tokens['mean']:,} on average, "
            f"95% at most {tokens['p95']:,}, the longest {tokens['longest']:,}"
        )
        if tokens["unusable"]:
            lines.append(f"  training would leave out {sum(tokens['unusable'].values()):,} ({reason_counts(tokens['unusable'])})")
            lines += [f"    {detail}" for detail in tokens["examples"].values()]
    if report["unused_keys"]:
        keys = ", ".join(f"{key} ({count:,})" for key, count in report["unused_keys"].items())
        lines.append(f"  keys that are not used, with the number of records: {keys}")
    lines += [f"  {count:,} record{'s' * (count != 1)}: {note}" for note, count in report["notes"].items()]
    if report["refused"]:
        left_out = sum(report["refused"].values())
        lines.append(f"  left out {left_out:,} ({reason_counts(report['refused'])}); each one is in {target / REFUSED}")
        lines += [f"    {line}" for line in report["refused_rules"]]
    return "\n".join(lines)
