"""Videos to patches and timestamps, with the semantics of Hugging Face's `Qwen3VLVideoProcessor`.

A video is planned from its header (frames, size, timestamps) and decoded later: packing and the token limit need no
pixels. Patches stay 8-bit, like those of pictures; each holds `temporal_patch_size` frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from qwen3vl_core.data import pictures, video_decode
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.pictures import CHANNELS, LARGEST_RATIO, PictureRules
from qwen3vl_core.data.video_decode import VideoHeader
from qwen3vl_core.errors import RequestError

CAPPED_TOKENS = 768
"""Default maximum of tokens per frame, for a checkpoint that asks for a cap without a value."""


@dataclass(frozen=True)
class VideoRules(PictureRules):
    """The settings of a checkpoint's `video_preprocessor_config.json`. Areas count the pixels of all frames after resizing."""

    fps: float = 2.0
    """Frames sampled per second."""
    min_frames: int = 4
    max_frames: int = 768
    frame_tokens: int | None = None
    """Maximum of tokens per frame; None: only the area of the whole video is limited."""

    @property
    def patch_bytes(self) -> int:
        """Values of one patch: channels x frames x height x width."""
        return CHANNELS * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str, min_pixels: int | None = None, max_pixels: int | None = None) -> VideoRules:
        """From a parsed `video_preprocessor_config.json`. Raises RequestError for invalid values."""
        base = PictureRules.from_config(config, where, min_pixels, max_pixels)
        try:
            rules = cls(
                **asdict(base),
                fps=float(config.get("fps") or 2.0),
                min_frames=int(config.get("min_frames") or 4),
                max_frames=int(config.get("max_frames") or 768),
                frame_tokens=int(config.get("max_video_tokens") or CAPPED_TOKENS) if config.get("cap_pixels_per_frame") else None,
            )
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RequestError(f"{where}: {error}; take the file from the checkpoint itself") from None
        if not (0 < rules.fps < math.inf) or not 1 <= rules.min_frames <= rules.max_frames or rules.resample not in pictures.KERNELS:
            raise RequestError(f"{where}: fps, min_frames, max_frames or resample make no sense; take the file from the checkpoint itself")
        return rules


@dataclass(frozen=True)
class VideoPlan:
    """Frames, size and timestamps of a video, computed from its header."""

    frames: np.ndarray
    """int64: numbers of the frames to take, padded to whole temporal patches by repeating the last one."""
    height: int
    width: int
    """Of the frames after resizing."""
    times: list[float]
    """Seconds, in the middle of each temporal patch."""
    tokens: int
    """Of one temporal patch."""


def sampled_frames(header: VideoHeader, rules: VideoRules, sampling: Mapping[str, float] = MappingProxyType({})) -> np.ndarray:
    """int64: numbers of the sampled frames, evenly spaced. Raises DataError when `start` lies behind the end.

    sampling: of this video alone: `fps`, `min_frames`, `max_frames` in place of the rules'; `nframes` frames, whatever the rate;
    only the frames from `start` to `end` seconds.
    Source: `Qwen3VLVideoProcessor.sample_frames`; `start` and `end` as `fetch_video` of qwen-vl-utils reads them.
    """
    first, last = 0, header.frames - 1
    if sampling:
        first = math.ceil(sampling.get("start", 0) * header.fps)
        last = min(last, math.floor(sampling.get("end", math.inf) * header.fps)) if "end" in sampling else last
        if first > last:
            raise DataError("video-start", start=sampling.get("start", 0), seconds=header.frames / header.fps)
    total = last - first + 1
    least, most = int(sampling.get("min_frames", rules.min_frames)), int(sampling.get("max_frames", rules.max_frames))
    count = int(total / header.fps * sampling.get("fps", rules.fps))
    count = int(sampling["nframes"]) if "nframes" in sampling else min(max(count, least), most)
    return np.linspace(first, last, min(count, total)).round().astype(np.int64)


