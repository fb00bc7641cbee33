"""A scene as a picture: landscape, what flies above, and the figures with their places on the ground.

Drawn on a canvas of CANVAS x CANVAS pixels and averaged down to SIZE x SIZE. Lengths and positions are canvas pixels, y
grows downwards. The order of the random numbers is part of the picture: it must not change.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from qwen3vl_core.demo.figures import CANVAS, LINE, SCALE, Stand, Tint, draw_figure, outline_of, shade, tinted
from qwen3vl_core.demo.scenes import COLOURS, Colour, Scene, palette

# colours of the sky at the top and at the horizon
_SKIES: dict[str, tuple[Colour, Colour]] = {
    "day": ((95, 165, 235), (200, 228, 250)),
    "sunset": ((110, 70, 140), (255, 165, 85)),
    "night": ((8, 10, 32), (34, 40, 82)),
}
_GROUNDS: dict[str, Colour] = {
    "beach": (228, 205, 150),
    "field": (96, 168, 72),
    "street": (105, 105, 110),
    "snow": (236, 242, 250),
    "desert": (214, 150, 88),
    "forest": (70, 110, 55),
}
_BUILDINGS: tuple[Colour, ...] = ((150, 120, 110), (125, 130, 150), (165, 155, 140), (110, 115, 120))
_FLOWERS: tuple[Colour, ...] = ((250, 240, 120), (255, 255, 255), (240, 150, 180), (60, 130, 50))

_LANDSCAPE_TINTS: dict[str, Tint] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 214 / 255, 188 / 255),
    "night": (117 / 255, 122 / 255, 158 / 255),
}
# figures keep more light than the landscape, so that their colours can be told at night
_FIGURE_TINTS: dict[str, Tint] = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.84, 0.74), "night": (0.75, 0.75, 0.8)}
_FIGURE_SHADES = {"day": 1.0, "sunset": 0.95, "night": 0.8}

_SEA = int(0.1 * CANVAS)
"""Height of the strip of sea between a beach and the horizon."""

# a figure's height, and half the width that it takes on the ground, as shares of the canvas at scale 1
_HEIGHTS = {"woman": 0.42, "man": 0.43, "child": 0.29, "dog": 0.19, "cat": 0.17, "horse": 0.25, "rabbit": 0.17}
_HEIGHTS |= {"ball": 0.14, "umbrella": 0.24, "tent": 0.24, "car": 0.22, "chair": 0.2}
_HALF_WIDTHS = {"woman": 0.12, "man": 0.11, "child": 0.1, "dog": 0.15, "cat": 0.14, "horse": 0.22, "rabbit": 0.1}
_HALF_WIDTHS |= {"ball": 0.08, "umbrella": 0.18, "tent": 0.19, "car": 0.19, "chair": 0.1}


def draw(scene: Scene, seed: int) -> Image.Image:
    """The scene's picture, SIZE x SIZE, RGB. The seed decides what the scene leaves open: positions, sizes, shades."""
    rng = random.Random(seed)
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    _draw_landscape(canvas, pen, scene, rng)
    if scene.sky:
        _draw_flyers(pen, scene, rng)
    if scene.count > 1:
        _draw_row(pen, scene, rng)
    else:
        _draw_one(pen, scene, rng)
    return canvas.reduce(SCALE)


@dataclass(frozen=True)
class _View:
    """What every part of a landscape is drawn with."""

    pen: ImageDraw.ImageDraw
    horizon: int
    """y where the sky ends."""
    ground: Colour
    tint: Tint
    time: str
    rng: random.Random


