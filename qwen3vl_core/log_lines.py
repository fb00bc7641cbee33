"""Lines of this program in a run's log, `qwen3vl[tag]: text`: programs read the tag, people the text. On a terminal `qwen3vl: text`.

Imports no other module of ours: the supervisor and the first frame need it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

RESUMED, STOP_ASKED, SAVE_ASKED, KILLED = "resumed", "stop", "save", "killed"
RESTARTED, STALLED, BY_SIGNAL = "restart", "stalled", "signal"
NOT_STARTED, BAD_STEPS, WORK_FAILED, UNEXPECTED, INTERRUPTED = "not-started", "bad-steps", "work", "unexpected", "interrupted"
TAGS = {
    RESUMED: "of the supervisor: a further attempt begins",
    RESTARTED: "of the supervisor: a further attempt begins after one that failed; the text says why",
    STOP_ASKED: "of the supervisor: it was asked to stop the run",
    SAVE_ASKED: "of the supervisor: it was asked for a checkpoint",
    KILLED: "of the supervisor: processes did not end in time",
    STALLED: "of the supervisor: no step comes any more, and which rank is behind; or steps come again",
    BY_SIGNAL: "of the supervisor: which process a signal ended first, and the likely sender",
    NOT_STARTED: "of the supervisor: the command could not be started",
    BAD_STEPS: "training ended after too many bad steps in a row",
    WORK_FAILED: "the work failed; the text says why and what to do",
    UNEXPECTED: "an error that no message of ours explains",
    INTERRUPTED: "the command was interrupted",
}
"""What ended the run, or what its supervisor did. Any other tag is the code of a problem of the request."""
NO_ERRORS = (RESUMED, RESTARTED, STOP_ASKED, SAVE_ASKED, KILLED, INTERRUPTED)
UNTAGGED = ""
"""The tag of a line that has none: on a terminal, and in logs of versions before the tags."""
_BEGIN, _LONGEST = b"qwen3vl[", 64
# before the tags: the prefixes, and how the supervisor's lines began, which were like errors otherwise
_UNTAGGED_HEADS = ("qwen3vl", "qwen3vl finetune")
_BEFORE_TAGS = {"qwen3vl: resumed ": RESUMED, "qwen3vl: asked to ": STOP_ASKED}


class LogLine(NamedTuple):
    """A line of this program."""

    tag: str
    text: str


def written(text: str, tag: str = UNTAGGED) -> str:
    """The line for a text."""
    return f"qwen3vl[{tag}]: {text}" if tag else f"qwen3vl: {text}"


def read(line: str) -> LogLine | None:
    """The tag and the text of a line of ours; None for a line of another program."""
    if not line.startswith("qwen3vl"):
        return None
    head, colon, text = line.partition(": ")
    if colon and head.startswith("qwen3vl[") and head.endswith("]") and head[8:-1].replace("-", "").isalnum():
        return LogLine(head[8:-1], text)
    if not colon or head not in _UNTAGGED_HEADS:
        return None
    return LogLine(next((tag for begin, tag in _BEFORE_TAGS.items() if line.startswith(begin)), UNTAGGED), text)


def text_of(line: str) -> str:
    """A line without the prefix that ours have."""
    own = read(line)
    return line if own is None else own.text


class TagRemover:
    """Takes the tags out of a log that comes in pieces, for people who follow it."""

    def __init__(self) -> None:
        self._tags = re.compile(rb"^qwen3vl\[[a-z0-9-]+\]: ", re.MULTILINE)
        self._held = b""
        self._at_begin = True

    def removed(self, piece: bytes) -> bytes:
        """What to show for the next piece. A line that may become one of ours is held back until the next call."""
        data, self._held = self._held + piece, b""
        if piece:
            line = data.rfind(b"\n") + 1
            last = data[line:]
            may_be_ours = _BEGIN.startswith(last) or (last.startswith(_BEGIN) and b"]: " not in last and len(last) < _LONGEST)
            if may_be_ours and (line or self._at_begin):
                data, self._held = data[:line], last
        # `^` also matches where a piece begins in the middle of a line
        begin = 0 if self._at_begin else data.find(b"\n") + 1 or len(data)
        shown = data[:begin] + self._tags.sub(b"qwen3vl: ", data[begin:])
        if data:
            self._at_begin = data.endswith(b"\n")
        return shown
