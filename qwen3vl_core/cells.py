"""Text in the cells of a terminal, of which a Chinese character takes two. Standard library only, as every command's help needs it."""

from __future__ import annotations

import re
from unicodedata import combining, east_asian_width

_HAN, _BEHIND = r"\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef", "[，。；：、！？）》」…]*"
_PIECES = re.compile(rf"\s+|[{_HAN}]{_BEHIND}|[^\s{_HAN}]+{_BEHIND}")
"""What a line is not broken within: a Chinese character with the marks behind it, a word of Latin letters."""


def width(text: str) -> int:
    """Cells of a line."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def padded(text: str, cells: int) -> str:
    """Text with blanks up to this many cells."""
    return text + " " * (cells - width(text))


def wrapped(text: str, cells: int) -> list[str]:
    """Lines of at most this many cells, broken between words and between Chinese characters; a longer word has a line of its own."""
    lines = [""]
    for piece in _PIECES.findall(" ".join(text.split())):
        if width(lines[-1]) + width(piece.rstrip()) > cells and lines[-1].strip():
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += piece if lines[-1] or piece.strip() else ""
    return [line.rstrip() for line in lines]
