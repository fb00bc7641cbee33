"""Small videos, conversations of every kind, and Hugging Face's real processor to compare with.

The video processor needs torchvision, which has no build beside a CPU torch: `python -m tests.data.videos` runs it in a
process of its own, where a stand-in with the few functions that it calls takes torchvision's place.
"""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.data import samples

# 500 are compared with QWEN3VL_CONVERSATIONS=500; that takes minutes
CONVERSATIONS = int(os.environ.get("QWEN3VL_CONVERSATIONS", "40"))
STAND_IN = {
    "torchvision/__init__.py": "__version__ = '0.25.0'\n",
    "torchvision-0.25.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.25.0\n",
    "torchvision/io/__init__.py": "class ImageReadMode:\n    RGB = 'RGB'\ndecode_image = read_image = read_video = None\n",
    "torchvision/transforms/__init__.py": (
        "import enum\n"
        "class InterpolationMode(enum.Enum):\n"
        "    NEAREST = 'nearest'\n    NEAREST_EXACT = 'nearest-exact'\n    BOX = 'box'\n    BILINEAR = 'bilinear'\n"
        "    HAMMING = 'hamming'\n    BICUBIC = 'bicubic'\n    LANCZOS = 'lanczos'\n"
    ),
    "torchvision/transforms/functional.py": "pil_to_tensor = None\n",
    "torchvision/transforms/v2/__init__.py": "",
    "torchvision/transforms/v2/functional.py": (
        "import torch\nfrom torchvision.transforms import InterpolationMode\n"
        "def grayscale_to_rgb(image):\n    assert image.shape[-3] == 3\n    return image\n"
        "def resize(image, size, interpolation, antialias):\n"
        "    if tuple(image.shape[-2:]) == tuple(size):\n        return image\n"
        "    flat = image.reshape(-1, *image.shape[-3:])\n"
        "    made = torch.nn.functional.interpolate(flat, size=list(size), mode=interpolation.value, antialias=antialias)\n"
        "    return made.reshape(*image.shape[:-2], *size)\n"
        "def normalize(image, mean, std, inplace):\n"
        "    mean, std = (torch.as_tensor(v, dtype=image.dtype).view(-1, 1, 1) for v in (mean, std))\n"
        "    return (image - mean) / std\n"
        "to_dtype = pad = crop = None\n"
    ),
}
"""torchvision as far as the processors use it; resizing is torchvision's own call."""

WORDS = ["dog", "Beach", " ", "\n", "\n\n", "  ", "é", "世界", "12", "'s", "<image>", "<video>", "🙂", ".", "<|box_start|>", "a"]

SHAPES = ((24, 12, 64, 48), (7, 3, 96, 64), (50, 25, 50, 80), (2, 2, 64, 64), (9, 2, 20, 100), (90, 30, 128, 32))
"""(frames, fps, width, height) of the videos that conversations show."""