def _draw_landscape(canvas: Image.Image, pen: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    horizon = int(CANVAS * rng.uniform(0.47, 0.55))
    canvas.paste(_sky(scene.time, horizon, brightness=rng.uniform(0.93, 1.07)), (0, 0))
    tint = _LANDSCAPE_TINTS[scene.time]
    ground = shade(tinted(_GROUNDS[scene.place], tint), rng.uniform(0.94, 1.06))
    view = _View(pen, horizon, ground, tint, scene.time, rng)
    _LIGHTS[scene.time](view)
    if scene.place in _FAR:
        _FAR[scene.place](view)
    shore = horizon + _SEA if scene.place == "beach" else horizon
    pen.rectangle((0, shore, CANVAS, CANVAS), fill=ground)
    if scene.place in _NEAR:
        _NEAR[scene.place](view)


def _sky(time: str, height: int, brightness: float) -> Image.Image:
    top, bottom = (np.array(colour) for colour in _SKIES[time])
    column = np.linspace(0, 1, height)[:, None] * (bottom - top) + top
    column = np.clip(column * brightness, 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(column[:, None, :], CANVAS, axis=1))


def _day(view: _View) -> None:
    x, y, r = view.rng.uniform(0.08, 0.92) * CANVAS, view.rng.uniform(0.07, 0.16) * CANVAS, 13
    view.pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 130))


def _sunset(view: _View) -> None:
    # the ground, drawn later, hides the lower half
    x, y, r = view.rng.uniform(0.15, 0.85) * CANVAS, view.horizon, 26
    view.pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 225, 120))


def _night(view: _View) -> None:
    for _ in range(26):
        x, y = view.rng.uniform(0, CANVAS), view.rng.uniform(0, view.horizon * 0.8)
        view.pen.rectangle((x, y, x + 1, y + 1), fill=(230, 230, 240))
    x, y, r = view.rng.uniform(0.1, 0.9) * CANVAS, view.rng.uniform(0.08, 0.16) * CANVAS, 13
    view.pen.ellipse((x - r, y - r, x + r, y + r), fill=(240, 240, 215))
    # a disc in the sky's colour leaves a crescent
    cover = (x - r * 0.3, y - r * 1.1, x + r * 1.5, y + r * 0.7)
    view.pen.ellipse(cover, fill=shade(_SKIES["night"][0], 1.5))


def _sea(view: _View) -> None:
    water = tinted((150, 105, 140) if view.time == "sunset" else (45, 125, 195), view.tint)
    view.pen.rectangle((0, view.horizon, CANVAS, view.horizon + _SEA), fill=water)
    for wave in range(3):
        y = view.horizon + 6 + wave * 8
        left = view.rng.uniform(0, CANVAS * 0.6)
        view.pen.line((left, y, left + CANVAS * 0.3, y), fill=shade(water, 1.35), width=LINE)


def _surf(view: _View) -> None:
    y = view.horizon + _SEA
    view.pen.line((0, y, CANVAS, y), fill=tinted((255, 255, 255), view.tint), width=2 * LINE)


def _mountains(view: _View) -> None:
    rng, base = view.rng, view.horizon
    rock, snow = tinted((130, 142, 165), view.tint), tinted((245, 248, 255), view.tint)
    for _ in range(4):
        x, w, h = rng.uniform(0, CANVAS), rng.uniform(0.2, 0.4) * CANVAS, rng.uniform(0.14, 0.28) * CANVAS
        view.pen.polygon(((x - w, base), (x, base - h), (x + w, base)), fill=rock)
        edge = base - h * 0.7
        view.pen.polygon(((x - w * 0.3, edge), (x, base - h), (x + w * 0.3, edge)), fill=snow)


def _buildings(view: _View) -> None:
    rng, base = view.rng, view.horizon
    x = -10.0
    while x < CANVAS:
        w, h = rng.uniform(0.1, 0.2) * CANVAS, rng.uniform(0.12, 0.34) * CANVAS
        wall = tinted(rng.choice(_BUILDINGS), view.tint)
        view.pen.rectangle((x, base - h, x + w, base), fill=wall)
        window = (255, 230, 130) if view.time == "night" else shade(wall, 0.65)
        for top in range(int(base - h) + 8, base - 6, 14):
            for left in range(int(x) + 5, int(x + w) - 6, 12):
                view.pen.rectangle((left, top, left + 4, top + 6), fill=window)
        x += w + 2


