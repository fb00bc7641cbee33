"""A red picture is red in the batch, whatever it was stored as: from the file through prepare and the loader."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from qwen3vl_core.data import pictures
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.loader import build_loader
from qwen3vl_core.data.prepare import command as prepare
from qwen3vl_core.options import PrepareOptions
from tests.data import samples, videos

RED, SIDE = (255, 0, 0), 64


def png(depth: int, kind: int, pixel: bytes, side: int = SIDE) -> bytes:
    """A PNG of one colour, of a kind that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + pixel * side) * side
    head = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), RED).convert(mode)


def turned() -> bytes:
    """Red above and blue below once it is turned upright; stored lying on its side."""
    lying = Image.new("RGB", (2 * SIDE, SIDE), RED)
    lying.paste((0, 0, 255), (SIDE, 0, 2 * SIDE, SIDE))
    exif = Image.Exif()
    exif[0x0112] = 6
    return samples.encoded(lying, "JPEG", exif=exif, quality=95)


def palette(**options) -> bytes:
    return samples.encoded(red().quantize(4), "PNG", **options)


STORED = {
    "jpeg.jpg": samples.encoded(red(), "JPEG", quality=95),
    "progressive.jpg": samples.encoded(red(), "JPEG", quality=95, progressive=True),
    "cmyk.jpg": samples.encoded(red("CMYK"), "JPEG", quality=95),
    "plain.png": samples.encoded(red(), "PNG"),
    "alpha.png": samples.encoded(red("RGBA"), "PNG"),
    "palette.png": palette(),
    "deep.png": png(16, 2, struct.pack(">3H", 0xFFFF, 0, 0)),
    "deep_alpha.png": png(16, 6, struct.pack(">4H", 0xFFFF, 0, 0, 0xFFFF)),
    "webp.webp": samples.encoded(red(), "WEBP", lossless=True),
    "gif.gif": samples.encoded(red("P"), "GIF"),
    "bmp.bmp": samples.encoded(red(), "BMP"),
    "tiff.tiff": samples.encoded(red(), "TIFF"),
    "exif.jpg": turned(),
}
GREY = {
    "grey.png": (samples.encoded(Image.new("L", (SIDE, SIDE), 64), "PNG"), 64),
    "grey.jpg": (samples.encoded(Image.new("L", (SIDE, SIDE), 64), "JPEG", quality=95), 64),
    "deep_grey.png": (png(16, 0, struct.pack(">H", 64 * 257)), 64),
    "bits.png": (samples.encoded(Image.new("1", (SIDE, SIDE), 1), "PNG"), 255),
    # half transparent black on white
    "veil.png": (samples.encoded(Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 128)), "PNG"), 127),
}


@pytest.fixture(scope="module")
def batches(tmp_path_factory, processor):
    """Name -> model inputs of a sample that shows it."""
    folder = tmp_path_factory.mktemp("colours")
    for name, data in [*STORED.items(), *((name, data) for name, (data, _) in GREY.items())]:
        (folder / name).write_bytes(data)
    (folder / "film.mp4").write_bytes(videos.video(8, red=True))
    (folder / "frames").mkdir()
    for number in range(3):
        (folder / "frames" / f"{number}.png").write_bytes(STORED["plain.png"])
    records = [samples.record(0, name, answer=name) for name in (*STORED, *GREY)]
    for name in ("film.mp4", "frames"):
        turns = [{"from": "human", "value": "<video>What colour?"}, {"from": "gpt", "value": name}]
        records.append({"video": name, "conversations": turns})
    (folder / "list.json").write_text(json.dumps(records))
    prepare.run(PrepareOptions(source=str(folder / "list.json"), to=str(folder / "data"), split="1,0,0", check="decode", workers=1))
    loader = build_loader(
        folder / "data", "train", processor, micro_batch_size=1, global_batch_size=len(records), seq_length=512, num_workers=1
    )
    made = {}
    for batch in next(loader):
        name = records[int(batch.keys[0])]["conversations"][1]["value"]
        made[name] = batch.model_inputs("cpu", torch.float32)
    assert not loader.skipped and len(made) == len(records)
    loader.close()
    return made


def channels(values: torch.Tensor) -> list[list[float]]:
    """[[lowest, highest]] of red, green and blue, as 0 to 255. values: [n, 3 * frames * patch * patch]"""
    return [[float(v) for v in channel.aminmax()] for channel in (values.view(len(values), 3, -1).transpose(0, 1) * 0.5 + 0.5) * 255]


@pytest.mark.parametrize("name", [name for name in STORED if name != "exif.jpg"])
def test_a_red_picture_is_red(batches, name):
    (low, _), (_, green), (_, blue) = channels(batches[name]["pixel_values"])
    # CMYK and JPEG round a little
    assert low >= 250 and green <= 5 and blue <= 5


@pytest.mark.parametrize("name", ["film.mp4", "frames"])
def test_a_red_video_is_red(batches, name):
    (low, _), (_, green), (_, blue) = channels(batches[name]["pixel_values_videos"])
    assert low >= 240 and green <= 12 and blue <= 12


def test_a_picture_that_lies_on_its_side_stands_upright(batches):
    inputs = batches["exif.jpg"]
    rows, columns = inputs["image_grid_thw"][0, 1:].tolist()
    assert rows > columns
    upper, lower = inputs["pixel_values"][: rows * columns // 4], inputs["pixel_values"][-rows * columns // 4 :]
    (low, _), _, (_, blue) = channels(upper)
    assert low >= 240 and blue <= 15
    (_, high), _, (lowest, _) = channels(lower)
    assert lowest >= 240 and high <= 15


@pytest.mark.parametrize("name", GREY)
def test_a_grey_picture_keeps_its_shade(batches, name):
    wanted = GREY[name][1]
    assert all(abs(bound - wanted) <= 2 for channel in channels(batches[name]["pixel_values"]) for bound in channel)


@pytest.mark.parametrize("values", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 1 << 20, np.int32), np.full((8, 8), -1, np.int32)])
def test_greys_without_a_known_white_are_refused(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with pytest.raises(DataError, match="save it as 8 bits"):
        pictures.decode(file.getvalue(), "it")
