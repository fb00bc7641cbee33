"""DataError: why a sample cannot be used, with a reason code to count by. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

REASONS = {
    "bad_record": "the record breaks a rule",
    "missing_picture": "the picture does not exist",
    "broken_picture": "the picture cannot be read",
    "extreme_picture": "the picture is over 200 times longer than wide, or too large to decode",
    "broken_shard": "the shard is damaged or truncated",
    "bad_json": "the conversation is not JSON",
    "bad_messages": "the conversation is not a list of messages with role and content",
    "control_token": "a text holds one of the chat format's own tokens",
    "broken_video": "the video cannot be read",
    "missing_video": "the video does not exist",
    "extreme_video": "the video is over 200 times longer than wide, or too large to decode",
    "video": "the conversation holds a video, which the checkpoint cannot read",
    "too_long": "longer than --seq-length",
    "no_trained_token": "no assistant turn to train on",
}
"""Every reason of a DataError, and what it means."""


class DataError(ValueError):
    """One sample that cannot be used: `reason` is a key of REASONS, `detail` describes the problem."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise KeyError(f"{reason} is not a reason; the reasons are {', '.join(REASONS)}")
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@contextlib.contextmanager
def picture_errors(what: str) -> Iterator[None]:
    """Turns any error of a picture library into a DataError that names the picture, `what`.

    Pillow raises SyntaxError, SystemError, MemoryError, struct.error and more for damaged files, and which one differs
    between formats and releases: all of them mean that this picture cannot be read.
    """
    try:
        yield
    except DataError as error:
        if what in error.detail:
            raise
        raise DataError(error.reason, f"{what}: {error.detail}") from error
    except Exception as error:
        name = type(error).__name__
        if name == "DecompressionBombError":
            raise DataError("extreme_picture", f"{what}: {error}") from error
        detail = "not a picture (JPEG, PNG, WebP, GIF, BMP and TIFF are read)" if name == "UnidentifiedImageError" else f"{error or name}"
        raise DataError("broken_picture", f"{what}: {detail}") from error


def listed(entries: list[str], shown: int = 3) -> str:
    """`a; b; c; and 9 more`, on one line whatever the entries hold."""
    more = len(entries) - shown
    lines = (" ".join(entry.split()) for entry in entries[:shown])
    return "; ".join(line if len(line) <= 300 else line[:299] + "…" for line in lines) + (f"; and {more:,} more" if more > 0 else "")


def kind_of(value: Any) -> str:
    """The type of a JSON value, for messages."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return kinds[type(value)]
