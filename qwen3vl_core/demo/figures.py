"""People, animals and things: one drawing function per kind, and the colours that they are drawn in.

Lengths and positions are canvas pixels: the canvas is SCALE times the picture's size, and y grows downwards. The
shapes, the rounding of their colours and the order in which they use the random numbers are what the shipped model was
trained on; a change to any of them asks for a new model.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

from qwen3vl_core.demo.scenes import SIZE, Colour

SCALE = 2
"""Canvas pixels per picture pixel; the picture is the canvas averaged down, which smooths the edges."""

CANVAS = SIZE * SCALE
"""Width and height of the canvas, canvas pixels."""

LINE = SCALE
"""Width of a thin line, canvas pixels."""

Tint = tuple[float, float, float]
"""Factors of red, green and blue."""

_SKINS: tuple[Colour, ...] = ((240, 200, 170), (205, 150, 110), (140, 95, 65))
_TROUSERS: Colour = (60, 62, 80)
_HAIRS: tuple[Colour, ...] = ((60, 38, 24), (25, 22, 22), (190, 140, 70))


def shade(colour: Colour, factor: float) -> Colour:
    """The colour darker (factor below 1) or lighter (above 1)."""
    return tinted(colour, (factor, factor, factor))


def tinted(colour: Colour, tint: Tint) -> Colour:
    """The colour in the light of a time of day."""
    red, green, blue = (min(255, int(channel * factor)) for channel, factor in zip(colour, tint, strict=True))
    return red, green, blue


def outline_of(fill: Colour) -> Colour:
    """An outline that stands out against the fill."""
    return (150, 150, 160) if sum(fill) < 150 else shade(fill, 0.5)


@dataclass(frozen=True)
class Stand:
    """Where one figure stands and how it looks; its methods draw shapes in the figure's own colour, outlined."""

    pen: ImageDraw.ImageDraw
    x: float
    y: float
    """The point on the ground under the figure's middle."""
    height: float
    fill: Colour
    tint: Tint
    """The light on everything that is not the figure's own colour."""
    rng: random.Random
    pose: str | None = None

    @property
    def outline(self) -> Colour:
        return outline_of(self.fill)

    def ellipse(self, left: float, top: float, right: float, bottom: float, width: int = 1) -> None:
        self.pen.ellipse((left, top, right, bottom), fill=self.fill, outline=self.outline, width=width)

    def rectangle(self, left: float, top: float, right: float, bottom: float) -> None:
        self.pen.rectangle((left, top, right, bottom), fill=self.fill, outline=self.outline)

    def rounded(self, left: float, top: float, right: float, bottom: float, radius: float) -> None:
        self.pen.rounded_rectangle((left, top, right, bottom), radius=radius, fill=self.fill, outline=self.outline)

    def polygon(self, *points: tuple[float, float]) -> None:
        self.pen.polygon(points, fill=self.fill, outline=self.outline)

    def legs(self, offsets: tuple[float, ...], top: float, width: float) -> None:
        """Upright legs from `top` down to the ground, their middles `offsets` from the figure's."""
        for offset in offsets:
            self.rectangle(self.x + offset - width / 2, top, self.x + offset + width / 2, self.y)


def draw_figure(kind: str, stand: Stand) -> None:
    """Draws a figure of a kind in PEOPLE, ANIMALS or THINGS; a person in the stand's pose."""
    _FIGURES[kind](stand)


def _woman(at: Stand) -> None:
    x, r = at.x, at.height * 0.12
    head, skin, hair = _body(at, r, in_dress=True)
    at.pen.rectangle((x - r * 1.25, head - r * 0.4, x + r * 1.25, head + r * 2.0), fill=hair)
    at.pen.ellipse((x - r * 1.25, head - r * 1.25, x + r * 1.25, head + r), fill=hair)
    at.pen.ellipse((x - r * 0.8, head - r * 0.7, x + r * 0.8, head + r), fill=skin)


def _man(at: Stand) -> None:
    r = at.height * 0.12
    head, skin, hair = _body(at, r, in_dress=False)
    _short_haired_head(at, head, r, skin, hair)


def _child(at: Stand) -> None:
    x, r = at.x, at.height * 0.17
    head, skin, hair = _body(at, r, in_dress=False)
    _short_haired_head(at, head, r, skin, hair)
    # a tuft and no cap: a cap would bring in a second colour
    at.pen.ellipse((x - r * 0.3, head - r * 1.6, x + r * 0.3, head - r * 0.9), fill=hair)


def _short_haired_head(at: Stand, head: float, r: float, skin: Colour, hair: Colour) -> None:
    x = at.x
    at.pen.ellipse((x - r, head - r, x + r, head + r), fill=skin)
    at.pen.pieslice((x - r * 1.08, head - r * 1.15, x + r * 1.08, head + r), 180, 360, fill=hair)


