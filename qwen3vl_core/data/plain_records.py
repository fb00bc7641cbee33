"""The records that most sources consist of, in a fifth of the time that `layouts` takes to read them; it reads all others.

What is read here is what `layouts` would make of the record. Imports no torch.
"""

from __future__ import annotations

import functools
from types import NoneType
from typing import Any

from qwen3vl_core.data import media_values
from qwen3vl_core.data.media_tags import CAPTION_PROMPT, PUT_IN_FRONT
from qwen3vl_core.data.records import PICTURE, PICTURE_SUFFIXES, REMARK, TAG, Content, Medium, Note, SourceRecord, suffix

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_PAIRS = ((None, "caption"), (None, "text"), ("question", "answer"), ("query", "response"), ("problem", "solution"))
"""(question, answer); without a question it is a caption."""


def read(number: int, record: dict[str, Any]) -> SourceRecord | None:
    """A record with turns or a pair, pictures, an id and nothing else; None for any other, right or wrong."""
    conversation, names, record_id = record.get("conversations"), record.get("image"), record.get("id")
    if conversation is None:
        conversation = record.get("messages")
    if conversation is None:
        return _plain_pair(number, record)
    if names is None:
        names = record.get("images")
    if type(conversation) is not list or len(record) != 1 + (names is not None) + (record_id is not None):
        return None
    pictures: list[Any] = []
    for name in () if names is None else names if type(names) is list else (names,):
        picture = _plain_picture(name)
        if picture is None:
            return None
        pictures.append(picture)
    if record_id is not None and not (type(record_id) is str and record_id.isascii()):
        return None
    tags, turns = 0, list[tuple[str, Content]]()
    shown: list[Any] = []
    role: str | None = "user"
    for turn in conversation:
        if type(turn) is not dict or len(turn) != 2:
            return None
        speaker, text = turn.get("from"), turn.get("value")
        if speaker is None:
            speaker, text = turn.get("role"), turn.get("content")
        role = _ROLES.get(speaker) if type(speaker) is str else None
        if role is None:
            return None
        if type(text) is list:
            text = _plain_parts(text, shown if role == "user" else None)
            if type(text) is tuple:
                turns.append((role, text))
                continue
        if type(text) is not str or not (text.isascii() or _encodable(text)):
            return None
        if role == "assistant":
            if not text or text.isspace() or "<" in text:
                return None
        elif "<" in text:
            count = text.count(TAG)
            if count != text.count("<"):
                return None
            tags += count
        turns.append((role, text))
    if role != "assistant" or tags != len(pictures) or (shown and pictures):
        return None
    return SourceRecord(number, record_id, tuple(turns), tuple(shown or pictures))


def _plain_parts(parts: list[Any], shown: list[Any] | None) -> Content | None:
    """The content that parts of text, and of pictures by their names, stand for; None for any others. shown: gets the pictures."""
    pieces: list[str | int] = []
    pictured = False
    for part in parts:
        if type(part) is not dict or len(part) != 2:
            return None
        kind = part.get("type")
        if kind == "text":
            text = part.get("text")
            if type(text) is not str or not text or "<" in text or not (text.isascii() or _encodable(text)):
                return None
            if pieces and type(last := pieces[-1]) is str:
                pieces[-1] = last + text
            else:
                pieces.append(text)
        elif kind == "image" and shown is not None and type(name := part.get("image")) is str and _is_plain_name(name):
            shown.append(name)
            pieces.append(PICTURE)
            pictured = True
        else:
            return None
    return tuple(pieces) if pictured else "".join(map(str, pieces))


def _plain_pair(number: int, record: dict[str, Any]) -> SourceRecord | None:
    """A picture with its caption, or with one question and its answer; None for any other record."""
    keys = _pair_keys(tuple(record))
    if keys is None:
        return None
    picture, question, answer = keys
    name, text, record_id = record[picture], record[answer], record.get("id")
    asked = CAPTION_PROMPT if question is None else record[question]
    if type(name) is not str or not _is_plain_name(name) or (picture == "file_name" and not suffix(name, PICTURE_SUFFIXES, "")):
        return None
    if type(text) is not str or type(asked) is not str or not asked or asked.isspace() or not text or text.isspace() or "<" in text:
        return None
    if not (text.isascii() and asked.isascii()) and not (_encodable(text) and _encodable(asked)):
        return None
    if record_id is not None and type(record_id) is not int and not (type(record_id) is str and record_id.isascii()):
        return None
    notes: tuple[Note, ...] = ()
    if "<" not in asked:
        notes = () if asked == CAPTION_PROMPT else ((REMARK, PUT_IN_FRONT),)
        asked = TAG + asked
    elif asked.count("<") != 1 or asked.count(TAG) != 1:
        return None
    shown_id = None if record_id is None else str(record_id)
    return SourceRecord(number, shown_id, (("user", asked), ("assistant", text)), (name,), (), None, notes)


@functools.lru_cache(maxsize=256)
def _pair_keys(keys: tuple[Any, ...]) -> tuple[str, str | None, str] | None:
    """The keys of (picture, question, answer) where a record has no others but an id; question None: it is a caption."""
    others = {*keys} - {"id"}
    for picture in ("image", "file_name"):
        for question, answer in _PAIRS:
            if others == {picture, answer} | ({question} if question else set()):
                return picture, question, answer
    return None


def _plain_picture(value: Any) -> str | Medium | None:
    """A picture as a name that needs no tidying, as bytes, or as a stretch of a file; None for anything else."""
    if type(value) is str:
        return value if _is_plain_name(value) else None
    if type(value) is dict:
        if media_values.RANGE in value:
            return Medium(value[media_values.RANGE]) if len(value) == 1 else None
        if not (len(value) == 2 and "path" in value and type(value["path"]) in (str, NoneType)):
            return None
        value = value.get("bytes")
    return Medium(value) if type(value) is bytes and value else None


def _is_plain_name(name: str) -> bool:
    if not name.isascii() or not name or name[0] == "/" or name[-1] in "./" or len(name) >= 256 or "." not in name:
        return False
    return not ("./" in name or "//" in name or ":" in name or "\0" in name or "\\" in name)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
