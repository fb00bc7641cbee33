"""Options that limit the size of pictures and videos, shared by several commands; their values go to `data.media_limits`."""

from __future__ import annotations

from typing import Any

from qwen3vl_core.options.declare import option


def min_pixels(group: str, about: str = "") -> Any:
    return option(
        None, help=f"{about}Smallest area a picture is resized to; else the checkpoint's", unit="pixels", group=group, minimum=1024
    )


def max_pixels(group: str, about: str = "") -> Any:
    return option(
        None, help=f"{about}Largest area a picture is resized to; else the checkpoint's", unit="pixels", group=group, minimum=1024
    )


def video_fps(group: str, about: str = "") -> Any:
    return option(None, help=f"{about}Frames per second of video; else the checkpoint's", group=group, minimum=0.01, maximum=240.0)


def video_max_frames(group: str, about: str = "") -> Any:
    return option(None, help=f"{about}Largest number of frames of a video; else the checkpoint's", group=group, minimum=1)


def video_max_pixels(group: str, about: str = "") -> Any:
    text = f"{about}Largest area of all frames of a video together; else the checkpoint's"
    return option(None, help=text, unit="pixels", group=group, minimum=1024)


def max_visual_tokens(group: str, about: str = "") -> Any:
    text = f"{about}Most tokens of a sample's pictures and videos, which are scaled down to fit; else no limit"
    return option(None, help=text, unit="tokens", group=group, minimum=1)
