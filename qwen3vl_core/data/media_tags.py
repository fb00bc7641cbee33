"""A record's pictures and videos, and the tags in its text that say where each stands. Raises DataError where they do not agree.

Imports no torch.
"""

from __future__ import annotations

import re
from typing import Any

from qwen3vl_core.data import media_values
from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.data.media_values import with_options
from qwen3vl_core.data.records import REMARK, TAG, VIDEO_TAG, Content, Extras, Medium, Note, SourceRecord, text_of
from qwen3vl_core.data.turns import Turns, media_key

FILE_KEYS = ("file_name", "filename", "filepath", "file_path", "path", "file")
"""Keys of a picture's or video's name in tables: Hugging Face's imagefolder, open_clip and others."""
CAPTION_PROMPT = "Describe this image."
"""The question for a picture with a caption; what `compare` asks by default, too."""
PUT_IN_FRONT = "pictures or videos without a tag, put in front of the first question"
_INLINE = re.compile(r"<img>([^<>\n]+)</img>")
_NUMBERED = re.compile(r"<\|?(?:image|img)[_ -]?([0-9]{1,3})\|?>")
_PLACEHOLDER = re.compile(
    r"<\|?\s*(?:image|img|picture|pic|video|frame)(?:[\s_-]*(?:[0-9]+|here|placeholder|token|pad|content|soft_token|x))?\s*\|?>|\[(?:IMG|IMAGE|VIDEO)\]",
    re.I,
)
_AUDIO = re.compile(r"<\|?audio[_a-z0-9 ]*\|?>", re.I)


def read(fields: dict[str, Any], turns: Turns) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(pictures, videos) in the order of their tags; what is read is removed from `fields`."""
    media: dict[str, tuple[Any, ...]] = {}
    for what, tag in (("image", TAG), ("video", VIDEO_TAG)):
        keys = [key for key in fields if media_key(key) == what and fields[key] not in ("", [], {})]
        if len(keys) > 1:
            # an address beside the file's name says where it came from
            local = [key for key in keys if not (isinstance(fields[key], str) and re.match(r"https?://", fields[key]))]
            keys = local or keys
        if len(keys) > 1:
            same = all(fields[key] == fields[keys[0]] for key in keys)
            if not same:
                raise DataError("record-has-both", first=keys[0], second=keys[1])
        for key in [key for key in fields if media_key(key) == what]:
            value = fields.pop(key)
            if what == "image" and isinstance(value, dict) and value and all(map(_NUMBERED.fullmatch, map(str, value))):
                # MiniCPM's: {<image_00>: a.jpg, …}, by the tags in the text
                value = _by_tag(value, turns)
            if keys and key == keys[0]:
                if key == what + "s" and not isinstance(value, (list, str, bytes, dict)):
                    raise DataError("names-not-a-list", key=key, found=kind_of(value))
                media[what] = media_values.media(value, what, _tags(turns.turns, tag))
    for key in FILE_KEYS if not media else ():
        kind = media_values.looks_like_media(fields[key]) if isinstance(fields.get(key), str) else None
        if kind in ("image", "video"):
            media[kind] = media_values.media(fields.pop(key), kind, 1)
            break
        if key == "file_name":
            fields.pop(key, None)
    return _pictures_and_videos(fields, turns, media.get("image", ()), media.get("video", ()))


def _by_tag(names: dict[str, Any], turns: Turns) -> list[Any]:
    """The pictures in the order of their own tags in the questions, which become plain ones."""
    media: list[Any] = []

    def tag(match: re.Match[str]) -> str:
        if match[0] not in names:
            return match[0]
        media.append(names[match[0]])
        return TAG

    for place, (role, text) in enumerate(turns.turns):
        if role == "user" and isinstance(text, str):
            turns.turns[place] = (role, _NUMBERED.sub(tag, text))
    if len(media) != len(names):
        raise DataError(
            "tags-differ",
            tags=_counted(len(media), "tag with a number"),
            media=_counted(len(names), "picture"),
            way="show each picture once",
        )
    return media


def _pictures_and_videos(
    fields: dict[str, Any], turns: Turns, pictures: tuple[Any, ...], videos: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    if turns.media:
        listed = {"image": pictures, "video": videos}
        unfilled = turns.unnamed
        for what, names in listed.items():
            if len(names) != unfilled.get(what, 0):
                shown = "picture" if what == "image" else what
                raise DataError("parts-differ", parts=unfilled.get(what, 0), what=shown, names=len(names))
        waiting = {what: iter(names) for what, names in listed.items()}
        filled = [(what, next(waiting[what]) if each == "" else each) for what, each in turns.media]
        pictures = tuple(each for what, each in filled if what == "image")
        videos = tuple(each for what, each in filled if what == "video")
    if not pictures and not videos and any("<img>" in text for role, text in turns.turns if role == "user" and type(text) is str):
        pictures = _inline(turns)
    options = {
        key: fields.pop(key) for key in list(fields) if key in media_values.VIDEO_OPTIONS and (videos or key not in ("start", "end"))
    }
    if options and videos:
        read = media_values.options_of(options, "video")
        if len(videos) > 1 and {"start", "end"} & set(read):
            raise DataError("times-of-several")
        videos = tuple(with_options(video, read) for video in videos)
    else:
        fields |= options
    for key in [key for key in fields if key in media_values.REFUSED_OPTIONS]:
        raise DataError("media-option", key=key, what="one record", way=media_values.REFUSED_OPTIONS[key])
    return pictures, videos


def _inline(turns: Turns) -> tuple[str | Medium, ...]:
    """Qwen-VL's own `<img>NAME</img>` in the questions."""
    names: list[str | Medium] = []

    def tag(match: re.Match[str]) -> str:
        names.append(media_values.medium(match[1].strip(), "image"))
        return TAG

    for place, (role, text) in enumerate(turns.turns):
        if role == "user" and isinstance(text, str) and "<img>" in text:
            if TAG in text or VIDEO_TAG in text:
                raise DataError("record-has-both", f"turn {place}", first="<img>NAME</img>", second=TAG)
            turns.turns[place] = (role, _INLINE.sub(tag, text))
    return tuple(names)


