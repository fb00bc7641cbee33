"""How large pictures and videos may become, as the commands' options say. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class MediaLimits:
    """Named as the options are; None: the checkpoint's own, and no cap."""

    min_pixels: int | None = None
    """Areas that a picture is resized into."""
    max_pixels: int | None = None
    video_fps: float | None = None
    """Frames taken of a second."""
    video_max_frames: int | None = None
    video_max_pixels: int | None = None
    """Area of all frames of a video together, after resizing."""
    max_visual_tokens: int | None = None
    """Of all pictures and videos of a sample; beyond it they are made smaller, all by the same factor."""

    def video_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The entries of a checkpoint's video config that change; the lower bounds give way to these upper ones."""
        changed: dict[str, Any] = {}
        if self.video_fps is not None:
            changed["fps"] = self.video_fps
        if self.video_max_frames is not None:
            changed["max_frames"] = self.video_max_frames
            changed["min_frames"] = min(int(config.get("min_frames") or 4), self.video_max_frames)
        if self.video_max_pixels is not None:
            changed["max_pixels"] = self.video_max_pixels
            least = config.get("min_pixels") or (config.get("size") or {}).get("shortest_edge")
            if isinstance(least, int):
                changed["min_pixels"] = min(least, self.video_max_pixels)
        return changed


def limits_of(options: Any) -> MediaLimits:
    """The limits among the options of a command."""
    return MediaLimits(**{each.name: getattr(options, each.name, None) for each in fields(MediaLimits)})
