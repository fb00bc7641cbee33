"""Samples for display: pictures, turns, and which tokens are trained. Imports no torch."""

from __future__ import annotations

import io
import itertools
import json
import textwrap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from qwen3vl_core.data import pictures
from qwen3vl_core.data.errors import REASONS, DataError
from qwen3vl_core.data.inspect.samples import Samples, evenly
from qwen3vl_core.data.sample_encoder import messages_of, tools_of
from qwen3vl_core.formats import printable

LARGEST_SIDE = 320
"""Pixels of a picture on a page."""
LONGEST_TEXT = 4000
"""Characters of one stretch of text that a terminal shows."""
BOX_SCALE = 1000
_COLUMNS, _BOX_COLOUR = 40, (255, 40, 40)
_TRAINED, _DIM, _PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class TextPiece:
    """A stretch of a sample's text."""

    text: str
    trained: bool = False
    """Its tokens are in the loss."""
    medium: bool = False
    """Stands for a picture or video: `img0.jpg, 100 tokens`."""


@dataclass
class ShownSample:
    """One sample to show."""

    split: str
    key: str
    pieces: list[TextPiece] = field(default_factory=list)
    thumbnails: list[tuple[str, Image.Image]] = field(default_factory=list)
    """(part, RGB picture)"""
    tokens: int | None = None
    trained: int | None = None
    problem: str = ""
    """Why it cannot be used; empty where it can."""
    note: str = ""
    """For its title."""

    @property
    def title(self) -> str:
        counts = "" if self.tokens is None else f" · {self.tokens:,} tokens, {self.trained:,} trained"
        return printable(f"{self.split} {self.key}{counts}" + (f" · {self.note}" if self.note else ""))


def select_samples(opened: dict[str, Samples], wanted: int, processor: Any) -> list[ShownSample]:
    """About `wanted` samples, evenly spread over all splits. processor: the model's ChatProcessor, or None."""
    candidates = [(name, number) for name, samples in opened.items() for number in evenly(len(samples), wanted)] if wanted else []
    return [load_sample(name, opened[name], number, processor) for name, number in (candidates[i] for i in evenly(len(candidates), wanted))]


def load_sample(name: str, samples: Samples, number: int, processor: Any, note: str = "") -> ShownSample:
    """One sample, or why it cannot be used. note: what its title says besides."""
    shown = ShownSample(name, samples.place(number), note=note)
    try:
        shown.key, parts = samples.read(number)
        messages = messages_of(parts)
        shown.thumbnails = _thumbnails(messages, parts)
        _draw_boxes(shown.thumbnails, parts)
        if processor is None:
            shown.pieces = _from_messages(messages, tools_of(parts))
        else:
            tokenized = processor.tokenize(messages, parts, key=shown.key, tools=tools_of(parts))
            shown.tokens, shown.trained = len(tokenized.ids), int((tokenized.labels >= 0).sum())
            shown.pieces = _from_tokens(tokenized, processor)
    except DataError as error:
        shown.problem = f"{REASONS[error.reason]}: {error.detail}"
    return shown


def _from_messages(messages: Any, tools: list[Any] | None = None) -> list[TextPiece]:
    """Pieces by role; without a model, its chat template is not known."""
    pieces = [TextPiece(f"tools\n{json.dumps(tools, ensure_ascii=False)}\n")] if tools else []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            raise DataError("message-not-an-object")
        role, content = str(message.get("role")), message.get("content")
        trained = role == "assistant" and message.get("loss") is not False
        pieces.append(TextPiece(f"{role}{'' if trained or role != 'assistant' else ' (not trained)'}\n"))
        for part in content if isinstance(content, list) else [{"type": "text", "text": str(content)}]:
            if isinstance(part, dict) and part.get("type") == "text":
                pieces.append(TextPiece(str(part.get("text")), trained=trained))
            elif isinstance(part, dict):
                pieces.append(TextPiece(_label(part), medium=True))
        if message.get("tool_calls"):
            pieces.append(TextPiece(json.dumps(message["tool_calls"], ensure_ascii=False), trained=trained))
        pieces.append(TextPiece("\n"))
    return pieces


def _label(part: dict[str, Any]) -> str:
    frames, sampling = part.get("frames"), part.get("sampling")
    label = f"{part.get('part')}" + (f", {len(frames)} frames at {part.get('fps')} a second" if isinstance(frames, list) else "")
    return label + ("".join(f", {name} {value}" for name, value in sampling.items()) if isinstance(sampling, dict) else "")


