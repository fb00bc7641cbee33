"""Conversations of all layouts to turns of (role, content), with what stands beside the text. Imports no torch."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from typing import Any

from qwen3vl_core.data import media_values
from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.data.records import PICTURE, REMARK, TAG, UNUSED_KEY, VIDEO, VIDEO_TAG, Content, Medium, Note, cut, text_of

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system", "bot": "assistant",
    "model": "assistant", "chatgpt": "assistant", "developer": "system",
    "tool": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
    "tool_call": "call", "function_call": "call", "function": "tool",
}  # fmt: skip
"""Speaker -> role; `call` becomes an assistant's turn with tool calls."""
SPEAKERS = "human, user, gpt, assistant, system, tool"
_SPEAKER_KEYS, _TEXT_KEYS = ("from", "role"), ("value", "content")
_LOSS = ("loss", "weight", "train", "training", "trainable", "loss_mask", "learn")
"""Keys of a turn by which it is trained or not."""
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}
_LOSS_LIKE = re.compile(r"loss|train|mask|weight|ignore|learn|reject|chosen")
_THINKING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "think")
HARMLESS = {
    "id",
    "name",
    "tool_call_id",
    "timestamp",
    "index",
    "turn_id",
    "turn",
    "idx",
    "type",
    "refusal",
    "annotations",
    "function_call_id",
}
_PAIRS = (("human", "assistant"), ("user", "assistant"), ("question", "answer"), ("query", "response"), ("human", "gpt"))


@dataclass
class Turns:
    """The turns of a conversation, as far as they are read."""

    turns: list[tuple[str, Content]] = field(default_factory=list)
    fields: dict[int, dict[str, Any]] = field(default_factory=dict)
    """As in records.Extras."""
    media: list[tuple[str, str | Medium]] = field(default_factory=list)
    """(image or video, medium) of media within the turns, in order."""
    unnamed: dict[str, int] = field(default_factory=dict)
    """image or video -> parts without a source, which the record's own lists fill."""
    notes: list[Note] = field(default_factory=list)

    def add(self, role: str, content: Content, **fields: Any) -> None:
        if fields:
            self.fields[len(self.turns)] = fields
        self.turns.append((role, content))


def read_turns(conversation: Any, key: str) -> Turns:
    """The conversation of a record. Raises DataError that names the broken rule."""
    if not isinstance(conversation, list) or not conversation:
        raise DataError("not-a-conversation" if conversation else "no-conversation", key=key, found=kind_of(conversation))
    result = Turns()
    turns = result.turns
    for place, turn in enumerate(conversation):
        if type(turn) is dict and len(turn) == 2:
            # most turns of most data: nothing beside speaker and text
            role = ROLES.get(speaker) if type(speaker := turn.get("from", turn.get("role"))) is str else None
            text = turn.get("value", turn.get("content"))
            if type(text) is str and text.isascii() and ((role == "user") or (role == "assistant" and text and not text.isspace())):
                turns.append((role, text))
                continue
        _read_turn(result, place, turn)
    if not any(role == "assistant" for role, _ in turns):
        raise DataError("no-answer")
    if result.fields and not any(
        role == "assistant" and result.fields.get(place, {}).get("loss", True) for place, (role, _) in enumerate(turns)
    ):
        raise DataError("answers-untrained")
    return result


def _read_turn(result: Turns, place: int, turn: Any) -> None:
    where = f"turn {place}"
    if not isinstance(turn, dict):
        raise DataError("turn-not-an-object", where, found=kind_of(turn))
    turn = {key: value for key, value in turn.items() if value is not None}
    for question, answer in _PAIRS:
        if set(turn) == {question, answer}:
            result.add("user", text_of(turn[question], question, where))
            result.add("assistant", _answer(text_of(turn[answer], answer, where), where))
            return
    speaker_key = next((key for key in _SPEAKER_KEYS if key in turn), "from")
    text_key = next((key for key in _TEXT_KEYS if key in turn), "value")
    speaker = turn.pop(speaker_key, None)
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        speaker = text_of(speaker, speaker_key, where)
        raise DataError("unknown-role", where, key=speaker_key, role=cut(speaker), roles=SPEAKERS)
    if role == "system" and result.turns:
        raise DataError("system-turn-not-first", where)
    calls = _calls(turn, where) if role == "assistant" else []
    content = turn.pop(text_key, "" if calls else None)
    if role == "call":
        _add_calls(result, _call_list(content, where), place, _beside(turn, "assistant", where, result))
        return
    if role == "tool" and isinstance(content, (dict, list)) and not _is_parts(content):
        content = json.dumps(content, ensure_ascii=False)
    text = _content(result, content, turn, role, text_key, where)
    fields = _beside(turn, role, where, result)
    thinking = fields.pop("thinking", None)
    if thinking:
        if not isinstance(text, str) or "<think>" in text:
            raise DataError("record-has-both", where, first="thinking in the text", second="thinking beside it")
        text = thought(thinking, text)
    if role == "assistant":
        if calls:
            fields["tool_calls"] = calls
        else:
            _answer(text, where)
    result.add(role, text, **fields)


