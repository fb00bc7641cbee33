"""How even data-parallel ranks are: the rank with the most patches and tokens over the mean, in the order drawn and as dealt.

    python benchmarks/even_ranks.py          # a table, as in docs/data.md

The set is made here from sizes as public mixtures have them, no pixel is needed: a fifth text alone, photographs of COCO's sizes,
documents and screenshots of up to 1700x2200, several pictures a sample, clips of 5 to 60 s at 2 frames a second. Patches and
tokens follow from the same rules as in training, at the limits given below.
"""

from __future__ import annotations

import time

import numpy as np

from qwen3vl_core.data.balance import even
from qwen3vl_core.data.pictures import PictureRules, token_count
from qwen3vl_core.data.video import VideoRules, plan
from qwen3vl_core.data.video_decode import VideoHeader

BATCHES, SEQ_LENGTH = 100, 16384
LAYOUTS = ((64, 8, 1), (64, 8, 4), (256, 8, 1), (256, 32, 2), (512, 64, 1), (1024, 64, 4), (16, 8, 1))
"""Global batch size, ranks, micro batch size."""
PHOTOGRAPHS = ((640, 480), (480, 640), (640, 427), (500, 375), (612, 612), (1024, 768))
SHARES = {"text": 0.2, "photograph": 0.45, "document": 0.15, "several": 0.1, "video": 0.1}


def mixed(count: int, seed: int = 0) -> np.ndarray:
    """int64 [count, 2]: patches and tokens of each sample."""
    random = np.random.RandomState(seed)
    rules, clips = PictureRules(max_pixels=4_194_304), VideoRules(max_pixels=64 * 480 * 864)
    sizes: list[tuple[int, int]] = []
    while len(sizes) < count:
        kind = random.choice(list(SHARES), p=list(SHARES.values()))
        text, pictures, seen = int(min(random.lognormal(4.8, 0.9), 4000)), [], 0
        if kind in ("photograph", "several"):
            chosen = random.randint(len(PHOTOGRAPHS), size=1 if kind == "photograph" else random.randint(2, 6))
            pictures = [PHOTOGRAPHS[number] for number in chosen]
        elif kind == "document":
            pictures = [(random.randint(600, 1701), random.randint(800, 2201))]
        elif kind == "video":
            video = plan(VideoHeader(int(30 * random.uniform(5, 60)), 30.0, 720, 1280), clips)
            seen = video.tokens * len(video.times)
        seen += sum(token_count(high, wide, rules) for wide, high in pictures)
        # those that are too long are left out by training, too
        if seen + text <= SEQ_LENGTH:
            sizes.append((4 * seen, seen + text))
    return np.array(sizes, dtype=np.int64)


def main() -> None:
    for batch, ranks, micro in LAYOUTS:
        sizes = mixed(batch * BATCHES).reshape(BATCHES, batch, 2)
        began = time.process_time()
        deals = [even(one, micro, ranks) for one in sizes]
        milliseconds = (time.process_time() - began) / BATCHES * 1e3
        drawn, dealt = (np.mean([getattr(deal.spread, name) for deal in deals], axis=0) for name in ("drawn", "dealt"))
        figures = " | ".join(f"{before:.2f} → {after:.2f}" for before, after in zip(drawn, dealt, strict=True))
        print(f"| {batch} | {ranks} | {micro} | {figures} |  {milliseconds:.1f} ms a global batch")


if __name__ == "__main__":
    main()