def _body(at: Stand, head_radius: float, in_dress: bool) -> tuple[float, Colour, Colour]:
    """A person up to the shoulders, in a dress or in trousers; returns the y of the head's middle, skin and hair."""
    x, y, h, line = at.x, at.y, at.height, at.pen.line
    skin, hair = tinted(at.rng.choice(_SKINS), at.tint), tinted(at.rng.choice(_HAIRS), at.tint)
    legs = skin if in_dress else tinted(_TROUSERS, at.tint)
    if at.pose == "standing":
        hip, shoulder = y - h * 0.42, y - h + 2 * head_radius
        foot, leg_width = (0.06, int(h * 0.06)) if in_dress else (0.07, int(h * 0.1))
        for side in (-1, 1):
            line((x + side * h * 0.06, hip, x + side * h * foot, y), fill=legs, width=leg_width)
        if in_dress:
            hem = y - h * 0.24
            at.polygon((x - h * 0.09, shoulder), (x + h * 0.09, shoulder), (x + h * 0.2, hem), (x - h * 0.2, hem))
        else:
            at.rectangle(x - h * 0.14, shoulder, x + h * 0.14, hip)
        for side in (-1, 1):
            arm = (x + side * h * 0.13, shoulder + h * 0.04, x + side * h * 0.2, hip - h * 0.02)
            line(arm, fill=skin, width=int(h * 0.06))
    else:
        shoulder, side = y - h * 0.5, at.rng.choice((-1, 1))
        bent = (x, y - h * 0.07, x + side * h * 0.24, y - h * 0.2, x + side * h * 0.36, y)
        line(bent, fill=legs, width=int(h * 0.09), joint="curve")
        if in_dress:
            at.polygon((x - h * 0.09, shoulder), (x + h * 0.09, shoulder), (x + h * 0.22, y), (x - h * 0.22, y))
        else:
            at.rectangle(x - h * 0.15, shoulder, x + h * 0.15, y)
        arm = (x + side * h * 0.12, shoulder + h * 0.06, x + side * h * 0.22, y - h * 0.16)
        line(arm, fill=skin, width=int(h * 0.06))
    return shoulder - head_radius * 0.9, skin, hair


def _rabbit(at: Stand) -> None:
    x, y, h = at.x, at.y, at.height
    facing = at.rng.choice((-1, 1))
    at.ellipse(x - h * 0.42, y - h * 0.6, x + h * 0.42, y)
    head_x, head_y = x + facing * h * 0.34, y - h * 0.62
    for ear in (-0.1, 0.12):
        at.ellipse(head_x + (ear - 0.08) * h, head_y - h * 0.62, head_x + (ear + 0.08) * h, head_y)
    at.ellipse(head_x - h * 0.22, head_y - h * 0.2, head_x + h * 0.22, head_y + h * 0.22)
    tail_x = x - facing * h * 0.44
    at.pen.ellipse((tail_x - h * 0.1, y - h * 0.32, tail_x + h * 0.1, y - h * 0.12), fill=(250, 250, 250))


def _horse(at: Stand) -> None:
    x, y, h = at.x, at.y, at.height
    facing = at.rng.choice((-1, 1))
    thick = max(2, int(h * 0.12))
    back, belly = y - h * 0.78, y - h * 0.42
    at.legs((-0.42 * h, -0.3 * h, 0.28 * h, 0.4 * h), belly - 4, thick)
    at.polygon(
        (x + facing * h * 0.3, back + h * 0.05),
        (x + facing * h * 0.55, y - h * 1.18),
        (x + facing * h * 0.7, y - h * 1.1),
        (x + facing * h * 0.5, belly),
    )
    at.ellipse(x - h * 0.5, back, x + h * 0.5, belly + h * 0.04)
    head_x = x + facing * h * 0.68
    at.ellipse(head_x - h * 0.2, y - h * 1.2, head_x + h * 0.2, y - h * 0.98)
    tail = (x - facing * h * 0.48, back + h * 0.1, x - facing * h * 0.62, y - h * 0.35)
    mane = (x + facing * h * 0.32, back, x + facing * h * 0.52, y - h * 1.2)
    for hair in (tail, mane):
        at.pen.line(hair, fill=at.outline, width=thick)


def _dog(at: Stand) -> None:
    facing, back, thick = _small_body(at)
    x, h = at.x, at.height
    head_x, head_y, r = x + facing * h * 0.48, at.y - h * 0.82, h * 0.25
    snout_x, ear_x = head_x + facing * r, head_x - facing * r * 0.8
    at.ellipse(snout_x - r * 0.6, head_y - r * 0.2, snout_x + r * 0.6, head_y + r * 0.8)
    at.ellipse(head_x - r, head_y - r, head_x + r, head_y + r)
    at.pen.ellipse((ear_x - r * 0.4, head_y - r * 0.7, ear_x + r * 0.4, head_y + r * 0.9), fill=at.outline)
    tail = (x - facing * h * 0.44, back + 4, x - facing * h * 0.62, back - h * 0.3)
    at.pen.line(tail, fill=at.outline, width=thick)