def thought(thinking: str, answer: str) -> str:
    """An answer with its thinking, as Qwen's thinking models write it."""
    return "<think>\n" + thinking.strip("\n") + "\n</think>\n\n" + answer.lstrip("\n")


def _answer(text: Content, where: str) -> Content:
    if not text or (isinstance(text, str) and text.isspace()):
        raise DataError("empty-answer", where)
    return text


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def _content(result: Turns, content: Any, turn: dict[str, Any], role: str, text_key: str, where: str) -> Content:
    """Text, or pieces where parts name media; media beside the text of a turn are put in front of it."""
    if isinstance(content, list):
        text = _from_parts(result, content, role, where)
    elif isinstance(content, dict):
        text = _from_parts(result, [content], role, where)
    else:
        text = text_of(content, text_key, where)
    beside: list[str | int] = []
    for key in list(turn):
        what = media_key(key)
        if what not in ("image", "video"):
            continue
        tag = TAG if what == "image" else VIDEO_TAG
        tags = text.count(tag) if isinstance(text, str) else 0
        media = media_values.media(turn.pop(key), what, tags)
        if not media:
            continue
        if not isinstance(text, str) or result.unnamed:
            raise DataError("record-has-both", where, first="media as parts", second=f"media as {key}")
        if tags not in (0, len(media)):
            raise DataError(
                "tags-differ", where, tags=f"{tags} {tag} tags", media=f"{len(media)} under {key}", way="give one name for each tag"
            )
        result.media += [(what, each) for each in media]
        if not tags:
            beside += [PICTURE if what == "image" else VIDEO] * len(media)
    if beside:
        if isinstance(text, str) and (TAG in text or VIDEO_TAG in text):
            raise DataError("record-has-both", where, first="media by tags", second="media beside the text")
        return (*beside, str(text)) if text else tuple(beside)
    return text


def _from_parts(result: Turns, parts: list[Any], role: str, where: str) -> Content:
    pieces: list[str | int] = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise DataError("record-shape", where, what=f"part {number}", kind="an object {type, …}", found=kind_of(part))
        part = {key: value for key, value in part.items() if value is not None}
        kind = part.get("type") or next((key for key in ("text", "image", "image_url", "video", "video_url") if key in part), None)
        what = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"}.get(str(kind))
        if kind in ("text", "input_text", "output_text"):
            text = text_of(part.get("text", part.get("content")), f"part {number}", where)
            others = [key for key in part if key not in ("type", "text", "content", "annotations", "id")]
            if any(part[key] for key in others):
                raise DataError("record-has-both", f"{where}: part {number}", first="text", second=cut(others[0]))
            if text and pieces and isinstance(pieces[-1], str):
                pieces[-1] += text
            elif text:
                pieces.append(text)
        elif kind in ("thinking", "reasoning") and role == "assistant":
            thinking = text_of(part.get(str(kind), part.get("text")), f"part {number}", where)
            if pieces:
                raise DataError("thinking-misplaced", f"{where}: part {number}", key=str(kind), beside="an answer that has begun")
            pieces.append(thought(thinking, ""))
        elif what is not None:
            if role in ("assistant", "system"):
                raise DataError("media-in-answer", where, what="picture" if what == "image" else what, role=role)
            body = {key: value for key, value in part.items() if key != "type"}
            for key in (f"{what}_url", what):
                if isinstance(body.get(key), dict) and media_values.RANGE not in body[key]:
                    body |= body.pop(key)
            if isinstance(source := body.get("source"), dict) and source.get("type") in ("base64", "url"):
                # Anthropic's: {"type": "base64", "media_type", "data"}, or {"type": "url", "url"}
                del body["source"]
                form = source.get("type")
                body |= {"url": f"data:{source.get('media_type')};base64,{source.get('data')}" if form == "base64" else source.get("url")}
            if set(body) & {"bytes", "path", "url", what, f"{what}_url", "file", "file_name", "data"}:
                result.media.append((what, media_values.medium(body, what)))
            else:
                if options := media_values.options_of(body, what):
                    raise DataError("media-object", f"{where}: part {number}", what=what, keys=next(iter(options)))
                result.unnamed[what] = result.unnamed.get(what, 0) + 1
                result.media.append((what, ""))
            pieces.append(PICTURE if what == "image" else VIDEO)
        else:
            raise DataError("part-type", f"{where}: part {number}", kind=cut(kind))
    if any(isinstance(piece, int) for piece in pieces):
        tag = next((tag for piece in pieces if isinstance(piece, str) for tag in (TAG, VIDEO_TAG) if tag in piece), None)
        if tag:
            raise DataError("record-has-both", where, first=f"{tag} in a text", second="parts that are media")
        return tuple(pieces)
    return "".join(str(piece) for piece in pieces)


