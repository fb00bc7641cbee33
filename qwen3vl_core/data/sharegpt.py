"""ShareGPT records: `conversations` or `messages`, with `images` and `videos` used in the order of the tags in the text.

Turns are {from, value} or {role, content}; system, user and assistant turns are read, under LLaVA's
role names too. Tool and function turns are rejected by name: training on them needs a template that supports them.
"""

from __future__ import annotations

from typing import Any

from qwen3vl_core.data import llava
from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.data.llava import SourceRecord

_UNREAD = ("audios", "audio", "tools")


def parse(number: int, record: dict[str, Any]) -> SourceRecord:
    """Parse and check one record. Raises DataError that names the violated rule."""
    for key in _UNREAD:
        if record.get(key):
            raise DataError("record-key-not-read", key=key)
    return llava.checked(number, record.get("id"), _turns(record), _names(record, "image"), _names(record, "video"))


def _turns(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    keys = [key for key in ("conversations", "messages") if record.get(key) is not None]
    if len(keys) > 1:
        raise DataError("record-has-both", first="conversations", second="messages")
    turns = llava.turns(record, keys[0] if keys else "messages")
    system = record.get("system")
    if system is None or system == "":
        return turns
    if turns[0][0] == "system":
        raise DataError("record-has-both", first="system", second="a system turn")
    return (("system", llava.text_of(system, "system")), *turns)


def _names(record: dict[str, Any], what: str) -> tuple[str, ...]:
    if what in record and what + "s" in record:
        raise DataError("record-has-both", first=what, second=f"{what}s")
    names = record.get(what + "s", record.get(what))
    if names is None or names == "":
        return ()
    if not isinstance(names, (list, str)):
        raise DataError("names-not-a-list", key=f"{what}s", found=kind_of(names))
    return tuple([llava.media_name(name, what) for name in (names if isinstance(names, list) else [names])])
