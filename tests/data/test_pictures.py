"""Pictures become the patches that Hugging Face makes of them, and damaged ones become one kind of error."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from qwen3vl_core.data import picture_formats, pictures
from qwen3vl_core.data.batch import pixel_values
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.pictures import PictureRules
from qwen3vl_core.data.prepare.media_check import check_file
from qwen3vl_core.errors import RequestError
from tests.data import samples

TOLERANCE = 1e-6
CONFIG = {
    "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.25],
    "size": {"shortest_edge": 4096, "longest_edge": 65536},
}  # fmt: skip
sides = st.integers(1, 5000)
limits = st.integers(1, 20_000_000)


@samples.many(300)
@given(sides, sides, st.sampled_from([28, 32]), limits, limits)
def test_smart_resize_equals_hugging_face(height, width, factor, smallest, largest):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assume(smallest <= largest and largest >= factor**2)
    try:
        expected = smart_resize(height, width, factor, smallest, largest)
    except ValueError:
        with pytest.raises(DataError, match="extreme_picture"):
            pictures.smart_resize(height, width, factor, smallest, largest)
    else:
        assert pictures.smart_resize(height, width, factor, smallest, largest) == expected


@samples.many()
@given(sides, sides)
def test_a_picture_lying_on_its_side_takes_the_same_tokens(height, width):
    assume(max(height, width) <= 200 * min(height, width))
    rules = PictureRules()
    assert pictures.token_count(height, width, rules) == pictures.token_count(width, height, rules)


@pytest.mark.parametrize(
    ("width", "height", "mode", "format"),
    [
        (128, 128, "RGB", "JPEG"), (336, 336, "RGB", "JPEG"), (97, 301, "RGB", "PNG"), (1000, 41, "RGB", "JPEG"), (5, 7, "RGB", "PNG"),
        (200, 160, "L", "JPEG"), (200, 160, "P", "PNG"), (200, 160, "1", "PNG"), (200, 160, "CMYK", "JPEG"), (130, 90, "RGB", "WEBP"),
        (130, 90, "P", "GIF"), (130, 90, "RGB", "BMP"), (130, 90, "RGB", "TIFF"),
    ],
)  # fmt: skip
def test_patches_equal_hugging_face(width, height, mode, format):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    data = samples.encoded(samples.picture(3, width, height, mode), format)
    reference = Qwen2VLImageProcessorPil(**CONFIG)(images=[Image.open(io.BytesIO(data))], return_tensors="pt")
    rules = PictureRules.from_config(CONFIG | {"image_processor_type": "Qwen2VLImageProcessorPil"}, "config")
    patches, grid = pictures.patches(pictures.decode(data, "it"), rules)
    assert patches.dtype == np.uint8
    assert reference["image_grid_thw"].tolist() == [list(grid)]
    assert grid[1] * grid[2] == 4 * pictures.token_count(*pictures.picture_size(data, "it"), rules)
    ours = pixel_values(torch.from_numpy(patches), rules)
    assert ours.shape == reference["pixel_values"].shape
    assert (ours - reference["pixel_values"]).abs().max() <= TOLERANCE
    # torch's kernel rounds otherwise between its two passes
    torchs, _ = pictures.patches(pictures.decode(data, "it"), PictureRules.from_config(CONFIG, "config"))
    apart = np.abs(torchs.astype(int) - patches)
    assert apart.max() <= 3 and apart.mean() < 0.3


def test_a_photograph_is_turned_upright():
    image = samples.picture(1, 90, 60)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    data = samples.encoded(image, "PNG", exif=turned)
    assert np.array_equal(pictures.decode(data, "it"), image.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(mode):
    image = samples.picture(1, 40, 40, "RGBA")
    image.putalpha(0)
    options = {"transparency": 0} if mode == "P" else {}
    if mode == "P":
        image = Image.new("P", (40, 40))
    data = samples.encoded(image.convert(mode), "PNG", **options)
    assert np.asarray(pictures.decode(data, "it")).min() == 255


PNG = samples.encoded(samples.picture(), "PNG")
JPEG = samples.encoded(samples.picture(0, 200, 200), "JPEG")
WEBP, GIF = samples.encoded(samples.picture(), "WEBP"), samples.encoded(samples.picture(mode="P"), "GIF")


def changed_png(*, side: int | None = None, chunk: int | None = None) -> bytes:
    """A PNG whose header claims another side, or whose pixels' chunk claims another length."""
    data = bytearray(PNG)
    if side is not None:
        at = data.index(b"IHDR")
        data[at + 4 : at + 12] = struct.pack(">II", side, side)
        data[at + 17 : at + 21] = struct.pack(">I", zlib.crc32(bytes(data[at : at + 17])))
    if chunk is not None:
        at = data.index(b"IDAT")
        data[at - 4 : at] = struct.pack(">I", chunk)
    return bytes(data)


