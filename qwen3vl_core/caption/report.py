"""A comparison as JSON and as a single HTML page. Imports no torch."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from string import Template
from typing import Any

from qwen3vl_core.caption.comparison import SAME, Comparison, ReportCaption, ReportModel, ReportSample
from qwen3vl_core.caption.reference_metrics import rouge_l
from qwen3vl_core.caption.scores import repetition
from qwen3vl_core.caption.word_diff import difference, mark_differences
from qwen3vl_core.formats import printable

VERSION = 1
TITLE = "Captions of two models"


def to_mapping(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    mapping = {
        "v": VERSION,
        "prompt": comparison.prompt,
        "models": {name: dataclasses.asdict(model) for name, model in comparison.models.items()},
        "sampling": comparison.sampling,
        "notes": comparison.notes,
        "scores": comparison.scores().to_mapping(),
    }
    if comparison.votes:
        mapping["votes"] = comparison.tally()
    return mapping | {"captions": [_row(sample, comparison) for sample in comparison.samples]}


def _row(sample: ReportSample, comparison: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {"image": sample.image}
    if sample.prompt and sample.prompt != comparison.prompt:
        row["prompt"] = sample.prompt
    if sample.references:
        row["references"] = list(sample.references)
    if sample.image in comparison.votes:
        row["vote"] = comparison.votes[sample.image]
    for name, caption in sample.captions.items():
        row |= {
            name: caption.text, f"{name}_words": caption.words, f"{name}_repetition": round(repetition(caption.text), 4),
            f"{name}_seconds": round(caption.seconds, 3), f"{name}_whole": caption.whole,
        }  # fmt: skip
        if sample.references:
            row[f"{name}_rouge_l"] = round(rouge_l(caption.text, sample.references), 4)
    for name in comparison.names[1:]:
        # runs of words from the first model's caption to this one's
        key = "difference" if len(comparison.models) == 2 else f"{name}_difference"
        row[key] = [list(run) for run in difference(sample.base.text, sample.captions[name].text)]
    return row


def to_json(comparison: Comparison) -> str:
    return json.dumps(to_mapping(comparison), ensure_ascii=False, indent=1) + "\n"


def escaped(text: str) -> str:
    """For HTML's text and quoted attributes, without control characters, which HTML forbids."""
    return html.escape(printable(text), quote=True)


_TAGS = {"first": "del", "other": "ins", "common": "mark"}


def marked_html(texts: Sequence[str], escape: Callable[[str], str] = escaped, *, uneven: bool = True) -> list[str]:
    """Captions of one picture as HTML; runs that `mark_differences` marks are in `del` (only the first caption has them), `ins`, or
    `mark` (both have them)."""
    return [
        "".join(f"<{tag}>{escape(text)}</{tag}>" if (tag := _TAGS.get(mark)) else escape(text) for text, mark in runs)
        for runs in mark_differences(texts, uneven=uneven)
    ]


def _column(name: str, caption: ReportCaption, marked: str, sample: ReportSample, voted: bool) -> str:
    parts = [f"{caption.words} words", f"{caption.seconds:.1f} s"]
    if sample.references:
        parts.append(f"ROUGE-L {rouge_l(caption.text, sample.references):.2f}")
    if not caption.whole:
        parts.append("cut off at the maximum length")
    vote = ' <span class="vote">★ best</span>' if voted else ""
    body = f'<p class="caption" dir="auto">{marked}</p>' if caption.text.strip() else '<p class="empty">no text</p>'
    return f'<section><h3>{escaped(name)}{vote}</h3>\n<p class="meta">{" · ".join(parts)}</p>\n{body}</section>'


def _article(sample: ReportSample, picture: str, number: int, comparison: Comparison) -> str:
    vote = comparison.votes.get(sample.image)
    marked = dict(zip(sample.captions, marked_html([caption.text for caption in sample.captions.values()]), strict=True))
    columns = "\n".join(_column(name, caption, marked[name], sample, vote == name) for name, caption in sample.captions.items())
    asked = f'<p class="asked">{escaped(sample.prompt)}</p>\n' if sample.prompt and sample.prompt != comparison.prompt else ""
    written = "".join(f'<p class="reference" dir="auto"><span>reference</span> {escaped(text)}</p>\n' for text in sample.references)
    same = '<p class="reference"><span>vote</span> equally good</p>\n' if vote == SAME else ""
    source = f'src="{escaped(picture)}" ' if picture else ""
    return (
        f'<article id="picture-{number}"><h2>{number}. {escaped(sample.image)}</h2>\n{asked}<div class="row">\n'
        f'<img {source}alt="{escaped(sample.image)}" loading="lazy">\n{columns}\n</div>\n{written}{same}</article>'
    )