def video(
    frames: int = 24,
    fps: int = 12,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    format: str = "mp4",
    gop: int = 8,
    red: bool = False,
    seed: int = 0,
) -> bytes:
    """A moving pattern, or all red."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", gop
        # several threads give other bytes from one time to the next
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            # macroblock-tree rate control of x264 165 reads memory that nobody wrote: other bytes in another process
            stream.options = {"mbtree": "0"}
        if codec in ("libx264", "mpeg4"):
            stream.max_b_frames = 2
        for number in range(frames):
            picture = np.zeros((height, width, 3), np.uint8)
            if red:
                picture[..., 0] = 255
            else:
                picture[..., 0], picture[..., 1] = (number * 37 + seed * 50) % 256, np.arange(width) * 5 % 256
                picture[..., 2] = (np.arange(height)[:, None] * 3 + number * 11) % 256
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def all_frames(data: bytes) -> np.ndarray:
    """uint8 [n, h, w, 3]: every frame, one after the other."""
    import av

    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_pool(folder: Path) -> None:
    """The video files that conversations show: encoded once, so that whoever reads them reads the same bytes."""
    for seed, (frames, fps, width, height) in enumerate(SHAPES):
        (folder / f"{seed}.mp4").write_bytes(video(frames, fps, width, height, seed=seed))


@functools.cache
def pool(folder: Path) -> list[tuple[str, Any, np.ndarray, float]]:
    """(kind, stored form, frames, fps) of the videos that conversations show; `folder` as `write_pool` left it."""
    made = []
    for seed, (frames, fps, width, height) in enumerate(SHAPES):
        data = (folder / f"{seed}.mp4").read_bytes()
        made.append(("file", data, all_frames(data), float(fps)))
        pictures = [samples.picture(seed * 100 + number, width, height) for number in range(min(frames, 11))]
        stored = [samples.encoded(picture, "PNG") for picture in pictures]
        made.append(("folder", stored, np.stack([np.asarray(p) for p in pictures]), (1.0, 2.0, 7.5)[seed % 3]))
    return made


def conversation(number: int, folder: Path) -> tuple[list[dict], list[dict], dict[str, bytes], list, list[tuple[np.ndarray, float]]]:
    """(messages as stored, messages for Hugging Face, files, pictures, (frames, fps) of videos) of conversation `number`.

    folder: of the video files, as `write_pool` left it.
    """
    random = np.random.RandomState(number)

    def text(most: int) -> str:
        return "".join(WORDS[i] for i in random.randint(0, len(WORDS), random.randint(0, most)))

    stored, theirs, media, images, clips = [], [], {}, [], []
    if random.rand() < 0.3:
        stored.append({"role": "system", "content": text(5)})
        theirs.append({"role": "system", "content": [{"type": "text", "text": stored[-1]["content"]}]})
    for _ in range(random.randint(1, 4)):
        content, shown = [], []
        for _ in range(random.randint(0, 4)):
            kind = random.choice(["text", "text", "image", "video"])
            if kind == "text":
                content.append({"type": "text", "text": text(8)})
                shown.append(content[-1])
                continue
            shown.append({"type": kind})
            if kind == "image":
                part = f"img{len(images)}.png"
                images.append(samples.picture(random.randint(40), random.randint(20, 200), random.randint(20, 200)))
                media[part] = samples.encoded(images[-1], "PNG")
                content.append({"type": "image", "part": part})
                continue
            form, data, frames, fps = pool(folder)[random.randint(len(pool(folder)))]
            name = f"vid{len(clips)}"
            clips.append((frames, fps))
            if form == "file":
                media[f"{name}.mp4"] = data
                content.append({"type": "video", "part": f"{name}.mp4"})
            else:
                names = [f"{name}.{i:05d}.png" for i in range(len(data))]
                media |= dict(zip(names, data, strict=True))
                content.append({"type": "video", "part": name, "frames": names, "fps": fps})
        # a line end at the beginning of an answer may be one token with the one before it
        answer = {"role": "assistant", "content": "a" + text(8)}
        stored += [{"role": "user", "content": content}, answer]
        theirs += [{"role": "user", "content": shown}, {"role": "assistant", "content": [{"type": "text", "text": answer["content"]}]}]
    return stored, theirs, media, images, clips


def run_hugging_face(target: Path, folder: Path) -> dict[str, np.ndarray]:
    """What `Qwen3VLProcessor` makes of every conversation; `target` is a folder of one's own, `folder` that of the video files."""
    site = target / "site"
    for name, content in STAND_IN.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    command = [sys.executable, "-m", "tests.data.videos", str(site), str(target / "expected.npz"), str(folder)]
    # new memory holds other bytes there than here: what reads it unwritten differs each time, not now and then
    subprocess.run(command, check=True, env=os.environ | {"MALLOC_PERTURB_": "77"})
    with np.load(target / "expected.npz") as loaded:
        return dict(loaded)


def main(site: str, target: str, folder: str) -> None:
    sys.path.insert(0, site)
    from transformers import AutoTokenizer, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.video_utils import VideoMetadata

    checkpoint = samples.CHECKPOINT
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor.from_pretrained(checkpoint), tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        video_processor=Qwen3VLVideoProcessor.from_pretrained(checkpoint), chat_template=(checkpoint / "chat_template.jinja").read_text(),
    )  # fmt: skip
    made: dict[str, Any] = {}
    for number in range(CONVERSATIONS):
        _, messages, _, images, clips = conversation(number, Path(folder))
        shown: dict[str, Any] = {"images": images} if images else {}
        if clips:
            shown["videos"] = [frames for frames, _ in clips]
            shown["video_metadata"] = [
                VideoMetadata(total_num_frames=len(frames), fps=fps, height=frames.shape[1], width=frames.shape[2]) for frames, fps in clips
            ]
        found = processor(text=[processor.apply_chat_template(messages, tokenize=False)], return_tensors="np", **shown)
        for name in ("input_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
            if name in found:
                made[f"{number}.{name}"] = np.asarray(found[name])
    np.savez(target, **made)


if __name__ == "__main__":
    main(*sys.argv[1:])
