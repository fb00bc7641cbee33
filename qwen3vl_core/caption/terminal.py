"""A comparison as text for a terminal: two columns that fit its width, differences shown by marks and colours.

Imports no torch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from qwen3vl_core.caption.comparison import Comparison, ReportCaption, ReportSample
from qwen3vl_core.caption.reference_metrics import rouge_l
from qwen3vl_core.caption.report import differing, score_rows
from qwen3vl_core.caption.word_diff import mark_differences
from qwen3vl_core.formats import printable

Span = tuple[str, str]
"""Text and its style: `` plain, `base` only in the first caption, `tuned` only in the second, `dim`, `bold`."""

MARKS = {"base": ("[-", "-]"), "tuned": ("{+", "+}")}
_CODES = {"base": "31", "tuned": "32", "dim": "2", "bold": "1"}
_BETWEEN = " │ "
_NARROWEST_COLUMN = 30
"""Captions that would have less than this stand one above the other."""
_NARROWEST = 20


def width_of(text: str) -> int:
    """Columns of a terminal: wide East Asian characters take two, combining marks none."""
    columns = 0
    for character in text:
        if unicodedata.category(character) in ("Mn", "Me", "Cf"):
            continue
        columns += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return columns


def _in_marks(text: str, style: str) -> Span:
    opening, closing = MARKS[style]
    return opening + text + closing, style


def marked_captions(sample: ReportSample) -> list[list[Span]]:
    """The captions in their order, what `mark_differences` marks in `[-` `-]` (only the first has it) and `{+` `+}`."""
    styles = {"first": "base", "other": "tuned"}
    texts = [printable(caption.text) for caption in sample.captions.values()]
    return [[_in_marks(text, styles[mark]) if mark else (text, "") for text, mark in runs] for runs in mark_differences(texts)]


def _pieces(spans: list[Span]) -> Iterator[list[Span]]:
    """Words that must not be broken (each as spans, for marks may end inside), single spaces and line ends."""
    word: list[Span] = []
    for text, style in spans:
        for character in text:
            if character.isspace():
                if word:
                    yield word
                    word = []
                yield [(character if character == "\n" else " ", style)]
            elif word and word[-1][1] == style:
                word[-1] = word[-1][0] + character, style
            else:
                word.append((character, style))
    if word:
        yield word


def wrapped(spans: list[Span], width: int) -> list[list[Span]]:
    """Lines of at most `width` columns; words longer than a line are cut."""
    lines: list[list[Span]] = [[]]
    used, indents = 0, True
    for piece in _pieces(spans):
        text = "".join(part for part, _ in piece)
        if text == "\n":
            lines.append([])
            used, indents = 0, True
            continue
        columns = width_of(text)
        if text == " ":
            # at a line's end, or at the start of one that was broken here, a space is the break itself
            if used < width and (used or indents):
                lines[-1].append((" ", piece[0][1]))
                used += 1
            continue
        if used and used + columns > width:
            lines.append([])
            used, indents = 0, False
        for part, style in piece:
            for character in part:
                columns = width_of(character)
                if used + columns > width:
                    lines.append([])
                    used = 0
                lines[-1].append((character, style))
                used += columns
    return lines


def painted(line: list[Span], colour: bool) -> str:
    """One line as text without trailing spaces; `colour` adds ANSI colours."""
    end = len(line)
    while end and not line[end - 1][0].strip():
        end -= 1
    pieces, style = [], ""
    for number, (text, wanted) in enumerate(line[:end], start=1):
        if colour and wanted != style:
            pieces.append(("\x1b[0m" if style else "") + (f"\x1b[{_CODES[wanted]}m" if wanted else ""))
            style = wanted
        pieces.append(text.rstrip() if number == end else text)
    return "".join(pieces) + ("\x1b[0m" if style else "")


def _heading(name: str, caption: ReportCaption, sample: ReportSample, voted: bool) -> str:
    parts = [name, f"{caption.words} words", f"{caption.seconds:.1f} s"]
    if sample.references:
        parts.append(f"ROUGE-L {rouge_l(caption.text, sample.references):.2f}")
    if not caption.whole:
        parts.append("cut off")
    return ("★ " if voted else "") + " · ".join(parts)


def _block(sample: ReportSample, comparison: Comparison, number: int, total: int, width: int) -> list[list[Span]]:
    """One picture: its name, what was asked where that differs, the captions, the references."""
    title = f"── {number} of {total}  {printable(sample.image).replace(chr(10), ' ')} "
    lines = [*wrapped([(title, "bold")], width)]
    lines[-1].append(("─" * max(width - width_of("".join(t for t, _ in lines[-1])), 0), "dim"))
    if sample.prompt and sample.prompt != comparison.prompt:
        lines += wrapped([("asked: ", "dim"), (printable(sample.prompt), "")], width)
    vote = comparison.votes.get(sample.image)
    count = len(sample.captions)
    column = (width - len(_BETWEEN) * (count - 1)) // count
    if column < _NARROWEST_COLUMN:
        column = width
    columns = [
        [*wrapped([(_heading(name, caption, sample, vote == name), "dim")], column), *wrapped(marked, column)]
        for (name, caption), marked in zip(sample.captions.items(), marked_captions(sample), strict=True)
    ]
    if column == width:
        for part in columns:
            lines += part
    else:
        for row in range(max(map(len, columns))):
            line: list[Span] = []
            for place, part in enumerate(columns):
                text = part[row] if row < len(part) else []
                room = column - sum(width_of(piece) for piece, _ in text)
                line += [*text, (" " * room, ""), (_BETWEEN, "dim")] if place < count - 1 else text
            lines.append(line)
    for reference in sample.references:
        lines += wrapped([("reference: ", "dim"), (printable(reference), "")], width)
    return lines


def _summary(comparison: Comparison, width: int) -> list[list[Span]]:
    lines: list[list[Span]] = [[("─" * width, "dim")]]
    names = comparison.names
    column = max(10, *(width_of(printable(name)) + 2 for name in names))
    for label, values in [("", names), *score_rows(comparison)]:
        text = f"{label:28s}" + "".join(" " * (column - width_of(printable(v))) + printable(v) for v in values)
        lines += wrapped([(text, "" if label else "bold")], width)
    lines += wrapped([(differing(comparison), "")], width)
    if len(names) == 2:
        legend: list[Span] = [_in_marks(f"only in {names[0]}", "base"), ("  ", ""), _in_marks(f"only in {names[1]}", "tuned")]
    else:
        legend = [_in_marks(f"not in {names[0]}", "tuned")]
    lines += wrapped([(printable(text), style) for text, style in legend], width)
    for note in comparison.notes:
        lines += wrapped([(printable(note), "bold")], width)
    return lines


def table(comparison: Comparison, *, width: int, colour: bool, show: int = 0) -> str:
    """The whole comparison, or its first `show` pictures (0: all) and the summary; every line at most `width` columns."""
    width = max(width, _NARROWEST)
    lines = wrapped([("prompt: ", "dim"), (printable(comparison.prompt), "")], width)
    total = len(comparison.samples)
    shown = comparison.samples[: show or None]
    for number, sample in enumerate(shown, start=1):
        lines += [[], *_block(sample, comparison, number, total, width)]
    if len(shown) < total:
        lines += [[], *wrapped([(f"and {total - len(shown)} more; --show 0 prints them all", "dim")], width)]
    lines += [[], *_summary(comparison, width)]
    return "\n".join(painted(line, colour) for line in lines) + "\n"
