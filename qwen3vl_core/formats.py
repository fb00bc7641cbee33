"""Formats numbers, times, sizes and untrusted text, the same way for log lines, tables, screens and notebooks."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

GIB = 1024**3
"""Bytes in a GiB. Memory is shown in GiB, as by nvidia-smi; files and disks in powers of 1000, by `quantity`."""


LONGEST_LINE = 3000
"""Characters of a message: some name every option."""


def number(value: Any, digits: int = 4) -> str:
    """About `digits` significant digits: 1.214, 0.0123, 1.2e-5, 41.2k; a dash for a value that is not a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    size = abs(value)
    if size >= 10_000:
        for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= unit:
                return f"{value / unit:.3g}{name}"
    if size and size < 1e-3:
        mantissa, power = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def tick(value: float, step: float) -> str:
    """The label of an axis tick, with as many decimals as the distance between ticks needs."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 1e-3:
        return number(value, 3)
    decimals = max(0, -math.floor(math.log10(abs(step) * 1.0000001))) if step else 3
    return f"{value:.{min(decimals, 6)}f}"


def parameter_count(count: float) -> str:
    """`8.77 billion`, `0.3 million`."""
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"


def duration(seconds: float) -> str:
    """How long something took or will take: `75.2` -> `1:15`, `3700` -> `1:01:40`."""
    total = max(0, round(seconds))
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def seconds_of(text: str) -> float | None:
    """Seconds of a time that a person wrote: `11h30m`, `90m`, `3600`, `11:30:00`, `1-02:00:00` (Slurm's days); None for anything
    else and for 0."""
    number, times = r"\d{1,9}(?:\.\d{1,3})?", (86400, 3600, 60, 1)
    for pattern in (
        rf"()()()({number})", rf"(?:(\d{{1,4}})d)?(?:(\d{{1,5}})h)?(?:(\d{{1,7}})m)?(?:({number})s)?",
        r"(?:(\d{1,4})-)?(\d{1,4}):([0-5]\d):([0-5]\d)",
    ):  # fmt: skip
        if match := re.fullmatch(pattern, text.strip().lower()):
            return sum(float(part or 0) * size for part, size in zip(match.groups(), times, strict=True)) or None
    return None


def span(seconds: float | None) -> str:
    """A span of time in one unit: 42s, 7m, 3h, 12d."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    seconds = max(0.0, seconds)
    for size, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{name}"
    return f"{int(seconds)}s"


def quantity(value: float, unit: str) -> str:
    """A number with its unit, bytes in powers of 1000: `12.3 MB`, `412 samples`."""
    if unit != "B":
        return f"{value:,.0f} {unit}" if value >= 100 or value == int(value) else f"{value:,.1f} {unit}"
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            break
        value /= 1000
    return f"{value:.0f} {prefix}B" if value >= 100 or not prefix else f"{value:.1f} {prefix}B"


def printable(text: object) -> str:
    """Text that cannot steer a terminal: control characters and changes of direction become visible signs, tabs blanks.

    Line ends stay; other separators of lines become blanks. Joiners stay, because they shape letters and emoji.
    """
    text = str(text).replace("\r\n", "\n").expandtabs(4)
    return text if text.isprintable() else "".join(map(_printable_character, text))


def one_clear_line(text: object) -> str:
    """A message on one line of limited length, whatever a file has put into it; its end, which says the way out, stays."""
    line = printable(text).replace("\n", " ").strip()
    if line == text and isinstance(text, str):
        return text  # one that knows its template stays one
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 501]}…{line[-500:]}"


def _printable_character(character: str) -> str:
    category = unicodedata.category(character)
    if character in "\n\u200c\u200d":
        return character
    if category in ("Zl", "Zp"):
        return " "
    if category not in ("Cc", "Cs", "Cf"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "\ufffd"