def _cat(at: Stand) -> None:
    facing, back, thick = _small_body(at)
    x, h = at.x, at.height
    head_x, head_y, r = x + facing * h * 0.48, at.y - h * 0.82, h * 0.25
    for side in (-1, 1):
        at.polygon(
            (head_x + side * r * 0.95, head_y),
            (head_x + side * r * 0.8, head_y - r * 1.8),
            (head_x + side * r * 0.05, head_y - r * 0.7),
        )
    at.ellipse(head_x - r, head_y - r, head_x + r, head_y + r)
    tail = (
        (x - facing * h * 0.42, back + 6),
        (x - facing * h * 0.72, back - h * 0.1),
        (x - facing * h * 0.66, back - h * 0.5),
    )
    at.pen.line(tail, fill=at.outline, width=thick, joint="curve")
    for side in (-1, 1):
        eye_x = head_x + side * r * 0.4
        at.pen.rectangle((eye_x - 2, head_y - 3, eye_x + 2, head_y + 2), fill=(120, 200, 90))


def _small_body(at: Stand) -> tuple[int, float, int]:
    """Trunk and legs of a dog or a cat; returns the side it faces (-1 or 1), its back's y and a leg's width."""
    x, y, h = at.x, at.y, at.height
    facing = at.rng.choice((-1, 1))
    thick = max(2, int(h * 0.12))
    back, belly = y - h * 0.68, y - h * 0.28
    at.legs((-0.36 * h, -0.22 * h, 0.2 * h, 0.34 * h), belly - 4, thick)
    at.rounded(x - h * 0.45, back, x + h * 0.45, belly, radius=h * 0.15)
    return facing, back, thick


def _ball(at: Stand) -> None:
    x, y, r = at.x, at.y, at.height * 0.5
    at.ellipse(x - r, y - 2 * r, x + r, y, width=LINE)
    at.pen.arc((x - r * 0.5, y - 2 * r, x + r * 1.6, y), 110, 250, fill=at.outline, width=LINE)


def _umbrella(at: Stand) -> None:
    x, y, h = at.x, at.y, at.height
    half, top = h * 0.72, y - h * 1.35
    at.pen.line((x, top, x, y), fill=tinted((190, 170, 140), at.tint), width=max(3, int(h * 0.07)))
    at.pen.pieslice((x - half, top, x + half, top + h * 1.1), 180, 360, fill=at.fill, outline=at.outline)
    for rib in (-0.33, 0.33):
        at.pen.line((x, top, x + rib * half, top + h * 0.54), fill=at.outline, width=LINE)


def _tent(at: Stand) -> None:
    x, y, h = at.x, at.y, at.height
    half, top = h * 0.75, y - h * 1.05
    at.polygon((x - half, y), (x, top), (x + half, y))
    entrance = ((x - half * 0.26, y), (x, top + h * 0.3), (x + half * 0.26, y))
    at.pen.polygon(entrance, fill=shade(at.fill, 0.45))


def _car(at: Stand) -> None:
    x, y, h = at.x, at.y, at.height
    half, top = h * 0.85, y - h * 0.85
    bonnet, sill, glass = y - h * 0.5, y - h * 0.52, top + 5
    at.polygon((x - half * 0.6, bonnet), (x - half * 0.35, top), (x + half * 0.35, top), (x + half * 0.6, bonnet))
    window = ((x - half * 0.42, sill), (x - half * 0.28, glass), (x + half * 0.28, glass), (x + half * 0.42, sill))
    at.pen.polygon(window, fill=tinted((170, 215, 235), at.tint))
    at.rounded(x - half, y - h * 0.55, x + half, y - h * 0.14, radius=h * 0.1)
    for side in (-0.55, 0.55):
        wheel = (x + side * half - h * 0.19, y - h * 0.36, x + side * half + h * 0.19, y)
        at.pen.ellipse(wheel, fill=(20, 20, 22), outline=(170, 170, 170))


def _chair(at: Stand) -> None:
    x, y, h = at.x, at.y, at.height
    facing = at.rng.choice((-1, 1))
    half, thick = h * 0.38, max(3, int(h * 0.1))
    seat = y - h * 0.5
    at.legs((-half, half), seat, thick)
    at.rectangle(x - half - thick / 2, seat - thick / 2, x + half + thick / 2, seat + thick)
    back_x = x + facing * half
    at.rectangle(back_x - thick * 0.7, y - h * 1.2, back_x + thick * 0.7, seat)


_FIGURES: dict[str, Callable[[Stand], None]] = {
    "woman": _woman,
    "man": _man,
    "child": _child,
    "dog": _dog,
    "cat": _cat,
    "horse": _horse,
    "rabbit": _rabbit,
    "ball": _ball,
    "umbrella": _umbrella,
    "tent": _tent,
    "car": _car,
    "chair": _chair,
}