BROKEN = {
    "cut off JPEG": (JPEG[: len(JPEG) // 2], "header", "broken_picture"),
    "cut off PNG": (PNG[: len(PNG) // 2], "header", "broken_picture"),
    "empty file": (b"", "none", "broken_picture"),
    "web page": (b"<html>404</html>", "header", "broken_picture"),
    "PNG with a wrong chunk": (changed_png(chunk=100), "decode", "broken_picture"),
    "header of a giant": (changed_png(side=60_000), "header", "extreme_picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "header", "broken_picture"),
    "a thread": (samples.encoded(Image.new("RGB", (2010, 10)), "PNG"), "header", "extreme_picture"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_refused(tmp_path, name):
    data, level, reason = BROKEN[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for how in ("none", "header", "decode")[("none", "header", "decode").index(level) :]:
        with pytest.raises(DataError) as refused:
            check_file(path, how)
        assert refused.value.reason == reason and str(path) in refused.value.detail
    with pytest.raises(DataError):
        pictures.patches(pictures.decode(data, "it"), PictureRules())


OTHERS = {
    "HEIC": (b"\0\0\0\x18ftypheic", "HEIC"), "a video": (b"\0\0\0\x18ftypisom", "a video (MP4, MOV); name it under videos"),
    "SVG": (b"  <svg xmlns=''/>", "an SVG drawing; draw it as PNG"), "a web page": (b"<!DOCTYPE html>", "a web page, not the picture"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), "an ICO": (b"\0\0\1\0\1", "convert it to JPEG or PNG"),
    "nothing known": (b"abc", "JPEG, PNG, WEBP"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_picture_that_is_read_is_named_with_the_way_out(tmp_path, name):
    data, words = OTHERS[name]
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError) as refused:
        check_file(tmp_path / "a.jpg", "header")
    assert words in refused.value.detail and refused.value.reason == "broken_picture"


@pytest.mark.parametrize("format", ["AVIF", "PPM", "JPEG2000", "HEIF"])
def test_other_formats_are_read_where_pillow_can(tmp_path, format):
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif format not in picture_formats.FORMATS:
        pytest.skip(f"this Pillow was built without {format}")
    data = samples.encoded(samples.picture(1, 64, 48), format)
    (tmp_path / "a.jpg").write_bytes(data)
    for how in ("header", "decode"):
        assert check_file(tmp_path / "a.jpg", how).shape == (48, 64)
    assert pictures.decode(data, "it").size == (64, 48)


def test_missing_pictures_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path, tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DataError) as refused:
            check_file(path, "none")
        assert refused.value.reason == "missing_picture"


@pytest.mark.parametrize("how", ["none", "header", "decode"])
def test_sound_pictures_pass_whatever_a_camera_adds(tmp_path, how):
    path = tmp_path / "a.jpg"
    for data in (JPEG, JPEG + bytes(70_000), JPEG + b"trailer" * 20_000, PNG, PNG + b"more"):
        path.write_bytes(data)
        assert check_file(path, how).size == len(data)


@samples.many(150)
@given(st.sampled_from([PNG, JPEG, WEBP, GIF]), st.data())
def test_damage_never_raises_anything_but_the_typed_error(whole, data):
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 400) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        patches, grid = pictures.patches(pictures.decode(bytes(damaged), "it"), PictureRules(max_pixels=65536))
    except DataError:
        return
    assert len(patches) == grid[1] * grid[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": None}, "take the file from the checkpoint"),
        ({"image_mean": 0.5}, "lists of 3 numbers"),
        ({"do_resize": False}, "do_resize is False"),
        ({"image_std": [0.5, 0.5, 0]}, "must be above 0"),
        ({"size": {"height": 3}}, "key 'shortest_edge' is missing"),
    ],
)
def test_a_config_of_something_else_is_refused(change, words):
    with pytest.raises(RequestError) as refused:
        PictureRules.from_config(CONFIG | change, "preprocessor_config.json")
    assert words in str(refused.value) and "preprocessor_config.json" in str(refused.value)


def test_given_areas_take_the_place_of_the_checkpoints():
    rules = PictureRules.from_config(CONFIG, "config", min_pixels=2048, max_pixels=8192)
    assert (rules.min_pixels, rules.max_pixels) == (2048, 8192)
    with pytest.raises(RequestError, match=r"--max-pixels 2000: .*at most the largest"):
        PictureRules.from_config(CONFIG, "config", max_pixels=2000)
    with pytest.raises(RequestError, match="--max-pixels 1000: must hold one token of 32x32; use 1024"):
        PictureRules.from_config(CONFIG, "config", min_pixels=900, max_pixels=1000)
