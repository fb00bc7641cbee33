"""Lines of this program in a run's log, `qwen3vl[tag]: text`: programs read the tag, people the text. On a terminal `qwen3vl: text`.

Imports no other module of ours: the supervisor and the first frame need it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

RESUMED, STOP_ASKED, SAVE_ASKED, KILLED = "resumed", "stop", "save", "killed"
RESTARTED, STALLED, BY_SIGNAL, QUEUED = "restart", "stalled", "signal", "queued"
ROTATED, NODE_SILENT = "log", "node"
MIRRORED, NOT_TOLD = "mirror", "notify"
NOT_STARTED, BAD_STEPS, WORK_FAILED, UNEXPECTED, INTERRUPTED = "not-started", "bad-steps", "work", "unexpected", "interrupted"
TAGS = {
    RESUMED: "of the supervisor: a further attempt begins",
    RESTARTED: "of the supervisor: a further attempt begins after one that failed; the text says why",
    QUEUED: "of the supervisor: the run waits for GPUs, or has got them",
    STOP_ASKED: "of the supervisor: it was asked to stop the run",
    SAVE_ASKED: "of the supervisor: it was asked for a checkpoint",
    KILLED: "of the supervisor: processes did not end in time",
    STALLED: "of the supervisor: no step comes any more, and which rank is behind; or steps come again",
    BY_SIGNAL: "of the supervisor: which process a signal ended first, and the likely sender",
    ROTATED: "of the supervisor: the log grew too long, and goes on shorter",
    NODE_SILENT: "a machine of the job has stopped answering, or answers again",
    MIRRORED: "a checkpoint was copied to the mirror, or why not",
    NOT_TOLD: "a message about the run could not be sent, or an address of --notify cannot be used",
    NOT_STARTED: "of the supervisor: the command could not be started",
    BAD_STEPS: "training ended after too many bad steps in a row",
    WORK_FAILED: "the work failed; the text says why and what to do",
    UNEXPECTED: "an error that no message of ours explains",
    INTERRUPTED: "the command was interrupted",
}
"""What ended the run, or what its supervisor did. Any other tag is the code of a problem of the request."""
NO_ERRORS = (QUEUED, RESUMED, RESTARTED, STOP_ASKED, SAVE_ASKED, KILLED, ROTATED, NODE_SILENT, INTERRUPTED, MIRRORED, NOT_TOLD)
UNTAGGED = ""
"""The tag of a line that has none: on a terminal, and in logs of versions before the tags."""
_BEGIN, _PREFIX, _LONGEST = b"qwen3vl[", b"qwen3vl: ", 64
_TAG = re.compile(r"qwen3vl\[[a-z0-9-]+\]: ")
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


def untagged(line: str) -> str:
    """A line as people read it: of ours without the tag, `qwen3vl: text`."""
    tag = _TAG.match(line)
    return f"qwen3vl: {line[tag.end() :]}" if tag else line


class TagRemover:
    """Takes the tags out of a log that comes in pieces, for people who follow it.

    in_place: every byte keeps its position; NUL bytes before a line take the place of its tag.
    """

    def __init__(self, in_place: bool = False) -> None:
        # a progress bar returns to the beginning of its line
        self._tags = re.compile(rb"(?<=[\r\n])" + _TAG.pattern.encode())
        self._in_place = in_place
        self._held, self._before = b"", b"\n"

    def removed(self, piece: bytes) -> bytes:
        """What to show for the next piece. A line that may become one of ours is held back until the next call."""
        data, self._held = self._before + self._held + piece, b""
        if piece:
            line = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            last = data[line:]
            if line and (_BEGIN.startswith(last) or (last.startswith(_BEGIN) and b"]: " not in last and len(last) < _LONGEST)):
                data, self._held = data[:line], last
        self._before = data[-1:]
        return self._tags.sub(self._without_tag, data)[1:]

    def _without_tag(self, match: re.Match[bytes]) -> bytes:
        return _PREFIX.rjust(len(match[0]) if self._in_place else 0, b"\0")
