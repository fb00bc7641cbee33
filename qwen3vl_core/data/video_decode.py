"""Decodes frames of a video file with PyAV: seeks where the frames are far apart, streams where they are close. Imports no torch.

A frame's number is its index in presentation order, from the timestamps of the packets: seeking and streaming give the
same frames, also with a variable frame rate.
"""

from __future__ import annotations

import contextlib
import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from qwen3vl_core import limits
from qwen3vl_core.data.errors import DataError, media_errors

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,m4v"
"""Containers that are opened. FFmpeg reads more, among them playlists, which open further files."""
SEEK_GAIN = 4
"""Frames that a seek must save to be worth emptying the decoder."""
_MISSING_AT_END = 0.1
"""Share of the frames by which a header may overcount: the last decoded frame takes the place of the missing ones."""


@dataclass(frozen=True)
class VideoHeader:
    """Metadata of a container's first video stream."""

    frames: int
    fps: float
    height: int
    width: int


def video_errors(what: str) -> contextlib.AbstractContextManager[None]:
    """`media_errors` of FFmpeg and PyAV, which raises subclasses of OSError, ValueError, EOFError, MemoryError and more."""
    return media_errors(what, _video_error)


def _video_error(error: Exception) -> DataError:
    return DataError("video-unreadable", reason=getattr(error, "strerror", None) or str(error) or type(error).__name__)


@contextlib.contextmanager
def _opened(data: bytes | BinaryIO) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream), decoded without threads. Raises DataError without a stream that can be decoded, and what PyAV
    raises."""
    import av

    av.logging.set_level(None)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    # before 19 PyAV refuses a file whose title is not UTF-8
    tolerant: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".", 1)[0]) < 19 else {}
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else data, options=options, **tolerant) as container:
        if not container.streams.video:
            raise DataError("video-without-stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DataError("video-codec")
        stream.codec_context.thread_count = 1
        yield container, stream


def header(data: bytes | BinaryIO, what: str) -> VideoHeader:
    """Frames, rate and size, without decoding. Raises DataError; `what` names the video in it."""
    with video_errors(what), _opened(data) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        metadata = VideoHeader(int(count), float(rate or 0), stream.codec_context.height, stream.codec_context.width)
        frames, fps, height, width = metadata.frames, metadata.fps, metadata.height, metadata.width
        if not 1 <= frames <= limits.VIDEO_FRAMES or not 1e-3 <= fps <= 1e5 or min(height, width) < 1:
            raise DataError("video-header", frames=frames, width=width, height=height, fps=fps)
        if height * width > limits.PICTURE_PIXELS:
            raise DataError("video-too-large", width=width, height=height)
        return metadata


def check_length(data: bytes, what: str) -> None:
    """Raises DataError when a file ends long before its header says: it was cut off. Reads packets, decodes nothing."""
    with video_errors(what), _opened(data) as (container, stream):
        count, end = 0, 0.0
        for packet in container.demux(stream):
            if packet.size:
                count += 1
                time = packet.pts if packet.pts is not None else packet.dts
                if time is not None:
                    end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
        # the start of some streams is not 0
        start = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
        stated = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        if count < (1 - _MISSING_AT_END) * (stream.frames or 0):
            raise DataError("video-cut-off-packets", found=count, stated=stream.frames, what="frames")
        # one frame may be all of a short video
        if end and stated and end - start < (1 - _MISSING_AT_END) * stated - 1.0:
            raise DataError("video-cut-off-packets", found=round(end - start, 1), stated=round(stated, 1), what="seconds")


def frames(data: bytes, requested: np.ndarray, what: str) -> list[np.ndarray]:
    """The frames with these numbers, uint8 [h, w, 3] upright RGB each; a repeated number gives the same object.

    requested: ascending. Raises DataError; `what` names the video in it.
    """
    numbers = sorted({int(number) for number in requested})
    with video_errors(what):
        with _opened(data) as (container, stream):
            times, keys = _times(container, stream)
        decoded: dict[int, np.ndarray] = {}
        missing = numbers
        # opened again, as not every container can be rewound; a second time without key frames, streamed to the end
        for usable in [keys, []] if keys else [[]]:
            with _opened(data) as (container, stream):
                decoded |= _walk(container, stream, missing, times, usable)
            missing = [number for number in numbers if number not in decoded]
            if not missing:
                break
        if missing:
            # headers overcount by a few frames; a truncated video lacks many
            if not decoded or numbers[-1] - missing[0] >= max(1, _MISSING_AT_END * (numbers[-1] + 1)):
                raise DataError("video-cut-off", decoded=len(decoded), frames=len(numbers))
            decoded |= dict.fromkeys(missing, decoded[max(decoded)])
        return [decoded[int(number)] for number in requested]


def _times(container: Any, stream: Any) -> tuple[list[int] | None, list[int]]:
    """(timestamps in presentation order, numbers of the key frames); (None, []) where timestamps are missing or repeated."""
    entries = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size and not packet.is_discard]
    if not entries or any(time is None for time, _ in entries) or len({time for time, _ in entries}) < len(entries):
        return None, []
    entries.sort()
    return [time for time, _ in entries], [number for number, (_, key) in enumerate(entries) if key]


def _walk(container: Any, stream: Any, numbers: list[int], times: list[int] | None, keys: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, pixels) of the frames; frames that cannot be decoded are skipped."""
    if times is None:
        requested = set(numbers)
        for number, frame in enumerate(container.decode(stream)):
            if number in requested:
                yield number, _pixels(frame)
            if number >= numbers[-1]:
                return
        return
    number_of = {time: number for number, time in enumerate(times)}
    pending = [number for number in numbers if number < len(times)]
    at = 0
    while pending:
        sought = _key_before(keys, pending[0]) if _key_before(keys, pending[0]) > at + SEEK_GAIN else None
        if sought is not None:
            container.seek(times[sought], stream=stream)
        reached = False
        for frame in container.decode(stream):
            at = number_of.get(frame.pts, at)
            if sought is not None and at > sought:
                # the container's index seeks past the key frame
                return
            if sought is not None and at < sought:
                # in a truncated file the index seeks back again and again: stream from here
                keys = []
            sought, reached = None, True
            pixels = None
            while pending and pending[0] <= at:
                # the next frame takes the place of one that the decoder dropped
                pixels = _pixels(frame) if pixels is None else pixels
                yield pending.pop(0), pixels
            at += 1
            if not pending or _key_before(keys, pending[0]) > at + SEEK_GAIN:
                break
        if not reached:
            return


def _key_before(keys: list[int], number: int) -> int:
    """The last key frame up to `number`; -1 without one."""
    place = bisect_right(keys, number)
    return keys[place - 1] if place else -1


def _pixels(frame: Any) -> np.ndarray:
    """uint8 [h, w, 3] upright."""
    if frame.width * frame.height > limits.PICTURE_PIXELS:
        raise DataError("video-too-large", width=frame.width, height=frame.height)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