def _dunes(view: _View) -> None:
    rng, y = view.rng, view.horizon
    for _ in range(3):
        x, w, h = rng.uniform(0, CANVAS), rng.uniform(0.3, 0.5) * CANVAS, rng.uniform(0.06, 0.13) * CANVAS
        view.pen.ellipse((x - w, y - h, x + w, y + h), fill=shade(view.ground, 0.9))


def _pines(view: _View) -> None:
    rng, y = view.rng, view.horizon
    for _ in range(11):
        x, h, w = rng.uniform(0, CANVAS), rng.uniform(0.2, 0.34) * CANVAS, rng.uniform(0.06, 0.1) * CANVAS
        needles = shade(tinted((28, 92, 52), view.tint), rng.uniform(0.8, 1.15))
        view.pen.rectangle((x - 3, y, x + 3, y + 8), fill=tinted((90, 60, 40), view.tint))
        for tier in range(3):
            base, half = y - h * tier * 0.28, w * (1 - tier * 0.22)
            view.pen.polygon(((x - half, base), (x, base - h * 0.5), (x + half, base)), fill=needles)


def _meadow(view: _View) -> None:
    for _ in range(30):
        x, y = view.rng.uniform(0, CANVAS), view.rng.uniform(view.horizon, CANVAS)
        view.pen.rectangle((x, y, x + 3, y + 3), fill=tinted(view.rng.choice(_FLOWERS), view.tint))


def _road(view: _View) -> None:
    pavement = (0, view.horizon, CANVAS, view.horizon + 0.07 * CANVAS)
    view.pen.rectangle(pavement, fill=tinted((165, 162, 158), view.tint))
    y, start = CANVAS * 0.86, view.rng.uniform(0, 40)
    for dash in range(-1, 6):
        x = dash * 56 + start
        view.pen.rectangle((x, y, x + 28, y + 6), fill=tinted((235, 230, 200), view.tint))


def _cacti(view: _View) -> None:
    rng, green = view.rng, tinted((60, 125, 70), view.tint)
    for _ in range(2):
        x, y = rng.uniform(0.05, 0.95) * CANVAS, view.horizon + rng.uniform(0, 0.1) * CANVAS
        h = rng.uniform(0.1, 0.17) * CANVAS
        view.pen.rectangle((x - 4, y - h, x + 4, y), fill=green)
        for side, tip, fork in ((-14, 0.8, 0.5), (14, 0.7, 0.4)):
            arm = (x + side, y - h * tip, x + side, y - h * fork, x, y - h * fork)
            view.pen.line(arm, fill=green, width=6)


_Part = Callable[[_View], None]
_LIGHTS: dict[str, _Part] = {"day": _day, "sunset": _sunset, "night": _night}
# behind the ground, drawn before it; on the ground, drawn after it
_FAR: dict[str, _Part] = {"beach": _sea, "snow": _mountains, "street": _buildings, "desert": _dunes}
_NEAR: dict[str, _Part] = {"beach": _surf, "forest": _pines, "field": _meadow, "street": _road, "desert": _cacti}


