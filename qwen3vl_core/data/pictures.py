"""Pictures to patches, with the semantics of Hugging Face's `Qwen2VLImageProcessor`, without torchvision.

Imports torch where a picture is resized.

Patches stay 8-bit and hold one frame, an eighth of the bytes of the model's input, to save queue and PCIe bandwidth. They are
normalised, and the frame repeated, on the model's device (`batch.pixel_values`).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from qwen3vl_core.data.errors import DataError, picture_errors
from qwen3vl_core.data.picture_formats import open_picture
from qwen3vl_core.errors import RequestError

LARGEST_RATIO = 200
"""Longest side over shortest side; beyond it Hugging Face refuses a picture."""
CHANNELS = 3
KERNELS = {int(Image.Resampling.BILINEAR): "bilinear", int(Image.Resampling.BICUBIC): "bicubic"}
"""Resampling kernels that torch has."""
_TAIL = 64 << 10


@dataclass(frozen=True)
class PictureRules:
    """What a checkpoint's `preprocessor_config.json` asks for. Areas are in pixels after resizing."""

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65536
    max_pixels: int = 16777216
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255
    resample: int = int(Image.Resampling.BICUBIC)
    pillow: bool = False
    """Resize by Pillow, as the processors do whose class ends on `Pil`, instead of by torch as all others: values differ
    by up to 3 of 255, and Pillow takes three times as long."""

    @property
    def factor(self) -> int:
        """Both sides of a resized picture are multiples of this."""
        return self.patch_size * self.merge_size

    @property
    def patch_bytes(self) -> int:
        """Values of one patch of one frame: channels x height x width."""
        return CHANNELS * self.patch_size**2

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str, min_pixels: int | None = None, max_pixels: int | None = None) -> PictureRules:
        """From a parsed `preprocessor_config.json`; `min_pixels` and `max_pixels` override the config's.

        Raises RequestError for a config that is not a Qwen-VL picture processor's, and if min_pixels exceeds max_pixels.
        """
        for key in ("do_resize", "do_rescale", "do_normalize"):
            if config.get(key, True) is not True:
                raise RequestError(f"{where}: {key} is {config[key]}; pictures are always resized and normalised; take the original file")
        size = config.get("size") or {}
        try:
            rules = cls(
                patch_size=int(config["patch_size"]),
                temporal_patch_size=int(config["temporal_patch_size"]),
                merge_size=int(config["merge_size"]),
                min_pixels=int(min_pixels or config.get("min_pixels") or size["shortest_edge"]),
                max_pixels=int(max_pixels or config.get("max_pixels") or size["longest_edge"]),
                # no defaults: those of the Hugging Face class are another model's
                mean=_three(config["image_mean"]),
                std=_three(config["image_std"]),
                rescale=float(config.get("rescale_factor", 1 / 255)),
                resample=int(config.get("resample", Image.Resampling.BICUBIC)),
                pillow=str(config.get("image_processor_type", "")).endswith("Pil"),
            )
        except KeyError as missing:
            raise RequestError(f"{where}: key {missing} is missing; take the file from the checkpoint itself") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RequestError(f"{where}: {error}; take the file from the checkpoint itself") from None
        if min(rules.patch_size, rules.temporal_patch_size, rules.merge_size, rules.min_pixels) < 1 or 0 in rules.std:
            raise RequestError(f"{where}: sizes and deviations must be above 0; take the file from the checkpoint itself")
        if rules.min_pixels > rules.max_pixels:
            raise RequestError(
                f"--min-pixels {rules.min_pixels}, --max-pixels {rules.max_pixels}: the smallest area must be at most the largest one "
                f"(what is not given comes from {where}); give both"
            )
        if rules.max_pixels < rules.factor**2:
            token = rules.factor**2
            raise RequestError(f"--max-pixels {rules.max_pixels}: must hold one token of {rules.factor}x{rules.factor}; use {token}")
        return rules


