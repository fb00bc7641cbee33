"""Reads the attributes out of a caption of either style and compares them with the scene's."""

from __future__ import annotations

import re
from typing import Literal

from qwen3vl_core.demo.captions import NUMBERS, SUBJECTS_HEADING
from qwen3vl_core.demo.scenes import ANIMALS, COLOURS, FURS, PLACES, THINGS, Scene

SHORT_FIELDS = ("main", "colour", "count", "pose", "companion", "companion_colour", "place", "time")
"""Fields of Scene that a short caption names."""

LONG_FIELDS = (*SHORT_FIELDS, "side", "sky", "sky_count", "sky_colour")
"""Fields of Scene that a long caption names: all of them."""

_COUNTS = {word: number for number, word in NUMBERS.items()}
_NUMBER = "|".join(_COUNTS)
_COLOUR = "|".join(sorted({*COLOURS, *FURS}))
_KIND = "|".join(ANIMALS + THINGS)
_PERSON = re.compile(r"\b(woman|man|child) in an? (\w+) outfit")
_FIGURE = re.compile(rf"\b(a|an|her|his|their|{_NUMBER}) ({_COLOUR}) ({_KIND})s?\b")
_FLYING = re.compile(rf"Above, ({_NUMBER}) (?:({_COLOUR}) )?(bird|balloon|kite)s?\b")
_SIDE = re.compile(r"To the (left|right) of the")


def _first_named(words: tuple[str, ...], text: str) -> str | None:
    return next((word for word in words if word in text), None)


def parse(text: str) -> dict[str, str | int | None]:
    """Field of Scene -> its value in the caption; None (0 for `sky_count`) if the caption does not mention it.

    Accepts any text: a model's answer need not follow the templates.
    """
    attributes: dict[str, str | int | None] = dict.fromkeys(LONG_FIELDS)
    attributes["sky_count"] = 0
    # the long style's headline names the figures without their colours; the subjects follow
    body = text.split(SUBJECTS_HEADING, 1)[-1]
    figures = _FIGURE.findall(body)
    if person := _PERSON.search(body):
        attributes.update(main=person[1], colour=person[2], count=1, pose=_first_named(("sitting", "standing"), body))
    elif figures:
        number, colour, kind = figures.pop(0)
        attributes.update(main=kind, colour=colour, count=_COUNTS.get(number, 1))
    if figures:
        _, colour, kind = figures[0]
        attributes.update(companion=kind, companion_colour=colour)
    if side := _SIDE.search(body):
        attributes["side"] = side[1]
    if flying := _FLYING.search(body):
        attributes.update(sky=flying[3] + "s", sky_count=_COUNTS[flying[1]], sky_colour=flying[2])
    attributes["place"] = _first_named(PLACES, text)
    # "day" comes last: every long caption speaks of "the time of day"
    attributes["time"] = _first_named(("sunset", "night", "day"), text)
    return attributes


def score(text: str, scene: Scene, style: Literal["long", "short"] = "long") -> dict[str, bool]:
    """Field -> whether the caption is right, for the fields that the scene or the caption has.

    style is "long" or "short": which fields a caption of that style must name.
    """
    said = parse(text)
    verdicts = {}
    for field in LONG_FIELDS if style == "long" else SHORT_FIELDS:
        truth = getattr(scene, field)
        if truth or said[field]:
            verdicts[field] = said[field] == truth
    return verdicts
