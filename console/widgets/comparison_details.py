"""Text next to the picture of a comparison: models, prompt and sampling, scores, captions. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textual.content import Content

from console.formatting import COLOURS, GLYPHS, one_line
from console.readers.captions import CompareView
from console.readers.run_rows import RunRow
from console.runs.captions import CaptionedPicture, RecordedCaption
from console.widgets.caption import several
from console.widgets.caption_columns import LETTERS, CaptionColumn
from qwen3vl_core.caption.comparison import SAME
from qwen3vl_core.caption.reference_metrics import rouge_l
from qwen3vl_core.caption.scores import ModelScores, Scores
from qwen3vl_core.caption.word_diff import count
from qwen3vl_core.cells import padded
from qwen3vl_core.formats import printable
from qwen3vl_core.language import tr
from qwen3vl_core.run_record import ITERATION

LABEL = 12
"""Width of the names of the scores, in columns."""


def status(row: RunRow) -> Content:
    """`0007-compare  ✓ done`."""
    colour = COLOURS.get(row.status, "muted")
    return Content.assemble((row.id, "bold"), "  ", (f"{GLYPHS.get(row.status, '?')} {tr(row.status)}", f"${colour}"))


def sampling_words(sampling: dict[str, Any]) -> str:
    """`greedy`, or `temperature 0.7 · top-p 0.9 · top-k 50 · seed 3`; with the maximum length if it is not the default."""
    get = sampling.get
    temperature = get("temperature") or 0
    if not temperature:
        parts = [tr("greedy")]
    else:
        parts = [tr("temperature {value}", value=f"{temperature:g}")]
        if (get("top_p") or 1) < 1:
            parts.append(f"top-p {get('top_p'):g}")
        if get("top_k"):
            parts.append(f"top-k {get('top_k')}")
        parts.append(tr("seed {value}", value=get("seed", 0)))
    if get("max_new_tokens"):
        parts.append(tr("at most {count} tokens", count=get("max_new_tokens")))
    return " · ".join(parts)


def model_path(path: str, width: int) -> str:
    """The last, most specific part of a path."""
    text = printable(path)
    parts = Path(text).parts
    short = "/".join(parts[-3:] if parts[-1:] and parts[-1].startswith(ITERATION) else parts[-2:])
    return short if len(short) <= width else "…" + short[1 - width :]


def _figures(scores: Scores) -> list[tuple[str, list[str], bool | None]]:
    """(name, value of each model, whether higher is better)."""

    def values(name: str, form: str) -> list[str]:
        numbers = [getattr(model, name) for model in scores.models.values()]
        return [form.format(value) if value is not None else "–" for value in numbers]

    models: list[ModelScores] = list(scores.models.values())
    rows: list[tuple[str, list[str], bool | None]] = [("words", values("words", "{:.1f}"), None)]
    if scores.referenced:
        rows += [("words ÷ ref", values("length_ratio", "{:.2f}"), None), ("ROUGE-L", values("rouge_l", "{:.3f}"), True)]
    if scores.referenced > 1:
        rows.append(("CIDEr", values("cider", "{:.2f}"), True))
    if any(model.repetition > 0.005 for model in models):
        rows.append(("repeated", values("repetition", "{:.0%}"), False))
    if any(model.empty for model in models):
        rows.append(("empty", values("empty", "{}"), False))
    return rows


def table(view: CompareView, width: int) -> list[Content]:
    """Scores and votes, one column per model; the best value of a row is bold."""
    names = list(view.names)
    column = max(6, min(max(map(len, names), default=6), (width - LABEL) // max(len(names), 1) - 1))
    cells = [f" {name if len(name) <= column else '…' + name[1 - column :]:>{column}}" for name in names]
    lines = [Content(" " * LABEL + "".join(cells)).stylize("$muted")]
    for label, values, more in _figures(view.scores) if view.scores is not None else []:
        numbers = [float(value.rstrip("%")) if value != "–" else None for value in values]
        known = [number for number in numbers if number is not None]
        best = (max(known) if more else min(known)) if known and more is not None and len(set(known)) > 1 else None
        parts: list[Any] = [(padded(tr(label), LABEL), "$muted")]
        for value, number in zip(values, numbers, strict=True):
            parts.append((f" {value:>{column}}", "bold" if number is not None and number == best else ""))
        lines.append(Content.assemble(*parts))
    if view.votes.choices:
        counted = view.votes.tally(names)
        best = max(counted[name] for name in names)
        parts = [(padded(tr("votes"), LABEL), "$muted")]
        parts += [(f" {'★ ' if counted[name] == best and best else ''}{counted[name]}".rjust(column + 1), "") for name in names]
        equal = "  " + tr("{count} equal", count=counted[SAME]) if counted[SAME] else ""
        blind = "  " + tr("{count} blind", count=len(view.votes.blind)) if view.votes.blind else ""
        lines.append(Content.assemble(*parts, (equal + blind, "$muted")))
    return lines if len(lines) > 1 else []


def details(row: RunRow | None, view: CompareView, prompt: str, width: int, *, blind: bool, short: bool) -> Content:
    """All details, one per line. blind: without anything that identifies a model. short: only the most important ones."""
    lines: list[Content] = []
    if row is not None:
        lines.append(status(row))
    if row is not None and row.status in ("failed", "lost"):
        lines.append(Content("✗ " + one_line(row.error or row.last_line, 200)).stylize("$text-error"))
    if row is not None and row.alive and row.last_line:
        lines.append(Content(one_line(row.last_line, width)).stylize("$muted"))
    lines.append(Content(one_line(f"“{printable(prompt).strip()}”", width if short else 2 * width)))
    sampling = view.head.sampling or (row.run.options if row is not None else {})
    lines.append(Content(sampling_words(sampling)).stylize("$muted"))
    if blind:
        told = "  " + tr("{voted} of {count} voted", voted=len(view.votes.choices), count=len(view.samples))
        lines += [*([] if short else [Content("")]), Content.assemble((f" {tr('blind')} ", "bold reverse"), told)]
        lines.append(Content(tr("r shows which model wrote which, b ends blind mode: models, scores, votes")).stylize("$muted"))
        return Content("\n").join(lines)
    if short:
        return Content("\n").join([*lines, *table(view, width)])
    longest = min(max(map(len, view.names), default=0), 24)
    for name, path in view.head.models.items():
        size = view.head.sizes.get(name)
        words = model_path(path, max(width - longest - 10, 12)) + (f" ({size})" if size else "")
        lines.append(Content.assemble((f"{name:<{longest}}  ", "$muted"), words))
    if figures := table(view, width):
        lines += [Content(""), *figures]
    if view.head.notes:
        lines.append(Content(""))
        lines += [Content("! " + printable(note)).stylize("$text-warning") for note in view.head.notes]
    return Content("\n").join(lines)


def columns_of(
    view: CompareView, sample: CaptionedPicture, names: Sequence[str], *, hidden: bool, blind: bool, marked: bool, live: bool
) -> list[CaptionColumn]:
    """The captions of a picture in the order of `names`. hidden: without the names of the models; marked: with differing words marked."""
    captions = [sample.captions.get(name, RecordedCaption()) for name in names]
    # while a caption is being written, all words still missing would count as differences
    complete = all(caption.done and caption.text for caption in captions)
    texts = several([caption.text for caption in captions], marked and complete, blind)
    vote = view.votes.choices.get(sample.image)
    columns = []
    for place, (name, caption, text) in enumerate(zip(names, captions, texts, strict=True)):
        label = f"{LETTERS[place]}" if hidden else f"{LETTERS[place]} = {name}" if blind else name
        best = vote == name
        title = ("★ " if best else "") + label
        if caption.text and not hidden:
            words = count(caption.text)
            title += " · " + tr("{count} words" if words != 1 else "{count} word", count=words)
        if caption.text and not caption.done:
            title, text = title + " …", text + Content("▌").stylize("$accent")
        foot = []
        if caption.done and not hidden:
            if sample.references:
                foot.append(f"ROUGE-L {rouge_l(caption.text, sample.references):.2f}")
            if caption.seconds is not None:
                foot.append(f"{caption.seconds:.1f} s")
            if not caption.whole:
                foot.append(tr("cut off"))
        if not caption.text:
            state = "not written yet …" if live and not caption.done else "empty" if caption.done else "not written"
            text = Content(tr(state)).stylize("$muted")
        columns.append(CaptionColumn(Content(title), text, Content(" · ".join(foot)), best))
    return columns
