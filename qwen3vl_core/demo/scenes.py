"""The content of a drawn scene, sampled at random: the specification of a picture and its two captions.

Everything follows from a seed. One in sixteen combinations of main kind, colour, place and time is held out: it never
appears in the training split, so accuracy on the held-out split is on combinations that no training picture showed.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from qwen3vl_core.errors import RequestError

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

SIZE = 128
"""Width and height of every picture, pixels."""

# The order of every table below decides what a seed draws; a new entry changes every picture.
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "blue": (40, 90, 220),
    "green": (30, 150, 60),
    "yellow": (245, 215, 40),
    "purple": (140, 60, 180),
    "orange": (245, 135, 25),
    "white": (245, 245, 245),
    "black": (28, 28, 32),
}
FURS: dict[str, Colour] = {
    "brown": (130, 80, 40),
    "black": (30, 30, 34),
    "white": (245, 242, 235),
    "gray": (140, 140, 145),
}
PLACES = ("beach", "field", "street", "snow", "desert", "forest")
TIMES = ("day", "sunset", "night")
PEOPLE = ("woman", "man", "child")
ANIMALS = ("dog", "cat", "horse", "rabbit")
THINGS = ("ball", "umbrella", "tent", "car", "chair")
FLYERS = ("birds", "balloons", "kites")
POSES = ("sitting", "standing")
SIDES = ("left", "right")
SPLITS = ("train", "heldout")

HELD_OUT_ONE_IN = 16


@dataclass(frozen=True)
class Scene:
    """The content of one picture: what stands in it, where, when, and what flies above."""

    place: str
    """One of PLACES."""
    time: str
    """One of TIMES."""
    main: str
    """Kind of the main figure: one of PEOPLE, ANIMALS or THINGS."""
    colour: str
    """The main figure's colour, of its outfit for a person: a name in FURS for an animal, in COLOURS otherwise."""
    count: int = 1
    """How many main figures, 1 to 3; more than one only for animals and things."""
    pose: str | None = None
    """One of POSES for a person, None otherwise."""
    companion: str | None = None
    """Kind of a second figure, one of ANIMALS or THINGS, if there is one; then `count` is 1."""
    companion_colour: str | None = None
    side: str | None = None
    """Where the companion stands, seen from the main figure: one of SIDES."""
    sky: str | None = None
    """What flies above, one of FLYERS, if anything does."""
    sky_count: int = 0
    """How many fly, 0 to 4."""
    sky_colour: str | None = None
    """A name in COLOURS, None for birds."""


def palette(kind: str) -> dict[str, Colour]:
    """The colours that a figure of this kind comes in."""
    return FURS if kind in ANIMALS else COLOURS


def sample_scene(rng: random.Random) -> Scene:
    """A scene of either split, drawn at random from `rng`."""
    place, time = rng.choice(PLACES), rng.choice(TIMES)
    kinds = rng.choices((PEOPLE, ANIMALS, THINGS), (4, 3, 3))[0]
    main = rng.choice(kinds)
    colour = rng.choice(list(palette(main)))
    is_person = kinds is PEOPLE
    pose = rng.choice(POSES) if is_person else None
    count = 1 if is_person else rng.choices((1, 2, 3), (5, 3, 3))[0]

    companion = companion_colour = side = None
    if count == 1 and rng.random() < (0.8 if is_person else 0.6):
        partners = ANIMALS if is_person and rng.random() < 0.6 else THINGS
        companion = rng.choice([kind for kind in partners if kind != main])
        companion_colour = rng.choice(list(palette(companion)))
        # of two things nothing in the picture says which is the main one, so the left one is
        side = "right" if kinds is THINGS else rng.choice(SIDES)

    sky, sky_count, sky_colour = None, 0, None
    if rng.random() < 0.6:
        sky = rng.choice(FLYERS)
        sky_count = rng.choice((1, 2, 3, 4))
        sky_colour = rng.choice(list(COLOURS)) if sky != "birds" else None

    return Scene(
        place=place,
        time=time,
        main=main,
        colour=colour,
        count=count,
        pose=pose,
        companion=companion,
        companion_colour=companion_colour,
        side=side,
        sky=sky,
        sky_count=sky_count,
        sky_colour=sky_colour,
    )


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination of main kind, colour, place and time is kept out of training."""
    combination = f"{scene.main}/{scene.colour}/{scene.place}/{scene.time}"
    return zlib.crc32(combination.encode()) % HELD_OUT_ONE_IN == 0


def sample_split(rng: random.Random, split: str) -> Scene:
    """A scene of one split, one of SPLITS."""
    if split not in SPLITS:
        raise RequestError(f"split is {split!r}; scenes come from {' and '.join(SPLITS)}; choose one of these")
    while True:
        scene = sample_scene(rng)
        if is_held_out(scene) == (split == "heldout"):
            return scene
