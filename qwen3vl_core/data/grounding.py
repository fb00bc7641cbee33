"""BoxTags beside a conversation (ms-swift's `objects`), filled into its texts in the coordinates that Qwen3-VL expects.

Qwen3-VL writes coordinates from 0 to 1000, whatever the size of the picture. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from qwen3vl_core.data.errors import DataError, kind_of
from qwen3vl_core.data.records import BoxTags, Content, cut, text_of
from qwen3vl_core.data.turns import json_of

LARGEST = 1000
LABEL_TAG, BOX_TAG = "<ref-object>", "<bbox>"
_TAGS = re.compile(f"{LABEL_TAG}|{BOX_TAG}")
_SCALES = {"real": None, "norm1": 1.0, "norm1000": 1000.0}


def read(objects: Any, texts: Sequence[Content]) -> BoxTags | None:
    """The boxes of a record, None without any. Raises DataError when they do not match the tags in the texts."""
    plain = [text for text in texts if isinstance(text, str) and "<" in text]
    label_tags, box_tags = (sum(text.count(tag) for text in plain) for tag in (LABEL_TAG, BOX_TAG))
    if not objects:
        # `<bbox>[1, 2, 3, 4]</bbox>` is another format's own text
        if label_tags or (box_tags and not any("</bbox>" in text for text in plain)):
            raise DataError("boxes-without-objects", tag=LABEL_TAG if label_tags else BOX_TAG)
        return None
    if isinstance(objects, str):
        # a cell of a table
        objects = json_of(objects, "objects")
    if not isinstance(objects, dict):
        raise DataError("record-shape", what="objects", kind="{ref, bbox}", found=kind_of(objects))
    unknown = set(objects) - {"ref", "bbox", "bbox_type", "image_id"}
    if unknown:
        raise DataError("key-refused", "objects", key=cut(min(unknown)), way="ref, bbox, bbox_type and image_id are read")
    labels = tuple(text_of(label, "objects: ref") for label in _list(objects, "ref"))
    boxes = tuple(_box(box) for box in _list(objects, "bbox"))
    if len(labels) != label_tags or len(boxes) != box_tags:
        raise DataError("boxes-differ", labels=len(labels), boxes=len(boxes), label_tags=label_tags, box_tags=box_tags)
    kind = objects.get("bbox_type") or "real"
    if kind not in _SCALES:
        raise DataError("option-value", "objects", key="bbox_type", value=cut(kind), kind=f"one of {', '.join(_SCALES)}")
    numbers = _list(objects, "image_id") or [0] * len(boxes)
    if len(numbers) != len(boxes) or not all(type(n) is int and n >= 0 for n in numbers):
        raise DataError(
            "option-value", "objects", key="image_id", value=cut(numbers), kind="one number of a picture, from 0 on, for each bbox"
        )
    return BoxTags(labels, boxes, tuple(numbers), _SCALES[kind])


def _list(objects: dict[str, Any], key: str) -> list[Any]:
    value = objects.get(key) or []
    if not isinstance(value, list):
        raise DataError("record-shape", "objects", what=key, kind="a list", found=kind_of(value))
    return value


def _box(box: Any) -> tuple[float, ...]:
    numbers = isinstance(box, list) and all(type(n) in (int, float) and math.isfinite(n) for n in box)
    if not numbers or not box or len(box) % 2:
        raise DataError("record-shape", "objects", what="a bbox", kind="[x, y, x, y] or [x, y]", found=cut(box))
    return tuple(box)


def scaled(boxes: BoxTags, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Coordinates from 0 to 1000. sizes: (height, width) of each picture, upright. Raises DataError for one outside its picture."""
    result = []
    for box, picture in zip(boxes.boxes, boxes.pictures, strict=True):
        if picture >= len(sizes):
            raise DataError("option-value", "objects", key="image_id", value=picture, kind=f"below {len(sizes)}, the number of pictures")
        height, width = (boxes.scale, boxes.scale) if boxes.scale is not None else sizes[picture]
        if any(not 0 <= value <= (height if i % 2 else width) for i, value in enumerate(box)):
            other = "norm1000" if boxes.scale is None else "real"
            raise DataError("box-outside", "objects", box=cut(list(box)), width=width, height=height, other=other)
        result.append(tuple(round(value / (height if i % 2 else width) * LARGEST) for i, value in enumerate(box)))
    return result


def filled(turns: Sequence[tuple[str, Content]], boxes: BoxTags, coordinates: Sequence[tuple[int, ...]]) -> tuple[tuple[str, Content], ...]:
    """The turns with labels and coordinates in place of their tags, in order."""
    labels, numbers = iter(boxes.labels), iter(coordinates)

    def entry(match: re.Match[str]) -> str:
        return next(labels) if match[0] == LABEL_TAG else json.dumps(list(next(numbers)))

    def fill(text: Content) -> Content:
        # in one pass: a label may hold the text of a tag
        return _TAGS.sub(entry, text) if isinstance(text, str) else text

    return tuple((role, fill(text)) for role, text in turns)


def drawn(boxes: BoxTags, coordinates: Sequence[tuple[int, ...]]) -> list[dict[str, Any]]:
    """What a shard holds of the boxes, for `inspect` to draw."""
    named = boxes.labels if len(boxes.labels) == len(boxes.boxes) else ("",) * len(boxes.boxes)
    rows = zip(boxes.pictures, coordinates, named, strict=True)
    return [{"picture": picture, "bbox": list(box), **({"label": label} if label else {})} for picture, box, label in rows]
