"""Frames of a video file by PyAV: seeking where the frames lie far apart, streaming where they lie close. Imports no torch.

A frame's number is its place in presentation order, taken from the timestamps of the packets: seeking and streaming give
the same frames, whatever the frame rate does.
"""

from __future__ import annotations

import contextlib
import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3vl_core.data.errors import DataError

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,m4v"
"""What is opened. FFmpeg knows more, playlists among them, which open further files."""
LARGEST_FRAME = 89_478_485
"""Pixels of a frame; Pillow warns from there on."""
MOST_FRAMES = 1 << 24
SEEK_GAIN = 4
"""Frames that a seek must save to be worth emptying the decoder."""
_MISSING_AT_END = 0.1
"""Share of the frames that the header may count too many: then the last one stands for them."""


@dataclass(frozen=True)
class VideoHeader:
    """What a container says of its first video stream."""

    frames: int
    fps: float
    height: int
    width: int


@contextlib.contextmanager
def video_faults(what: str) -> Iterator[None]:
    """Turns whatever FFmpeg and PyAV raise into a DataError that names the video, `what`."""
    try:
        yield
    except DataError as error:
        if what in error.detail:
            raise
        raise DataError(error.reason, f"{what}: {error.detail}") from error
    except Exception as error:
        # PyAV raises subclasses of OSError, ValueError, EOFError, MemoryError and more
        raise DataError("broken_video", f"{what}: {getattr(error, 'strerror', None) or error or type(error).__name__}") from error


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream), without threads of its own. Raises what PyAV raises."""
    import av

    av.logging.set_level(None)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    with av.open(io.BytesIO(data), options=options, metadata_errors="replace") as container:
        if not container.streams.video:
            raise DataError("broken_video", "no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield container, stream


def header(data: bytes, what: str) -> VideoHeader:
    """Frames, rate and size, without decoding. Raises DataError; `what` names the video in it."""
    with video_faults(what), _opened(data) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        found = VideoHeader(int(count), float(rate or 0), stream.codec_context.height, stream.codec_context.width)
        if not 1 <= found.frames <= MOST_FRAMES or not 1e-3 <= found.fps <= 1e5 or min(found.height, found.width) < 1:
            raise DataError("broken_video", f"{found.frames} frames of {found.width}x{found.height} at {found.fps:g} a second")
        if found.height * found.width > LARGEST_FRAME:
            raise DataError("extreme_video", f"frames of {found.width}x{found.height}")
        return found


def frames(data: bytes, wanted: np.ndarray, what: str) -> list[np.ndarray]:
    """The frames with these numbers, uint8 [h, w, 3] upright RGB each; a number that comes twice is the same object.

    wanted: ascending. Raises DataError; `what` names the video in it.
    """
    numbers = sorted({int(number) for number in wanted})
    with video_faults(what):
        with _opened(data) as (container, stream):
            times, keys = _times(container, stream)
        found: dict[int, np.ndarray] = {}
        missing = numbers
        # opened again: not every container goes back to its beginning; without keys it is streamed to the end
        for usable in [keys, []] if keys else [[]]:
            with _opened(data) as (container, stream):
                found |= _walk(container, stream, missing, times, usable)
            missing = [number for number in numbers if number not in found]
            if not missing:
                break
        if missing:
            # headers count a few frames more than there are; a video that is cut off lacks many
            if not found or numbers[-1] - missing[0] >= max(1, _MISSING_AT_END * (numbers[-1] + 1)):
                raise DataError("broken_video", f"cut off: {len(found)} of {len(numbers)} frames can be decoded")
            found |= dict.fromkeys(missing, found[max(found)])
        return [found[int(number)] for number in wanted]


def _times(container: Any, stream: Any) -> tuple[list[int] | None, list[int]]:
    """(timestamps in presentation order, numbers of the frames that can be sought); (None, []) where they are not all known."""
    entries = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size and not packet.is_discard]
    if not entries or any(time is None for time, _ in entries) or len({time for time, _ in entries}) < len(entries):
        return None, []
    entries.sort()
    return [time for time, _ in entries], [number for number, (_, key) in enumerate(entries) if key]


def _walk(container: Any, stream: Any, numbers: list[int], times: list[int] | None, keys: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, pixels) of the frames; those that cannot be decoded are left out."""
    if times is None:
        wanted = set(numbers)
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                yield number, _pixels(frame)
            if number >= numbers[-1]:
                return
        return
    place = {time: number for number, time in enumerate(times)}
    pending = [number for number in numbers if number < len(times)]
    at = 0
    while pending:
        sought = _key_before(keys, pending[0]) if _key_before(keys, pending[0]) > at + SEEK_GAIN else None
        if sought is not None:
            container.seek(times[sought], stream=stream)
        reached = False
        for frame in container.decode(stream):
            at = place.get(frame.pts, at)
            if sought is not None and at > sought:
                # the container's index leads too far
                return
            if sought is not None and at < sought:
                # the index leads back again and again in a file that is cut off: stream from here
                keys = []
            sought, reached = None, True
            pixels = None
            while pending and pending[0] <= at:
                # a frame that the decoder left out is stood in for by the next one
                pixels = _pixels(frame) if pixels is None else pixels
                yield pending.pop(0), pixels
            at += 1
            if not pending or _key_before(keys, pending[0]) > at + SEEK_GAIN:
                break
        if not reached:
            return


def _key_before(keys: list[int], number: int) -> int:
    """The last frame up to `number` that can be sought; -1 without one."""
    place = bisect_right(keys, number)
    return keys[place - 1] if place else -1


def _pixels(frame: Any) -> np.ndarray:
    """uint8 [h, w, 3] upright."""
    if frame.width * frame.height > LARGEST_FRAME:
        raise DataError("extreme_video", f"frames of {frame.width}x{frame.height}")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
