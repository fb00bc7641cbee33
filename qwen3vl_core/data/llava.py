"""LLaVA-style JSON: a list of {id, image, conversations: [{from, value}]} with `<image>` in the text. Imports no torch.

Records are counted from 0, as `jq '.[12]'` does. A sample's key is its record's number, so that ids with dots, ids that
occur twice and records without an id all work; the id itself is kept beside the conversation.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_core.data.faults import listed
from qwen3vl_core.errors import RequestError

TAG = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_KNOWN_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_SHAPE = "a list of {id, image, conversations: [{from, value}]} is read"


class RecordError(ValueError):
    """One record that breaks a rule: says which, without the record's number."""


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation with its pictures, checked against every rule that needs no other file."""

    number: int
    """Place in the JSON list, from 0."""
    id: str | None
    turns: tuple[tuple[str, str], ...]
    """(user | assistant | system, text); `<image>` in the users' texts, one for each picture."""
    pictures: tuple[str, ...]
    """Names relative to the pictures' folder, in the order of the tags."""

    @property
    def key(self) -> str:
        """Name of the sample in its shard: unique, and without dots."""
        return f"{self.number:08d}"

    @property
    def parts(self) -> list[str]:
        """Names of the pictures within the sample: `img0.jpg`, `img1.png`."""
        return [f"img{i}.{_suffix(name)}" for i, name in enumerate(self.pictures)]

    def messages(self) -> list[dict[str, Any]]:
        """[{"role", "content": [{"type": "image", "part"} | {"type": "text", "text"}]}]

        Line ends between a tag and its text go: the chat template puts picture and text side by side, and a prompt at
        inference has none either.
        """
        parts = iter(self.parts)
        made = []
        for role, text in self.turns:
            pieces = text.split(TAG) if role == "user" else [text]
            content: list[dict[str, str]] = []
            for place, piece in enumerate(pieces):
                if place:
                    content.append({"type": "image", "part": next(parts)})
                    piece = piece.lstrip("\r\n")
                if place < len(pieces) - 1:
                    piece = piece.rstrip("\r\n")
                if piece:
                    content.append({"type": "text", "text": piece})
            made.append({"role": role, "content": content})
        return made

    def payload(self) -> bytes:
        """The sample's JSON file."""
        made: dict[str, Any] = {} if self.id is None else {"id": self.id}
        made["messages"] = self.messages()
        return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()


def _suffix(name: str) -> str:
    suffix = posixpath.splitext(name)[1][1:].lower()
    return suffix if suffix in _KNOWN_SUFFIXES else "img"


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{what} must be text, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{what} holds half a character (a lone surrogate)") from None
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return kinds[type(value)]


def _picture(name: Any) -> str:
    """A safe relative name, tidied. Raises RecordError for one that leaves the folder."""
    name = _text(name, "a picture's name")
    if name.startswith("/") or (name[1:2] == ":" and name[2:3] in ("/", "\\")):
        raise RecordError(f"picture {name}: an absolute path; write it relative to the pictures' folder and give --images")
    tidy = posixpath.normpath(name)
    if not name or tidy == "." or "\0" in name:
        raise RecordError(f"picture {name!r}: no file name")
    if tidy == ".." or tidy.startswith("../"):
        raise RecordError(f"picture {name}: leads out of the pictures' folder; give a higher folder as --images")
    return tidy


def _pictures(record: dict[str, Any]) -> tuple[str, ...]:
    if "image" in record and "images" in record:
        raise RecordError("both image and images; keep one")
    if record.get("video") or record.get("videos"):
        raise RecordError("holds a video; only pictures and text are read")
    found = record.get("image", record.get("images"))
    names = [] if found is None or found == "" else found if isinstance(found, list) else [found]
    return tuple(map(_picture, names))


def _turns(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        state = "no conversations" if not conversation else f"conversations must be a list, not {_kind(conversation)}"
        raise RecordError(state)
    turns = []
    for place, turn in enumerate(conversation):
        where = f"turn {place}"
        if not isinstance(turn, dict):
            raise RecordError(f"{where} must be an object {{from, value}}, not {_kind(turn)}")
        speaker = _text(turn.get("from", turn.get("role")), f"{where}: from")
        if speaker not in ROLES:
            raise RecordError(f"{where}: from is {speaker!r}; must be one of {', '.join(ROLES)}")
        role, text = ROLES[speaker], _text(turn.get("value", turn.get("content")), f"{where}: value")
        if role == "system" and place:
            raise RecordError(f"{where}: a system turn can only be the first")
        if role == "assistant" and not text.strip():
            raise RecordError(f"{where}: an empty answer")
        turns.append((role, text))
    if not any(role == "assistant" for role, _ in turns):
        raise RecordError("no answer (a turn from gpt) to learn from")
    return tuple(turns)


def parse(number: int, record: Any) -> Record:
    """One record, checked. Raises RecordError that names the broken rule."""
    if not isinstance(record, dict):
        raise RecordError(f"must be an object, not {_kind(record)}")
    turns, pictures = _turns(record), _pictures(record)
    tags = sum(text.count(TAG) for role, text in turns if role == "user")
    if tags != len(pictures):
        raise RecordError(f"{tags} {TAG} tag{'s' * (tags != 1)} but {len(pictures)} picture{'s' * (len(pictures) != 1)}")
    name = record.get("id")
    if isinstance(name, (dict, list, bool)):
        raise RecordError(f"id must be text or a number, not {_kind(name)}")
    return Record(number, None if name is None else _text(str(name), "id"), turns, pictures)


def load_list(file: Path) -> list[Any]:
    """The JSON list in `file`. Raises RequestError when it is no such thing."""
    try:
        loaded = json.loads(file.read_bytes().decode("utf-8-sig"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise RequestError(f"{file}: no such file; give the JSON list of conversations") from None
    except IsADirectoryError:
        found = sorted(p.name for p in file.glob("*.json"))
        way_out = f"it holds {listed(found)}; give one of them" if found else "give the JSON list of conversations"
        raise RequestError(f"{file}: a folder; {way_out}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{file}: not UTF-8 text (byte {error.start:,}); {_SHAPE}") from None
    except json.JSONDecodeError as error:
        way_out = f"jq -s . {file.name} makes one list of JSON Lines" if error.msg == "Extra data" else _SHAPE
        raise RequestError(f"{file}: not JSON (line {error.lineno}, column {error.colno}: {error.msg}); {way_out}") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RequestError(f"{file}: not JSON that is read here ({reason}); {_SHAPE}") from None
    if not isinstance(loaded, list):
        raise RequestError(f"{file}: not a list but {_kind(loaded)}; {_SHAPE}")
    if not loaded:
        raise RequestError(f"{file}: an empty list; {_SHAPE}")
    return loaded


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read(file: Path) -> list[Record]:
    """Every record of a LLaVA-style JSON list. Raises RequestError that names the first faulty records and their count."""
    records: list[Record] = []
    faults: list[str] = []
    loaded = load_list(file)
    for number, record in enumerate(loaded):
        try:
            records.append(parse(number, record))
        except RecordError as fault:
            faults.append(f"record {number}: {fault}")
    if faults:
        share = f"{len(faults):,} of {len(loaded):,} records" if len(faults) > 1 else "one record"
        raise RequestError(f"{file}: {share} cannot be used: {listed(faults)}; mend or remove them (records are counted from 0)")
    return records
