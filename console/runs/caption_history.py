"""Captions of the same pictures that a finetune writes as it learns. Blocking; imports no Textual."""

from __future__ import annotations

from dataclasses import dataclass

from console.runs.store import Run
from console.runs.tail import JsonlTail
from qwen3vl_core.run_record import SAMPLES, read_sample


@dataclass(frozen=True)
class CaptionHistory:
    """One picture's captions during a run: (step, text), in ascending order."""

    image: str
    prompt: str
    captions: tuple[tuple[int | None, str], ...]


class HistoryFeed:
    """Reads the captions of one run; keeps what it has read."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._tail = JsonlTail(run.path / SAMPLES)
        self._stories: dict[str, CaptionHistory] = {}

    def read(self) -> tuple[CaptionHistory, ...]:
        """Captions written during the run, whole again for a picture when one comes for it."""
        rows = self._tail.read()
        if self._tail.replaced:
            self._stories.clear()
        for row in rows:
            written = read_sample(row)
            if written is None:
                continue
            image, text, step = written.image, written.text, written.step
            known = self._stories.get(image)
            prompt = written.prompt if written.prompt is not None else known.prompt if known else ""
            # a resumed run that goes back takes the place of the captions after that step
            kept = tuple(c for c in known.captions if step is not None and c[0] is not None and c[0] < step) if known else ()
            self._stories[image] = CaptionHistory(image, prompt, (*kept, (step, text)))
        return tuple(self._stories.values())
