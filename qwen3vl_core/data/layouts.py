"""Records of any common layout to SourceRecord; every key is used, known to change nothing, named in a note, or refused.

The layouts are listed in docs/data.md. Imports no torch.
"""

from __future__ import annotations

from typing import Any

from qwen3vl_core.data import grounding, media_tags, media_values, plain_records
from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.data.media_tags import CAPTION_PROMPT
from qwen3vl_core.data.records import UNUSED_KEY, Extras, Note, SourceRecord, cut, text_of
from qwen3vl_core.data.turns import Turns, json_of, media_key, read_tools, read_turns, thought

CONVERSATIONS = ("conversations", "messages", "conversation", "dialog", "dialogue")
_ANSWERS = ("response", "output", "completion", "answer")
_SINGLE = (
    # (question, its second part, answer)
    ("query", None, "response"),
    ("instruction", "input", "output"),
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("instruction", None, "response"),
    ("question", None, "answer"),
    ("question", None, "answers"),
    ("problem", None, "answer"),
    ("problem", None, "solution"),
    ("prefix", None, "suffix"),
    ("input", None, "output"),
)
CAPTIONS = ("caption", "captions", "text", "description")
_PREFERENCES = (
    "chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "kto_tag", "chosen_response", "response_chosen",
    "response_rejected", "chosen_messages", "preference", "positive", "negative",
)  # fmt: skip
HARMLESS = {
    "id", "idx", "index", "uid", "uuid", "source", "dataset", "data_source", "dataset_name", "width", "height",
    "image_width", "image_height", "video_id", "ann_id", "annotation_id", "__index_level_0__",
    "width_list", "height_list", "license", "url", "split", "task", "task_type", "category", "lang", "language", "model",
    "meta", "metadata", "similarity",
    "question_id", "image_id", "sample_id", "num_turns", "n_turns", "date", "created_at", "hash", "md5", "sha256", "key",
    "parallel_tool_calls", "type", "origin", "domain", "subset", "blip_caption", "punsafe", "pwatermark", "status", "error_message", "exif",
    "original_width", "original_height", "__key__", "__url__", "aesthetic", "", "Unnamed: 0",
}  # fmt: skip
"""Keys that say where a record comes from, and change nothing of what is trained."""
_RATES = {"loss", "weight", "sample_weight", "loss_weight", "train", "loss_mask", "learn"}
_UNREAD = {
    "frames": "give the frames as videos: [[a.jpg, b.jpg]]",
    "chat_template_kwargs": "the template is applied as the model's own; remove it",
    "enable_thinking": "the template is applied as the model's own; remove it",
    "loss_scale": "write loss: true or false in the turns",
    "mask_history": "write loss: false in the turns that are not to be learnt",
}
_THINKING = ("reasoning_content", "reasoning", "thinking", "thought", "think", "complex_cot")


def parse(number: int, record: dict[str, Any]) -> SourceRecord:
    """One record, checked. Raises DataError that names the violated rule."""
    plain = plain_records.read(number, record)
    if plain is not None:
        return plain
    fields = {key: value for key, value in record.items() if value is not None}
    for key in fields:
        if type(key) is not str:
            raise DataError("record-not-text", what="a key", found=kind_of(key))
    _refuse_preferences(fields)
    record_id = fields.pop("id", None)
    turns = _conversation(fields)
    pictures, videos = media_tags.read(fields, turns)
    extras, notes = None, turns.notes
    text = "".join([text for _, text in turns.turns if type(text) is str])
    if fields or turns.fields or grounding.LABEL_TAG in text or grounding.BOX_TAG in text:
        tools = _tools(fields)
        _thinking(fields, turns)
        boxes = grounding.read(fields.pop("objects", None), [text for _, text in turns.turns])
        if turns.fields or tools or boxes:
            extras = Extras(turns.fields, tools, boxes)
        notes = notes + _other_keys(fields, bool(pictures), bool(videos))
    return media_tags.checked(number, record_id, turns, pictures, videos, extras, notes, marked="<" in text)