def _from_tokens(tokenized: Any, processor: Any) -> list[TextPiece]:
    """Token by token as the model is trained: labels[i] is the target of position i, the token after it."""
    ids = tokenized.ids
    trained = np.concatenate([[False], tokenized.labels[:-1] >= 0])
    vision = (ids == processor.image_token_id) | (ids == (-1 if processor.video_token_id is None else processor.video_token_id))
    state = trained + 2 * vision
    edges = [0, *(np.flatnonzero(np.diff(state)) + 1).tolist(), len(ids)]
    # each picture is one run of placeholders, a video one for each of its timestamps
    names = [plan.item.parts[0] for plan in tokenized.media for _ in plan.counts]
    pieces = []
    for begin, end in itertools.pairwise(edges):
        if vision[begin]:
            name = names.pop(0) if names else "?"
            pieces.append(TextPiece(f"{name}, {end - begin} tokens", medium=True))
        else:
            text = processor.tokenizer.decode(ids[begin:end].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append(TextPiece(text, trained=bool(trained[begin])))
    return pieces


def _thumbnails(messages: Any, parts: dict[str, bytes]) -> list[tuple[str, Image.Image]]:
    """Small copies of the pictures, and of the first frame of videos that are folders."""
    thumbnails = []
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, dict) or part.get("type") not in ("image", "video"):
                continue
            frames = part.get("frames")
            name = frames[0] if isinstance(frames, list) and frames else part.get("part")
            if not isinstance(name, str) or name not in parts:
                raise DataError("picture-not-in-sample", str(name))
            if part["type"] == "video" and not frames:
                thumbnails.append((name, _first_frame(parts[name], name)))
            else:
                thumbnails.append((name, pictures.decode(parts[name], name)))
            thumbnails[-1][1].thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return thumbnails


def _draw_boxes(thumbnails: list[tuple[str, Image.Image]], parts: dict[str, bytes]) -> None:
    """Draws the sample's boxes and points, from 0 to 1000, into its pictures."""
    if b'"boxes"' not in parts["json"]:
        return
    boxes = json.loads(parts["json"]).get("boxes")
    pictures_shown = [image for name, image in thumbnails if name.startswith("img")]
    for box in boxes if isinstance(boxes, list) else []:
        numbers = box.get("bbox") if isinstance(box, dict) else None
        picture = box.get("picture") if isinstance(box, dict) else None
        if not isinstance(numbers, list) or type(picture) is not int or not 0 <= picture < len(pictures_shown):
            continue
        if not all(type(n) is int and 0 <= n <= BOX_SCALE for n in numbers) or len(numbers) % 2:
            continue
        image = pictures_shown[picture]
        points = [
            (x / BOX_SCALE * (image.width - 1), y / BOX_SCALE * (image.height - 1))
            for x, y in zip(numbers[::2], numbers[1::2], strict=True)
        ]
        draw = ImageDraw.Draw(image)
        if len(points) == 2:
            (left, top), (right, bottom) = points
            draw.rectangle((min(left, right), min(top, bottom), max(left, right), max(top, bottom)), outline=_BOX_COLOUR, width=2)
        else:
            for x, y in points:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=_BOX_COLOUR, width=2)
        if isinstance(label := box.get("label"), str):
            draw.text(
                (points[0][0] + 3, points[0][1] + 2), printable(label)[:40].encode("latin-1", "replace").decode("latin-1"), fill=_BOX_COLOUR
            )


def _first_frame(data: bytes, name: str) -> Image.Image:
    from qwen3vl_core.data import video_decode

    return Image.fromarray(video_decode.frames(data, np.zeros(1, np.int64), name)[0])


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def blocks(image: Image.Image, columns: int = _COLUMNS) -> list[str]:
    """The picture as half blocks in 24-bit colour: a cell shows two pixels, one above the other."""
    rows = max(1, round(image.height / image.width * columns / 2))
    cells = np.asarray(image.resize((columns, min(rows, columns) * 2)), dtype=np.uint8)
    lines = []
    for upper, lower in zip(cells[0::2], cells[1::2], strict=True):
        line = "".join(
            f"\x1b[38;2;{u[0]};{u[1]};{u[2]}m\x1b[48;2;{w[0]};{w[1]};{w[2]}m▀" for u, w in zip(upper.tolist(), lower.tolist(), strict=True)
        )
        lines.append(line + _PLAIN)
    return lines


def _shortened(text: str) -> str:
    """A text for a terminal: of a long one its beginning, its end and its length."""
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]} … ({len(text):,} characters, {len(text) - 2 * half:,} not shown) … {text[-half:]}"


def rendered(sample: ShownSample, width: int, colour: bool) -> list[str]:
    """For a terminal. Trained text is bold and green, and without colour between ⟦ and ⟧."""
    rule = f"── {sample.title} "
    lines = [rule + "─" * max(0, min(width, 100) - len(rule))]
    if colour:
        for name, image in sample.thumbnails:
            lines += [*blocks(image), f"{_DIM}{printable(name)}{_PLAIN}"]
    if sample.problem:
        return [*lines, *textwrap.wrap(printable(f"cannot be used: {sample.problem}"), max(width, 40))]
    text = ""
    for piece in sample.pieces:
        shown = printable(_shortened(piece.text))
        if piece.medium:
            text += f"{_DIM}[{shown}]{_PLAIN}" if colour else f"[{shown}]"
        elif piece.trained:
            text += f"{_TRAINED}{shown}{_PLAIN}" if colour else f"⟦{shown}⟧"
        else:
            text += shown
    return lines + text.strip("\n").split("\n")
