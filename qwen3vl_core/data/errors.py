"""DataError: why a record or a sample cannot be used, and the reason that it is counted under. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from qwen3vl_core.problems import Problem

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
    "tools": "the conversation holds tools, which the checkpoint's chat template does not show",
    "no_trained_token": "no assistant turn to train on",
}
"""What samples that cannot be used are counted under, in reports and in the run's record, and what it means."""


_CODES = {
    "bad_record": (
        "record-not-an-object", "record-not-text", "record-lone-surrogate", "record-key-not-read", "record-has-both", "id-not-text",
        "line-not-utf8", "line-not-json", "line-json-unreadable",
        "no-conversation", "not-a-conversation", "turn-not-an-object", "unknown-role", "system-turn-not-first", "empty-answer", "no-answer",
        "names-not-a-list", "media-address", "media-drive", "media-without-name", "media-outside", "tags-differ", "answers-untrained",
        "loss-value", "loss-key", "record-weight", "record-preference", "record-rating", "key-refused",
        "key-names-media", "record-shape", "option-value",
        "no-layout", "caption-without-picture", "captions-several", "thinking-misplaced", "part-type", "parts-differ", "media-in-answer",
        "media-without-question", "media-empty", "media-option", "media-object", "media-object-key", "data-url", "media-base64",
        "video-times",
        "times-of-several", "numbered-tags", "media-placeholder", "boxes-without-objects", "boxes-differ", "box-outside",
        "sample-without-conversation", "sample-not-one-picture",
    ),
    "missing_picture": ("picture-missing", "picture-not-in-sample"),
    "broken_picture": (
        "picture-empty", "picture-cut-off", "picture-greys", "picture-format", "picture-other-format",
        "picture-unreadable", "picture-sizes-differ",
    ),
    "extreme_picture": ("picture-proportions", "picture-too-large"),
    "broken_shard": ("shard-damaged", "shard-without-sample"),
    "bad_json": ("no-json-part", "json-unreadable"),
    "bad_messages": (
        "no-messages", "not-messages", "message-not-an-object", "message-role", "message-content", "message-part", "message-without-text",
        "message-lone-surrogate", "frames-not-names", "frames-without-fps", "medium-without-part", "chat-template-fails",
        "template-pictures", "template-videos", "answers-differ", "message-tool-calls", "sample-tools", "video-sampling",
    ),
    "control_token": ("control-token",),
    "broken_video": (
        "video-empty", "video-cut-off",
        "video-cut-off-packets", "video-file-cut-off", "video-without-stream", "video-codec", "video-header", "video-unreadable",
        "video-sizes-differ", "video-start", "frames-missing", "frames-too-many", "frames-name", "frames-fps", "frames-differ",
    ),
    "missing_video": ("video-missing", "video-not-in-sample"),
    "extreme_video": ("video-proportions", "video-too-large"),
    "video": ("video-unsupported",),
    "tools": ("tools-not-shown",),
    "too_long": ("too-long", "too-long-for-layout"),
    "no_trained_token": ("nothing-to-train",),
}  # fmt: skip
REASON_OF = {code: reason for reason, codes in _CODES.items() for code in codes}
"""The reason that each problem of a sample is counted under; `problem_texts.TEXTS` has its text."""


class DataError(ValueError):
    """One record or sample that cannot be used. where: the file, turn or message with the problem; rule: what its text needs.

    `media_errors` adds the file where the one that raises does not know it.
    """

    def __init__(self, code: str, where: str = "", **rule: Any) -> None:
        super().__init__(code, where)
        self.problem = Problem(code, rule={"written": where, **rule} if where else rule)
        self.reason = REASON_OF[code]
        """A key of REASONS."""

    @property
    def detail(self) -> str:
        """The line for people, without the reason."""
        return str(self.problem)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self.problem.code, dict(self.problem.rule))


def _made_again(code: str, rule: dict[str, Any]) -> DataError:
    return DataError(code, **rule)


@contextlib.contextmanager
def media_errors(what: str, converted: Callable[[Exception], DataError]) -> Iterator[None]:
    """Turns any error of a block into a DataError that names the file `what`, unless it names a file, turn or message already."""
    try:
        yield
    except Exception as error:
        known = error if isinstance(error, DataError) else converted(error)
        rule = known.problem.rule
        if known is error and "written" in rule:
            raise
        raise DataError(known.problem.code, **{"written": what, **rule}) from error


def picture_errors(what: str) -> contextlib.AbstractContextManager[None]:
    """`media_errors` of a picture library.

    Pillow raises SyntaxError, SystemError, MemoryError, struct.error and more for damaged files, and which one differs
    between formats and releases: all of them mean that this picture cannot be read.
    """
    return media_errors(what, _picture_error)


def _picture_error(error: Exception) -> DataError:
    name = type(error).__name__
    return DataError("picture-too-large" if name == "DecompressionBombError" else "picture-unreadable", reason=str(error) or name)


def listed(entries: list[str], shown: int = 3) -> str:
    """`a; b; c; and 9 more`, on one line whatever the entries hold."""
    more = len(entries) - shown
    lines = (" ".join(entry.split()) for entry in entries[:shown])
    return "; ".join(line if len(line) <= 300 else line[:299] + "…" for line in lines) + (f"; and {more:,} more" if more > 0 else "")


def kind_of(value: Any) -> str:
    """The type of a JSON value, for messages."""
    kinds = {
        bytes: "bytes",
        tuple: "a list",
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)