def style_of(record: Any) -> str:
    """What the layout of a record is called."""
    if not isinstance(record, dict):
        return "LLaVA"
    if any(record.get(key) is not None for key in ("images", "videos", "messages")) and any(key in record for key in CONVERSATIONS):
        return "ShareGPT"
    if any(key in record for key in CONVERSATIONS):
        return "LLaVA"
    for question, _, answer in _SINGLE:
        if question in record and answer in record:
            return f"{question} and {answer}"
    return (
        "captions" if any(key in record for key in CAPTIONS) and any(media_key(key) for key in record if isinstance(key, str)) else "LLaVA"
    )


def _refuse_preferences(fields: dict[str, Any]) -> None:
    for key in _PREFERENCES:
        if fields.get(key) not in (None, "", [], {}):
            raise DataError("record-preference", key=key)
    if isinstance(fields.get("label"), bool):
        raise DataError("record-rating")


def _conversation(fields: dict[str, Any]) -> Turns:
    """The turns of a record, whichever layout it has; what is read is removed from `fields`."""
    keys = [key for key in CONVERSATIONS if key in fields]
    if len(keys) > 1:
        raise DataError("record-has-both", first=keys[0], second=keys[1])
    if keys:
        conversation = fields.pop(keys[0])
        if isinstance(conversation, dict) and conversation and all(isinstance(value, list) for value in conversation.values()):
            # a table keeps a list of objects as an object of lists
            columns = list(conversation.values())
            conversation = [dict(zip(conversation, row, strict=False)) for row in zip(*columns, strict=False)]
        elif isinstance(conversation, str) and conversation[:1] == "[":
            conversation = json_of(conversation, keys[0])
        turns = read_turns(conversation, keys[0])
    elif isinstance(fields.get("texts"), list):
        # the Cauldron's: [{user, assistant, source}]
        pairs = [{k: v for k, v in pair.items() if k != "source"} if isinstance(pair, dict) else pair for pair in fields.pop("texts")]
        turns = read_turns(pairs, "texts")
    else:
        turns = _single(fields)
    system = fields.pop("system", None) or fields.pop("system_prompt", None)
    if system:
        if turns.turns[0][0] == "system":
            raise DataError("record-has-both", first="system", second="a system turn")
        turns.turns.insert(0, ("system", text_of(system, "system")))
        turns.fields = {place + 1: value for place, value in turns.fields.items()}
    return turns


def _single(fields: dict[str, Any]) -> Turns:
    """A question and its answer, after the history; a prompt and its completion; a picture and its caption."""
    for question, more, answer in _SINGLE:
        if answer not in fields or question not in fields:
            continue
        asked, answered = fields.pop(question), fields.pop(answer)
        if question == "question" and isinstance(answered, list):
            answered = _only_answer(answered)
        if isinstance(asked, list) or isinstance(answered, list):
            # TRL's: both are lists of messages
            if not isinstance(answered, list):
                answered = [{"role": "assistant", "content": answered}]
            if not isinstance(asked, list):
                asked = [{"role": "user", "content": asked}]
            return _completion(read_turns([*asked, *answered], question), len(asked))
        asked = text_of(asked, question)
        second = text_of(fields.pop(more, ""), more) if more else ""
        history = fields.pop("history", None) or []
        conversation: list[dict[str, Any]] = []
        if not isinstance(history, list):
            raise DataError("record-shape", what="history", kind="a list of [question, answer]", found=kind_of(history))
        for place, pair in enumerate(history):
            if isinstance(pair, dict):
                conversation.append(pair)
                continue
            if not isinstance(pair, list) or len(pair) != 2:
                raise DataError("record-shape", what=f"history {place}", kind="[question, answer]", found=cut(pair))
            conversation += [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]
        joined = f"{asked}\n{second}" if asked and second else asked or second
        return read_turns([*conversation, {"from": "human", "value": joined}, {"from": "gpt", "value": answered}], answer)
    captions = [key for key in CAPTIONS if key in fields]
    pictured = any(media_key(key) in ("image", "video") or key in media_tags.FILE_KEYS for key in fields)
    if not captions and pictured and "title" in fields:
        captions = ["title"]
    if not captions:
        answers = [key for key in _ANSWERS if key in fields]
        if answers == ["response"]:
            return read_turns([{"from": "gpt", "value": fields.pop("response")}], "response")
        known = ", ".join(cut(key)[:30] for key in list(fields)[:8])
        raise DataError("no-layout", keys=known or "none")
    if not pictured:
        raise DataError("caption-without-picture", key=captions[0])
    if len(captions) > 1:
        raise DataError(
            "captions-several", captions=f"{captions[0]} and {captions[1]}", way="name the one to learn by --columns caption=KEY"
        )
    caption = fields.pop(captions[0])
    if isinstance(caption, list):
        if len(caption) != 1:
            raise DataError("captions-several", captions=f"{len(caption)} captions for one picture", way="write one record for each")
        caption = caption[0]
    return read_turns([{"from": "human", "value": CAPTION_PROMPT}, {"from": "gpt", "value": caption}], captions[0])