def _beside(turn: dict[str, Any], role: str, where: str, result: Turns) -> dict[str, Any]:
    """What the other keys of a turn say: {"loss": False}, {"thinking": text}. Raises DataError for what cannot be followed."""
    fields: dict[str, Any] = {}
    for key, value in turn.items():
        if key in _LOSS:
            value = _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise DataError("loss-value", where, key=key, value=cut(value))
            if role != "assistant":
                if value:
                    result.notes.append((REMARK, f"{key}: true on turns that are not answers is not used"))
            elif not value:
                fields["loss"] = False
        elif key in _THINKING:
            if value not in ("", False, True):
                if role != "assistant":
                    raise DataError("thinking-misplaced", where, key=key, beside=f"a turn of the {role}")
                fields["thinking"] = text_of(value, key, where)
        elif media_key(key) == "audio" and value:
            raise DataError("record-key-not-read", where, key=cut(key))
        elif key not in HARMLESS and value not in ("", [], {}):
            if _LOSS_LIKE.search(key.lower()):
                raise DataError("loss-key", where, key=cut(key))
            if kind := media_values.looks_like_media(value):
                raise DataError("key-names-media", where, key=cut(key), kind=kind, way="put it under images or videos")
            result.notes.append((UNUSED_KEY, f"{cut(key)} of a turn"))
    return fields


def _calls(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The tool calls of an answer, as the chat template takes them."""
    calls = turn.pop("tool_calls", None) or []
    single = turn.pop("function_call", None)
    if single:
        calls = [*calls, single] if isinstance(calls, list) else calls
    if isinstance(calls, str):
        calls = json_of(calls, f"{where}: tool_calls")
    return _call_list(calls, where) if calls else []


def _call_list(calls: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(calls, str):
        calls = json_of(calls, f"{where}: a tool call")
    result = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, str):
            function = {"name": function, "arguments": call.get("arguments")}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError("record-shape", where, what="a tool call", kind="an object {name, arguments}", found=cut(call))
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str) and arguments.strip():
            arguments = json_of(arguments, f"{where}: the arguments of {cut(function['name'])}")
        name = text_of(function["name"], "a tool's name", where)
        result.append({"type": "function", "function": {"name": name, "arguments": encodable(arguments or {}, where)}})
    if not result:
        raise DataError("record-shape", where, what="a tool call", kind="an object {name, arguments}", found="nothing")
    return result


def _add_calls(result: Turns, calls: list[dict[str, Any]], place: int, fields: dict[str, Any]) -> None:
    """An answer's tool calls as a turn of their own: they end the answer before them."""
    if fields.pop("thinking", None):
        raise DataError("thinking-misplaced", f"turn {place}", key="thinking", beside="a tool call")
    last = len(result.turns) - 1
    if result.turns and result.turns[-1][0] == "assistant" and result.fields.get(last, {}).get("loss", True) == fields.get("loss", True):
        before = result.fields.setdefault(last, {})
        before["tool_calls"] = [*before.get("tool_calls", []), *calls]
        return
    result.add("assistant", "", **fields, tool_calls=calls)


def read_tools(value: Any) -> list[Any] | None:
    """The declarations of functions, from a list or its JSON. Raises DataError."""
    if value in (None, "", [], "[]"):
        return None
    tools = json_of(value, "tools") if isinstance(value, str) else value
    if not isinstance(tools, list) or not all(isinstance(tool, (dict, str)) for tool in tools):
        raise DataError("record-shape", what="tools", kind="a list of functions", found=kind_of(tools))
    tools = [json_of(tool, "tools") if isinstance(tool, str) else tool for tool in tools]
    # declarations without their wrapper are those of older formats
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    for tool in wrapped:
        if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
            raise DataError("record-shape", what="a tool", kind="{type: function, function: {name, …}}", found=cut(tool))
    return list(encodable(wrapped, "tools")) or None


def encodable(value: Any, where: str) -> Any:
    """`value` if JSON in UTF-8 can hold it. Raises DataError."""
    text_of(json.dumps(value, ensure_ascii=False, default=str), where)
    return value


def json_of(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError("record-shape", what=what, kind="JSON", found=repr(cut(text))) from None


_MEDIA_KEY = re.compile(
    r"(?:(?P<image>images?|imgs?|pictures?|pics?|photos?)|(?P<video>videos?|clips?)|(?P<audio>audios?|speech|sounds?|wavs?))"
    r"(?:paths?|files?|filenames?|filepaths?|names?|urls?|lists?|src|data|bytes)*"
)


@functools.lru_cache(maxsize=4096)
def media_key(key: str) -> str | None:
    """`image`, `video` or `audio` for a key that names media, however it is spelled; None for any other."""
    match = _MEDIA_KEY.fullmatch(re.sub(r"[-_ .]", "", key.lower()))
    return match.lastgroup if match else None