def smart_resize(frames: int, height: int, width: int, rules: VideoRules) -> tuple[int, int]:
    """(height, width) to resize the frames of a video to. Raises DataError for extreme proportions.

    Source: `smart_resize` and `resize` of transformers' `video_processing_qwen3_vl`.
    """
    factor, temporal, largest = rules.factor, rules.temporal_patch_size, rules.max_pixels
    if rules.frame_tokens is not None:
        largest = max(min(rules.frame_tokens * factor**2, largest // frames), int(rules.min_pixels * 1.05)) * frames
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > LARGEST_RATIO:
        raise DataError("video-proportions", width=width, height=height, ratio=LARGEST_RATIO)
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    area = round(frames / temporal) * temporal * high * wide
    if area > largest:
        shrink = math.sqrt(frames * height * width / largest)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif area < rules.min_pixels:
        grow = math.sqrt(rules.min_pixels / (frames * height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


def plan(header: VideoHeader, rules: VideoRules, sampling: Mapping[str, float] = MappingProxyType({})) -> VideoPlan:
    """Frames, size and timestamps of a video. Raises DataError for extreme proportions.

    sampling: as for `sampled_frames`; also `max_pixels`, the area of all frames after resizing.
    A video of one frame is treated as a still video; Hugging Face rejects it.
    """
    frames = sampled_frames(header, rules, sampling)
    if "max_pixels" in sampling:
        largest = int(sampling["max_pixels"])
        rules = replace(rules, max_pixels=largest, min_pixels=min(rules.min_pixels, largest))
    counted = max(len(frames), rules.temporal_patch_size)
    high, wide = smart_resize(counted, header.height, header.width, rules)
    step = rules.temporal_patch_size
    frames = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % step)])
    seconds = [int(frame) / header.fps for frame in frames]
    times = [(seconds[i] + seconds[i + step - 1]) / 2 for i in range(0, len(seconds), step)]
    return VideoPlan(frames, high, wide, times, high * wide // rules.factor**2)


def placeholders(times: list[float], token: str, start: str, end: str) -> str:
    """The text of a video: a timestamp before each temporal patch's placeholder.

    Source: `Qwen3VLProcessor.replace_video_token` of transformers 5.
    """
    return "".join(f"<{time:.1f} seconds>{start}{token}{end}" for time in times)


def folder_header(first: bytes | BinaryIO, what: str, frames: int, fps: float) -> VideoHeader:
    """Header of a video stored as a list of pictures; `first` holds the first one's bytes. Raises DataError."""
    height, width = pictures.picture_size(first, what)
    pictures.check_proportions(height, width)
    return VideoHeader(frames, fps, height, width)


def decode(data: bytes, planned: VideoPlan, what: str) -> list[np.ndarray]:
    """The planned frames of a video file, uint8 [h, w, 3] each. Raises DataError."""
    return video_decode.frames(data, planned.frames, what)


def decode_folder(parts: list[bytes], planned: VideoPlan, names: list[str]) -> list[np.ndarray]:
    """The planned frames of a video that is a list of pictures, uint8 [h, w, 3] each. Raises DataError."""
    decoded: dict[int, np.ndarray] = {}
    for number in map(int, planned.frames):
        if number not in decoded:
            decoded[number] = np.asarray(pictures.decode(parts[number], names[number]))
    return [decoded[int(number)] for number in planned.frames]


def patches(frames: list[np.ndarray], planned: VideoPlan, rules: VideoRules) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Frames -> (uint8 [n, 3 * frames * patch * patch], grid (temporal patches, rows, columns) in patches).

    Patches come in merge order, one temporal patch after the other; values within a patch: channel, frame, row, column.
    """
    high, wide = planned.height, planned.width
    if (frames[0].shape[0] < frames[0].shape[1]) != (high < wide) and high != wide:
        # the header states the size before rotation
        high, wide = wide, high
    resized: dict[int, np.ndarray] = {}
    for frame in frames:
        # repeated frames are the same object
        if id(frame) not in resized:
            resized[id(frame)] = _resize(frame, high, wide, rules)
    step, patch, merge = rules.temporal_patch_size, rules.patch_size, rules.merge_size
    times, rows, columns = len(frames) // step, high // patch, wide // patch
    values = np.stack([resized[id(frame)] for frame in frames])
    # [t, f, rows/m, m, p, columns/m, m, p, 3] -> [t, rows/m, columns/m, m, m, 3, f, p, p]
    values = values.reshape(times, step, rows // merge, merge, patch, columns // merge, merge, patch, CHANNELS)
    ordered = np.ascontiguousarray(values.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7))
    return ordered.reshape(times * rows * columns, rules.patch_bytes), (times, rows, columns)


def _resize(frame: np.ndarray, high: int, wide: int, rules: VideoRules) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [high, wide, 3]"""
    if frame.shape[:2] == (high, wide):
        return frame
    # a picture's array is read-only, which torch warns about
    return pictures.resize(frame if frame.flags.writeable else frame.copy(), high, wide, rules.resample)