def _only_answer(answers: list[Any]) -> Any:
    """The answer of a list of equal ones, as several people give them. Raises DataError for different ones."""
    different = list(dict.fromkeys(cut(answer) for answer in answers))
    if len(different) > 1:
        way = "write the one to learn as answer, or one record for each"
        raise DataError("captions-several", captions=f"{len(answers)} answers to one question ({', '.join(different[:3])})", way=way)
    return answers[0] if answers else ""


def _completion(turns: Turns, asked: int) -> Turns:
    """Answers in the prompt are not trained: only the completion is."""
    for place in range(min(asked, len(turns.turns))):
        if turns.turns[place][0] == "assistant":
            turns.fields.setdefault(place, {})["loss"] = False
    return turns


def _tools(fields: dict[str, Any]) -> list[Any] | None:
    tools = read_tools(fields.pop("tools", None))
    functions = read_tools(fields.pop("functions", None))
    if tools and functions:
        raise DataError("record-has-both", first="tools", second="functions")
    return tools or functions


def _thinking(fields: dict[str, Any], turns: Turns) -> None:
    """Thinking beside the conversation goes in front of its only answer."""
    for key in [key for key in fields if key.lower() in _THINKING]:
        value = fields.pop(key)
        if value in ("", False, True):
            continue
        answers = [place for place, (role, _) in enumerate(turns.turns) if role == "assistant"]
        text = turns.turns[answers[-1]][1]
        if len(answers) != 1 or not isinstance(text, str) or "<think>" in text:
            raise DataError("thinking-misplaced", key=key, beside=f"{len(answers)} answers")
        turns.turns[answers[0]] = ("assistant", thought(text_of(value, key), text))


def _other_keys(fields: dict[str, Any], pictures: bool, videos: bool) -> list[Note]:
    """Notes on the keys that nothing has read. Raises DataError for those that matter."""
    notes: list[Note] = []
    for key, value in fields.items():
        if key in HARMLESS or value in ("", [], {}):
            continue
        if key in _UNREAD:
            raise DataError("key-refused", key=key, way=_UNREAD[key])
        if key in _RATES and value is not True and value != 1:
            raise DataError("record-weight", key=key, value=cut(value))
        if media_key(key) == "audio":
            raise DataError("record-key-not-read", key=cut(key))
        kind = media_values.looks_like_media(value)
        if kind and not (pictures if kind == "image" else videos if kind == "video" else False):
            way = f"name it by --columns {kind}={cut(key)}" if kind != "audio" else "text, images and videos are read"
            raise DataError("key-names-media", key=cut(key), kind=kind, way=way)
        notes.append((UNUSED_KEY, cut(key)))
    return notes
