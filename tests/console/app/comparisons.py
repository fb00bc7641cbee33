"""Helpers for comparisons on screen 4."""

from __future__ import annotations

import json

from tests.console.app.driving import looked, press

LONG = "Of course. The picture shows a meadow with three red horses and a dog."
SHORT = "Three red horses and a dog in a meadow."


def rows_of(pictures, model, text, done=True):
    return "".join(
        json.dumps({"v": 1, "image": str(p), "prompt": "What is it?", "model": model, "text": text, "seconds": 1.0, "done": done}) + "\n"
        for p in pictures
    )


async def at_compare(pilot):
    await press(pilot, "4")
    await looked(pilot)
    return pilot.app.screen
