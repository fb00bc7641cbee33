"""Pictures and videos as records give them: names, data URLs, base64, bytes, objects with a path. Imports no torch."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.data.records import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Medium, cut, media_name, suffix

VIDEO_OPTIONS = {
    "fps": "fps", "sample_fps": "fps", "raw_fps": "fps",
    "nframes": "nframes", "num_frames": "nframes", "min_frames": "min_frames", "max_frames": "max_frames",
    "video_start": "start", "start": "start", "start_time": "start", "video_end": "end", "end": "end", "end_time": "end",
    "total_pixels": "max_pixels",
}  # fmt: skip
"""Key beside a video -> what it is called in a shard: frames a second, frames, seconds, pixels of all frames.

For frames that are pictures already, `fps` is the rate they were taken at.
"""
_COUNTS = ("nframes", "min_frames", "max_frames", "max_pixels")
REFUSED_OPTIONS = {
    "min_pixels": "give --min-pixels to the run", "max_pixels": "give --max-pixels to the run",
    "resized_height": "resize the picture", "resized_width": "resize the picture",
}  # fmt: skip
RANGE: Any = b"range"
"""Key of an object that stands for a stretch of a file, as `byte_ranges` names it: no JSON has a key of bytes."""
_LABELS = {"type", "detail", "format", "mime_type", "id", "width", "height", "text", "duration"}
"""Keys of a picture's or video's object that change nothing."""
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "AAAA")
_LONG = 64


def medium(value: Any, what: str) -> str | Medium:
    """One picture or video. what: image or video. Raises DataError."""
    shown = "picture" if what == "image" else what
    if type(value) is str:
        if value[:5].lower() == "data:":
            return Medium(_data_url(value, shown))
        if len(value) >= _LONG and value.startswith(_BASE64) and "." not in value[:_LONG]:
            return Medium(_decoded(value, shown))
        return media_name(value, what)
    if isinstance(value, bytes):
        if not value:
            raise DataError("media-empty", what=shown)
        return Medium(value)
    if isinstance(value, dict):
        return Medium(value[RANGE]) if RANGE in value else _from_object(value, what)
    if isinstance(value, list) and what == "video":
        return _frames(value)
    raise DataError("record-not-text", what=f"a {shown}'s name", found=kind_of(value))


def media(value: Any, what: str, tags: int) -> tuple[str | Medium, ...]:
    """All pictures or videos under a key. tags: how many the text has, by which a list of frames is told from a list of videos."""
    if value is None or value == "" or value == [] or value == {}:
        return ()
    if not isinstance(value, list):
        return (medium(value, what),)
    if what == "video" and tags != len(value) and all(isinstance(name, str) and _is_picture(name) for name in value):
        return (_frames(value),)
    return tuple([medium(each, what) for each in value])


def options_of(given: dict[str, Any], what: str) -> dict[str, Any]:
    """The options among the keys beside a video. Raises DataError for a value that makes no sense."""
    options: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key in REFUSED_OPTIONS:
            way = REFUSED_OPTIONS[key]
            if what == "video" and key == "max_pixels":
                way = "give total_pixels, the area of all its frames, or --video-max-pixels to the run"
            raise DataError("media-option", key=key, what=f"one {what}", way=way)
        name = VIDEO_OPTIONS.get(key)
        if name is None:
            continue
        number = value
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                number = None
        bad = isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number)
        if bad or number < 0 or (number == 0 and name != "start") or (name in _COUNTS and number != int(number)):
            kind = "a whole number above 0" if name in _COUNTS else "a number above 0" if name != "start" else "seconds from 0 on"
            raise DataError("option-value", key=key, value=cut(value), kind=kind)
        options[name] = int(number) if name in _COUNTS else float(number)
    if "start" in options and "end" in options and options["start"] >= options["end"]:
        raise DataError("video-times", start=options["start"], end=options["end"])
    return options


def with_options(video: str | Medium, options: dict[str, Any]) -> str | Medium:
    """The video with these options; its own ones win."""
    if not options:
        return video
    if isinstance(video, Medium):
        return Medium(video.content, options | video.options)
    return Medium(video, options)


def looks_like_media(value: Any) -> str | None:
    """`image`, `video` or `audio` for a value that names such files; None for anything else."""
    names = value if isinstance(value, list) and value else [value]
    first = names[0]
    if isinstance(first, dict):
        first = first.get("path") or ("x.png" if isinstance(first.get("bytes"), bytes) else None)
    if isinstance(first, bytes) or (isinstance(first, str) and first[:11].lower() == "data:image/"):
        return "image"
    if not isinstance(first, str) or "\n" in first or len(first) > 1000:
        return None
    ending = first.rpartition(".")[2].lower()
    if ending in PICTURE_SUFFIXES:
        return "image"
    return "video" if ending in VIDEO_SUFFIXES else "audio" if ending in ("wav", "mp3", "flac", "ogg", "m4a", "opus") else None


def _is_picture(name: str) -> bool:
    return suffix(name, PICTURE_SUFFIXES, "") != ""


def _frames(names: list[Any]) -> Medium:
    if not names:
        raise DataError("media-empty", what="video")
    frames = []
    for name in names:
        frame = medium(name, "image")
        content = frame.content if isinstance(frame, Medium) else frame
        assert not isinstance(content, tuple)
        frames.append(content)
    return Medium(tuple(frames))


def _from_object(value: dict[str, Any], what: str) -> str | Medium:
    """{"bytes", "path"} as Hugging Face's datasets store it, {"url"}, {"path"}, and options of a video."""
    shown = "picture" if what == "image" else what
    keys = [key for key in ("bytes", "path", "url", what, f"{what}_url", "file", "file_name", "data") if value.get(key) is not None]
    if not keys:
        raise DataError("media-object", what=shown, keys=cut(", ".join(map(str, value))))
    main = keys[0]
    if main == "bytes":
        # the path beside bytes is where they came from
        keys = [key for key in keys if key != "path"]
    if len(keys) > 1:
        raise DataError("record-has-both", f"a {shown}", first=keys[0], second=keys[1])
    others = {key: each for key, each in value.items() if key not in (main, "path", "bytes") and each is not None}
    options = options_of(others, shown)
    unknown = [key for key in others if key not in _LABELS and not (what == "video" and key in VIDEO_OPTIONS)]
    if unknown:
        raise DataError("media-object-key", what=shown, key=cut(unknown[0]))
    result = medium(value[main], what)
    return with_options(result, options) if what == "video" else result


def _data_url(text: str, what: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise DataError("data-url", what=what, found=cut(head)[:40])
    return _decoded(body, what)


def _decoded(text: str, what: str) -> bytes:
    try:
        try:
            content = binascii.a2b_base64(text, strict_mode=True)
        except ValueError:
            # line breaks within, the padding left away, the alphabet of addresses
            text = "".join(text.split())
            alphabet = b"-_" if "-" in text or "_" in text else None
            content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=alphabet, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("media-base64", what=what, characters=len(text)) from None
    if not content:
        raise DataError("media-empty", what=what)
    return content
