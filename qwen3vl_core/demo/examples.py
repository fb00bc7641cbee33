"""A scene with its picture and its two captions, all from one seed."""

from __future__ import annotations

import random

from PIL import Image

from qwen3vl_core.demo.captions import long_caption, short_caption
from qwen3vl_core.demo.drawing import draw
from qwen3vl_core.demo.scenes import Scene, sample_split


def example(seed: int, split: str = "train") -> tuple[Scene, Image.Image, str, str]:
    """Scene, picture (SIZE x SIZE, RGB), long caption and short caption that belong to a seed. split: one of SPLITS."""
    rng = random.Random(seed)
    scene = sample_split(rng, split)
    return scene, draw(scene, rng.getrandbits(48)), long_caption(scene, rng), short_caption(scene, rng)