def _about(comparison: Comparison) -> Iterable[tuple[str, str]]:
    def described(model: ReportModel) -> str:
        return model.path + (f" (size {model.size})" if model.size else "")

    yield "prompt", comparison.prompt
    for name, model in comparison.models.items():
        yield name, described(model)
    yield "sampling", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in comparison.sampling.items())


def score_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """(title, value for each model) of the scores that are known for these captions."""
    scores = comparison.scores()
    models = list(scores.models.values())
    rows = [
        ("words of a caption, average", [f"{m.words:.1f}" for m in models]),
        ("shortest, longest", [f"{m.fewest_words}, {m.most_words}" for m in models]),
        ("repeated passages", [f"{m.repetition:.1%}" for m in models]),
    ]
    if any(m.empty for m in models):
        rows.append(("empty captions", [str(m.empty) for m in models]))
    if scores.referenced:
        rows.append(("length to references'", [f"{m.length_ratio:.2f}" if m.length_ratio is not None else "–" for m in models]))
        rows.append(("ROUGE-L, 0 to 1", [f"{m.rouge_l:.3f}" if m.rouge_l is not None else "–" for m in models]))
    if scores.referenced > 1:
        rows.append(("CIDEr-D, 0 to 10", [f"{m.cider:.2f}" if m.cider is not None else "–" for m in models]))
    if comparison.votes:
        counted = comparison.tally()
        rows.append(("votes", [str(counted[name]) for name in comparison.models]))
    return rows


def _scores(comparison: Comparison) -> str:
    def row(name: str, values: Iterable[str]) -> str:
        return f'<tr><th scope="row">{escaped(name)}</th>{"".join(f"<td>{escaped(value)}</td>" for value in values)}</tr>'

    models = "".join(f'<th scope="col">{escaped(name)}</th>' for name in comparison.models)
    body = "\n".join(row(name, values) for name, values in score_rows(comparison))
    return f"<thead><tr><th></th>{models}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def differing(comparison: Comparison) -> str:
    """`75% of 4 pictures with different captions`, with how many have references and how many were voted equally good."""
    count = len(comparison.samples)
    scores = comparison.scores()
    text = f"{scores.differ:.0%} of {count} picture{'s' if count > 1 else ''} with different captions"
    if 0 < scores.referenced < count:
        text += f"; {scores.referenced} with references"
    if equal := comparison.tally()[SAME]:
        text += f"; {equal} voted equally good"
    return text


def _legend(articles: Iterable[str], first: str, others: Sequence[str]) -> str:
    """What the marks that the articles have mean."""
    used = "".join(articles)
    told = [f"<del>only in {escaped(first)}</del>"] if "<del>" in used else []
    told += [f"<ins>{f'only in {escaped(others[0])}' if len(others) == 1 else f'not in {escaped(first)}'}</ins>"] if "<ins>" in used else []
    both = "in both, where one is much longer" if len(others) == 1 else f"also in {escaped(first)}, where one is much longer"
    return " ".join(told + ([f"<mark>{both}</mark>"] if "<mark>" in used else []))


def to_html(comparison: Comparison, pictures: Iterable[str], about: str = "") -> str:
    """A self-contained page: no network, no script. pictures: an address for each sample, as a data URI, or an empty string. about: what
    the title says more, such as run and date."""
    templates = resources.files(__package__)
    articles = [
        _article(sample, uri, n, comparison) for n, (sample, uri) in enumerate(zip(comparison.samples, pictures, strict=True), start=1)
    ]
    first, *others = comparison.models
    return Template(templates.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escaped(f"{TITLE} · {about}" if about else TITLE),
        style=templates.joinpath("report.css").read_text(encoding="utf-8"),
        columns=len(comparison.models),
        notes="\n".join(f'<p class="note" role="note">{escaped(note)}</p>' for note in comparison.notes),
        about="\n".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in _about(comparison)),
        scores=_scores(comparison),
        differing=differing(comparison),
        legend=_legend(articles, first, others),
        samples="\n".join(articles),
    )  # fmt: skip