def _draw_flyers(pen: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    """Birds, balloons or kites in the top third, each in a slot of its own so that they can be counted."""
    for slot in rng.sample(range(5), scene.sky_count):
        x = (slot + 0.5 + rng.uniform(-0.18, 0.18)) * CANVAS / 5
        y = rng.uniform(0.1, 0.27) * CANVAS
        if scene.sky == "birds":
            _bird(pen, x, y, rng.uniform(8, 10), (235, 235, 240) if scene.time == "night" else (35, 35, 45))
            continue
        assert scene.sky_colour is not None
        fill = shade(COLOURS[scene.sky_colour], _FIGURE_SHADES[scene.time])
        if scene.sky == "balloons":
            _balloon(pen, x, y, rng.uniform(14, 17), rng.uniform(-3, 3), fill)
        else:
            _kite(pen, x, y, rng.uniform(16, 19), fill)


def _bird(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    wings = (x - 2 * r, y - r * 0.9, x - r * 0.6, y - r * 0.6, x, y + r * 0.4, x + r * 0.6, y - r * 0.6)
    pen.line((*wings, x + 2 * r, y - r * 0.9), fill=colour, width=5, joint="curve")


def _balloon(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, drift: float, fill: Colour) -> None:
    outline = outline_of(fill)
    pen.line((x, y + r, x + drift, y + r * 2.3), fill=outline, width=LINE)
    pen.ellipse((x - r * 0.85, y - r, x + r * 0.85, y + r), fill=fill, outline=outline, width=LINE)


def _kite(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: Colour) -> None:
    outline = outline_of(fill)
    pen.line((x, y + r, x - r * 0.5, y + r * 1.5, x + r * 0.1, y + r * 2), fill=outline, width=LINE)
    pen.polygon(((x, y - r), (x + r * 0.8, y), (x, y + r), (x - r * 0.8, y)), fill=fill, outline=outline)
    pen.line((x, y - r, x, y + r), fill=outline, width=LINE)
    pen.line((x - r * 0.8, y, x + r * 0.8, y), fill=outline, width=LINE)


def _draw_one(pen: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    """The main figure alone, or with its companion beside it and a little nearer. Positions: shares of the canvas."""
    scale = rng.uniform(0.95, 1.15)
    half = _HALF_WIDTHS[scene.main] * scale
    if scene.companion is None:
        x = rng.uniform(half + 0.05, 0.95 - half)
        _put(pen, scene, scene.main, scene.colour, x, rng.uniform(0.84, 0.92), scale, rng)
        return
    other, other_scale = scene.companion, rng.uniform(0.85, 1.0)
    other_half = _HALF_WIDTHS[other] * other_scale
    gap = rng.uniform(0.02, 0.07)
    left = rng.uniform(0.02, max(0.03, 0.98 - (2 * half + 2 * other_half + gap)))
    if scene.side == "right":
        x, other_x = left + half, left + 2 * half + gap + other_half
    else:
        x, other_x = left + 2 * other_half + gap + half, left + other_half
    _put(pen, scene, scene.main, scene.colour, x, rng.uniform(0.82, 0.88), scale, rng)
    assert scene.companion_colour is not None
    _put(pen, scene, other, scene.companion_colour, other_x, rng.uniform(0.86, 0.94), other_scale, rng)


def _draw_row(pen: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    """Two or three main figures side by side, small enough to fit. Positions: shares of the canvas."""
    count, half = scene.count, _HALF_WIDTHS[scene.main]
    scale = min(1.0, 0.92 / (count * 2 * half + 0.03 * count)) * rng.uniform(0.9, 1.0)
    width = 2 * half * scale + 0.03
    left = rng.uniform(0.02, max(0.03, 0.98 - count * width))
    for place in range(count):
        x = left + (place + 0.5) * width
        _put(pen, scene, scene.main, scene.colour, x, rng.uniform(0.74, 0.93), scale, rng)


def _put(pen: ImageDraw.ImageDraw, scene: Scene, kind: str, colour: str, x: float, y: float, scale: float, rng: random.Random) -> None:
    """One figure and its shadow; x and y of its foot are shares of the canvas, its colour is a little off the named."""
    x, y, half = x * CANVAS, y * CANVAS, _HALF_WIDTHS[kind] * CANVAS * scale
    named = shade(palette(kind)[colour], _FIGURE_SHADES[scene.time])
    red, green, blue = (max(0, min(255, channel + rng.randint(-8, 8))) for channel in named)
    pen.ellipse((x - half, y - 4, x + half, y + 4), fill=(16, 16, 22) if scene.time == "night" else (60, 60, 60))
    height, tint = _HEIGHTS[kind] * CANVAS * scale, _FIGURE_TINTS[scene.time]
    draw_figure(kind, Stand(pen, x, y, height, (red, green, blue), tint, rng, scene.pose))
