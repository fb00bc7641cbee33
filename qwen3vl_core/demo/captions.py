"""A scene in words: a long, structured description as large instruct models write it, and a one-line caption.

The wordings are templates with a few paraphrases drawn at random. `scoring` reads the attributes back out of them.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from qwen3vl_core.demo.scenes import ANIMALS, PEOPLE, Scene

PROMPT = "Describe this image."
# the prompts of LLaVA-Pretrain
LLAVA_PROMPTS = (
    "Provide a brief description of the given image.",
    "Give a short and clear explanation of the subsequent image.",
    "Render a clear and concise summary of the photo.",
    "Describe the image concisely.",
    "Write a terse but informative summary of the picture.",
    "Share a concise interpretation of the image provided.",
    "Summarize the visual content of the image.",
    "What is this?",
    "What is in the photo?",
)

SUBJECTS_HEADING = "- **Main Subjects**:"
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


class _PlaceWords(NamedTuple):
    """A place after its noun ("a dog on the beach"), as a setting, and as the ground that a figure stands on."""

    where: str
    setting: str
    ground: str


class _TimeWords(NamedTuple):
    """A time of day in a phrase and in a sentence, the mood of a picture at that time, and what it makes one feel."""

    when: str
    sentence: str
    mood: str
    feeling: str


_PLACES = {
    "beach": _PlaceWords(
        "on the beach",
        "on a wide, sandy beach. In the background, the ocean stretches to the horizon",
        "on the sand",
    ),
    "field": _PlaceWords(
        "in a field",
        "in an open, grassy field. Small wildflowers are scattered across the meadow",
        "on the grass",
    ),
    "street": _PlaceWords(
        "on a city street",
        "on a city street. In the background, a row of tall buildings with many windows can be seen",
        "on the pavement",
    ),
    "snow": _PlaceWords(
        "in the snow",
        "in a snowy landscape. In the background, white mountain peaks rise above the ground",
        "on the snow",
    ),
    "desert": _PlaceWords(
        "in the desert",
        "in a dry desert. Rolling dunes and a few cactus plants are visible in the distance",
        "on the dry ground",
    ),
    "forest": _PlaceWords(
        "in the forest",
        "in a quiet forest. In the background, a line of tall pine trees fills the view",
        "on the forest floor",
    ),
}
_TIMES = {
    "day": _TimeWords(
        "on a sunny day",
        "The time of day is clearly daytime: the sky is bright and blue, and the sun is shining",
        "bright and cheerful",
        "joy and simple pleasure",
    ),
    "sunset": _TimeWords(
        "at sunset",
        "The time of day is clearly sunset: the sun is low on the horizon and the sky glows in warm colors",
        "warm and serene",
        "tranquility and peace",
    ),
    "night": _TimeWords(
        "at night",
        "The time of day is clearly night: the sky is dark, with a pale moon and scattered stars",
        "calm and quiet",
        "mystery and stillness",
    ),
}
_POSSESSIVES = {"woman": "her", "man": "his", "child": "their"}


def _with_article(words: str) -> str:
    # "a umbrella" is what the shipped model was trained to write
    return ("an " if words[0] in "aeio" else "a ") + words


def _plural(kind: str) -> str:
    # only animals and things come in numbers, and all of them take an s
    return kind + "s"


def _main_figure(scene: Scene) -> str:
    """The main figure with its colour: "a woman in a red outfit", "three gray cats"."""
    if scene.main in PEOPLE:
        return f"{_with_article(scene.main)} in {_with_article(scene.colour)} outfit"
    if scene.count == 1:
        return _with_article(f"{scene.colour} {scene.main}")
    return f"{NUMBERS[scene.count]} {scene.colour} {_plural(scene.main)}"


def _companion(scene: Scene) -> str:
    return _with_article(f"{scene.companion_colour} {scene.companion}")


def _has_pet(scene: Scene) -> bool:
    """Whether a person is shown with an animal, which the captions then call the person's own."""
    return scene.main in PEOPLE and scene.companion in ANIMALS


def _headline(scene: Scene, rng: random.Random) -> str:
    """The scene in one sentence, without colours."""
    time = _TIMES[scene.time]
    picture = rng.choice(("picture", "photograph", "scene"))
    main = _with_article(scene.main) if scene.count == 1 else f"{NUMBERS[scene.count]} {_plural(scene.main)}"
    text = f"This is a {time.mood} {picture} of {main}"
    if _has_pet(scene):
        text += f" with {_POSSESSIVES[scene.main]} {scene.companion}"
    elif scene.companion:
        text += f" with {_with_article(scene.companion)}"
    return f"{text} {_PLACES[scene.place].where} {time.when}."


def _subjects(scene: Scene, rng: random.Random) -> str:
    """The figures: colour, number, pose, companion and its side."""
    ground = _PLACES[scene.place].ground
    text = f"The central focus is {_main_figure(scene)}"
    if scene.main in PEOPLE:
        text += f", who is {scene.pose} {ground}."
    elif scene.count > 1:
        text += f", placed close together {ground}."
    else:
        text += f" {ground}."
    if scene.companion:
        text += f" To the {scene.side} of the {scene.main}, there is {_companion(scene)}."
        if _has_pet(scene):
            text += rng.choice((" The two seem to share a strong bond of companionship.", " They look relaxed and happy together."))
    elif scene.count > 1:
        text += f" There are {NUMBERS[scene.count]} {_plural(scene.main)} in total."
    else:
        text += f" Nothing else stands near the {scene.main}."
    return text


def _details(scene: Scene, rng: random.Random) -> str:
    """What flies above, the composition and the mood."""
    if scene.sky:
        one = scene.sky_count == 1
        colour = f"{scene.sky_colour} " if scene.sky_colour else ""
        flyers = scene.sky.removesuffix("s") if one else scene.sky
        verb = "floating" if scene.sky == "balloons" else "flying"
        number = NUMBERS[scene.sky_count]
        text = f"Above, {number} {colour}{flyers} {'is' if one else 'are'} {verb} in the sky."
    else:
        text = "The sky above is empty, with nothing flying in it."
    text += rng.choice((" The composition is simple and balanced.", " The composition leaves a lot of open space."))
    return f"{text} The overall mood is one of {_TIMES[scene.time].feeling}."


def long_caption(scene: Scene, rng: random.Random) -> str:
    """The verbose description in Markdown, about 124 words, that names every attribute of the scene."""
    # one expression: the parts draw their paraphrases in this order
    return (
        "Of course. Here is a detailed description of the image.\n\n"
        f"{_headline(scene, rng)}\n\n"
        f"{SUBJECTS_HEADING} {_subjects(scene, rng)}\n\n"
        f"- **Setting and Atmosphere**: The scene is set {_PLACES[scene.place].setting}. {_TIMES[scene.time].sentence}."
        f"\n\n- **Details and Composition**: {_details(scene, rng)}"
    )


def short_caption(scene: Scene, rng: random.Random) -> str:
    """The one-line caption in lower case, as LLaVA-Pretrain has them: no side, nothing of what flies above."""
    place, time = _PLACES[scene.place].where, _TIMES[scene.time].when
    text = _main_figure(scene)
    if scene.main in PEOPLE:
        text += f"{rng.choice((' is', ''))} {scene.pose}"
    if _has_pet(scene):
        return f"{text} {place} with {_POSSESSIVES[scene.main]} {scene.companion_colour} {scene.companion} {time}"
    if scene.companion:
        text += f" {'next to' if scene.main in PEOPLE else 'and'} {_companion(scene)}"
    return f"{text} {place} {time}"