def _tags(turns: list[tuple[str, Content]], tag: str) -> int:
    return sum(text.count(tag) for role, text in turns if role in ("user", "tool") and type(text) is str)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def checked(
    number: int, record_id: Any, read: Turns, pictures: tuple[Any, ...], videos: tuple[Any, ...], extras: Extras | None,
    notes: list[Note], *, marked: bool,
) -> SourceRecord:  # fmt: skip
    """A record whose tags and media agree; media without any tag are put in front of the first question. Raises DataError.

    marked: whether any text holds `<`.
    """
    if type(record_id) in (dict, list, bool):
        raise DataError("id-not-text", found=kind_of(record_id))
    if record_id is not None and not (type(record_id) is str and record_id.isascii()):
        record_id = text_of(str(record_id), "id")
    conversation = read.turns
    if read.media:
        # parts name their media: tags are counted only to find those that nothing fills
        image_tags, video_tags = len(pictures), len(videos)
    elif not marked:
        image_tags = video_tags = 0
    else:
        image_tags, video_tags = _tags(conversation, TAG), _tags(conversation, VIDEO_TAG)
        if pictures and not image_tags:
            pictures, image_tags = _numbered(conversation, pictures)
        if videos and not pictures and not video_tags and image_tags:
            # public video datasets of the LLaVA family use the image tag for videos
            conversation = [
                (role, text.replace(TAG, VIDEO_TAG) if role == "user" and type(text) is str else text) for role, text in conversation
            ]
            image_tags, video_tags = 0, image_tags
    for tag, tags, media, what in ((TAG, image_tags, pictures, "picture"), (VIDEO_TAG, video_tags, videos, "video")):
        if tags != len(media) and (tags or not media):
            key = "images" if what == "picture" else "videos"
            way = (
                f"give one name for each tag under {key}, or remove {tag} from the text"
                if tags > len(media)
                else f"write {tag} where each stands"
            )
            raise DataError("tags-differ", tags=_counted(tags, f"{tag} tag"), media=_counted(len(media), what), way=way)
    if marked:
        notes = notes + _markup(conversation, bool(pictures or videos))
    if (pictures and not image_tags) or (videos and not video_tags):
        for place, (role, content) in enumerate(conversation if marked else ()):
            if type(content) is str and (TAG in content or VIDEO_TAG in content):
                raise DataError("media-in-answer", f"turn {place}", what="picture's or video's tag", role=role)
        front = TAG * (len(pictures) if not image_tags else 0) + VIDEO_TAG * (len(videos) if not video_tags else 0)
        conversation = _put_in_front(conversation, front)
        if read.turns and not (len(conversation) == 2 and conversation[0][1] == front + CAPTION_PROMPT):
            notes = [*notes, (REMARK, PUT_IN_FRONT)]
    return SourceRecord(number, record_id, tuple(conversation), pictures, videos, extras, tuple(notes))


def _put_in_front(turns: list[tuple[str, Content]], front: str) -> list[tuple[str, Content]]:
    for place, (role, text) in enumerate(turns):
        if role == "user" and isinstance(text, str):
            return [*turns[:place], (role, front + text), *turns[place + 1 :]]
    raise DataError("media-without-question")


def _numbered(turns: list[tuple[str, Content]], pictures: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
    """Tags with numbers, `<image_2>`, become plain ones, their pictures in the order of the text: (pictures, tags)."""
    numbers: list[int] = []
    for role, text in turns:
        if role == "user" and isinstance(text, str):
            numbers += map(int, _NUMBERED.findall(text))
    if not numbers:
        return pictures, 0
    if sorted(numbers) != list(range(1, len(pictures) + 1)):
        raise DataError("numbered-tags", numbers=numbers[:8], pictures=len(pictures))
    for place, (role, text) in enumerate(turns):
        if role == "user" and isinstance(text, str):
            turns[place] = (role, _NUMBERED.sub(TAG, text))
    return tuple(pictures[number - 1] for number in numbers), len(numbers)


def _markup(turns: list[tuple[str, Content]], has_media: bool) -> list[Note]:
    """Notes on markup that stays text. Raises DataError for a placeholder of another format beside media."""
    notes: list[Note] = []
    for place, (role, text) in enumerate(turns):
        if type(text) is not str or "<" not in text:
            continue
        for match in _PLACEHOLDER.finditer(text):
            if match[0] in (TAG, VIDEO_TAG) and role in ("user", "tool"):
                continue
            if has_media and role == "user":
                raise DataError("media-placeholder", f"turn {place}", found=match[0])
            notes.append((REMARK, f"{match[0]} stays text in a turn of the {role}"))
            break
        if audio := _AUDIO.search(text):
            notes.append((REMARK, f"{audio[0]} stays text in a turn of the {role}"))
    return notes