def _three(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != CHANNELS:
        raise ValueError(f"image_mean and image_std must be lists of {CHANNELS} numbers, not {values!r}")
    first, second, third = map(float, values)
    return first, second, third


def check_proportions(height: int, width: int) -> None:
    """Raises DataError for proportions that Hugging Face refuses."""
    if min(height, width) < 1 or max(height, width) / min(height, width) > LARGEST_RATIO:
        raise DataError("picture-proportions", width=width, height=height, ratio=LARGEST_RATIO)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) to resize to: multiples of `factor`, area within the limits, aspect ratio kept as closely as possible.

    Source: `smart_resize` of transformers' `image_processing_qwen2_vl`. Raises DataError for extreme proportions.
    """
    check_proportions(height, width)
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


def token_count(height: int, width: int, rules: PictureRules) -> int:
    """Tokens of a picture of this size; the same for one rotated by 90 degrees. Raises DataError as smart_resize does."""
    high, wide = smart_resize(height, width, rules.factor, rules.min_pixels, rules.max_pixels)
    return high * wide // rules.factor**2


def picture_size(data: bytes | BinaryIO, what: str) -> tuple[int, int]:
    """(height, width) from the header alone, as stored. Raises DataError; `what` names the picture in it."""
    with picture_errors(what), open_picture(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        return image.height, image.width


def upright_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the picture as it is seen, rotated by its EXIF tag. Raises what Pillow raises."""
    with open_picture(io.BytesIO(data)) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Rotated by its EXIF tag, RGB, transparency composited on white. Raises DataError for floating point greyscale.

    Source: `load_image` and `convert_to_rgb` of transformers 5; but 16-bit greyscale, which is clipped to white there, is scaled.
    """
    upright = _eight_bits(ImageOps.exif_transpose(image))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, (255, 255, 255, 255)), upright).convert("RGB")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale scaled to 8 bits: Pillow's own conversion silently clips at 255."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or (values.size and not 0 <= int(values.min()) <= int(values.max()) <= 0xFFFF):
        raise DataError("picture-greys")
    # releases of Pillow differ in what they open as mode I: 8-bit values stay unchanged
    deep = image.mode != "I" or int(values.max(initial=0)) > 0xFF
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257 if deep else values).astype(np.uint8))


def decode(data: bytes, what: str) -> Image.Image:
    """The picture, upright, RGB. Raises DataError; `what` names the picture in it."""
    with picture_errors(what), open_picture(io.BytesIO(data)) as image:
        image.load()
        return to_rgb(image)


def patches(image: Image.Image, rules: PictureRules) -> tuple[np.ndarray, tuple[int, int, int]]:
    """RGB picture -> (uint8 [n, 3 * patch * patch], grid (1, rows, columns) in patches).

    Patches come in merge order: the `merge_size` x `merge_size` patches of one token one after another. Values within a
    patch: channel, row, column; one frame.
    """
    high, wide = smart_resize(image.height, image.width, rules.factor, rules.min_pixels, rules.max_pixels)
    if (wide, high) == image.size:
        values = np.asarray(image)
    elif rules.pillow or rules.resample not in KERNELS:
        values = np.asarray(image.resize((wide, high), Image.Resampling(rules.resample)))
    else:
        values = resize(np.array(image), high, wide, rules.resample)
    rows, columns, patch, merge = high // rules.patch_size, wide // rules.patch_size, rules.patch_size, rules.merge_size
    # [rows/m, m, p, columns/m, m, p, 3] -> [rows/m, columns/m, m, m, 3, p, p]
    values = values.reshape(rows // merge, merge, patch, columns // merge, merge, patch, CHANNELS)
    ordered = np.ascontiguousarray(values.transpose(0, 3, 1, 4, 6, 2, 5))
    return ordered.reshape(rows * columns, rules.patch_bytes), (1, rows, columns)


def resize(values: np.ndarray, high: int, wide: int, resample: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [high, wide, 3], with the kernel that torchvision uses for tensors.

    values: writable, as torch wants arrays to be. resample: a key of KERNELS.
    """
    import torch

    # one picture is one view of torch's channels-last form, for which its 8-bit kernel is fastest
    planes = torch.from_numpy(values).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=(high, wide), mode=KERNELS[resample], antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def check_content(file: BinaryIO, size: int, what: str, how: str) -> tuple[int, int]:
    """(height, width) of an opened picture of `size` bytes. Raises DataError; `what` names the picture.

    `how`: `header` reads its header and looks for the end marker; `decode` decodes every pixel.
    """
    with picture_errors(what), open_picture(file) as image:
        check_proportions(image.height, image.width)
        if how == "decode":
            to_rgb(image)
        elif not _has_end(image, size):
            raise DataError("picture-cut-off", what)
        return image.height, image.width


def _has_end(image: Image.Image, size: int) -> bool:
    """Whether a JPEG or PNG has its end marker; other formats have their length in the header."""
    marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(image.format or "")
    if marker is None:
        return True
    file = image.fp  # type: ignore[attr-defined]  # what Image.open gives has one
    # a JPEG's header was read up to its pixels: the bytes before may hold a thumbnail with its own end marker
    begin = file.tell() if image.format != "PNG" else 0
    file.seek(max(begin, size - _TAIL))
    if marker in file.read():
        return True
    # cameras append data after the picture: then the marker is further ahead
    file.seek(begin)
    return marker in file.read()
