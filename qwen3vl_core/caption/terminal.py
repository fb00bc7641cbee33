"""A comparison as text for a terminal: a column for each model, differences shown by marks and colours.

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
"""Text and its style: `` plain, `base` only in the first caption, `tuned` only in the second, `both` in both, `dim`, `bold`."""

MARKS = {"base": ("[-", "-]"), "tuned": ("{+", "+}"), "both": ("{=", "=}")}
_CODES = {"base": "31", "tuned": "32", "both": "36", "dim": "2", "bold": "1"}
_BETWEEN = " │ "
_NARROWEST_COLUMN = 30
"""With narrower columns, captions are printed one below the other."""
_NARROWEST = 20


def width_of(text: str) -> int:
    """Columns that a text takes in a terminal: wide East Asian characters take two, combining marks none."""
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
    """The captions in their order; runs that `mark_differences` marks are in `[-` `-]` (only the first caption has them), `{+` `+}`
    or `{=` `=}` (both have them)."""
    styles = {"first": "base", "other": "tuned", "common": "both"}
    texts = [printable(caption.text) for caption in sample.captions.values()]
    return [[_in_marks(text, styles[mark]) if mark else (text, "") for text, mark in runs] for runs in mark_differences(texts)]


def _pieces(spans: list[Span]) -> Iterator[list[Span]]:
    """Words, which are not broken (each as spans, as marks may end inside a word), single spaces and newlines."""
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
    """Lines of at most `width` columns; longer words are broken."""
    lines: list[list[Span]] = [[]]
    used, is_first_line = 0, True
    for piece in _pieces(spans):
        text = "".join(part for part, _ in piece)
        if text == "\n":
            lines.append([])
            used, is_first_line = 0, True
            continue
        columns = width_of(text)
        if text == " ":
            # at the end of a line, or where a line was broken, the break takes the place of the space
            if used < width and (used or is_first_line):
                lines[-1].append((" ", piece[0][1]))
                used += 1
            continue
        if used and used + columns > width:
            lines.append([])
            used, is_first_line = 0, False
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
    """One line as text without trailing spaces, with ANSI colours if `colour`."""
    end = len(line)
    while end and not line[end - 1][0].strip():
        end -= 1
    pieces, style = [], ""
    for number, (text, next_style) in enumerate(line[:end], start=1):
        if colour and next_style != style:
            pieces.append(("\x1b[0m" if style else "") + (f"\x1b[{_CODES[next_style]}m" if next_style else ""))
            style = next_style
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
    """The lines of one picture: its name, its prompt if it has one of its own, the captions, the references."""
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
        for caption_lines in columns:
            lines += caption_lines
    else:
        for row in range(max(map(len, columns))):
            line: list[Span] = []
            for index, caption_lines in enumerate(columns):
                text = caption_lines[row] if row < len(caption_lines) else []
                room = column - sum(width_of(piece) for piece, _ in text)
                line += [*text, (" " * room, ""), (_BETWEEN, "dim")] if index < count - 1 else text
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
    used = {style for sample in comparison.samples for runs in marked_captions(sample) for _, style in runs}
    told = {"base": f"only in {names[0]}", "tuned": f"not in {names[0]}", "both": f"also in {names[0]}, where one is much longer"}
    if len(names) == 2:
        told |= {"tuned": f"only in {names[1]}", "both": "in both, where one is much longer"}
    legend = [span for style, text in told.items() if style in used for span in (_in_marks(text, style), ("  ", ""))]
    lines += wrapped([(printable(text), style) for text, style in legend], width)
    for note in comparison.notes:
        lines += wrapped([(printable(note), "bold")], width)
    return lines


def table(comparison: Comparison, *, width: int, colour: bool, show: int = 0) -> str:
    """The first `show` pictures (0: all) and the summary; every line at most `width` columns."""
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
