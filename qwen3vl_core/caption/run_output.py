"""The files that a comparison recorded as a run writes into its folder while it runs.

First `comparison.json`: models by name, prompt, sampling, notes, and the pictures with their references, in order.
Then `samples.jsonl`: rows for each caption while it is generated (`done` false), and one at its end. Imports no torch.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from qwen3vl_core.caption.comparison import Comparison
from qwen3vl_core.caption.pictures import Picture
from qwen3vl_core.errors import WorkError
from qwen3vl_core.files import write_text
from qwen3vl_core.run_record import COMPARISON, RUN_VARIABLE, SAMPLES, VERSION, sample_row

ROW_SECONDS = 0.5
"""Seconds between two rows of a caption in progress, at least."""


class CaptionRows:
    """Writes the files of a comparison into the folder of its run; writes nothing when there is no run."""

    def __init__(self) -> None:
        folder = os.environ.get(RUN_VARIABLE)
        self.folder = Path(folder) if folder else None
        self._written_at: dict[tuple[str, str], float] = {}

    def begin(self, comparison: Comparison, pictures: list[Picture]) -> None:
        """Write `comparison.json`. A resumed run starts over: its earlier captions are removed."""
        if self.folder is None:
            return
        record = {
            "v": VERSION, "prompt": comparison.prompt, "models": {name: asdict(model) for name, model in comparison.models.items()},
            "sampling": comparison.sampling, "notes": comparison.notes,
            "pictures": [{"image": p.name, "references": list(p.references)} for p in pictures],
        }  # fmt: skip
        try:
            (self.folder / SAMPLES).unlink(missing_ok=True)
            write_text(self.folder / COMPARISON, json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise _unwritable(self.folder / COMPARISON, error) from error

    def write(self, image: str, prompt: str, model: str, text: str, seconds: float, done: bool, whole: bool = True) -> None:
        """Append a row with the caption so far: when it is done, and before that at most every `ROW_SECONDS`."""
        now = time.monotonic()
        if self.folder is None or (not done and now - self._written_at.get((model, image), 0.0) < ROW_SECONDS):
            return
        self._written_at[model, image] = now
        row = sample_row(image, prompt, model, text, seconds, done=done, whole=whole)
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        try:
            with open(self.folder / SAMPLES, "ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            raise _unwritable(self.folder / SAMPLES, error) from error


def _unwritable(file: Path, error: OSError) -> WorkError:
    return WorkError(f"{file}: cannot be written ({error.strerror}); fix that and compare again")
