"""Checkpoint folders with digests, and runs with a mirror."""

from __future__ import annotations

import json
import random
from pathlib import Path

from qwen3vl_core import file_digests

# writes checkpoint folders in a job as a training does, without torch: files, digests, name, tracker, event
CHECKPOINTS = """
sys.path.insert(0, os.getcwd())
from tests.console.runs.mirrored import checkpoint
def save(step, size=3000):
    checkpoint(here / 'checkpoints', step, size)
    event('save', step)
"""


def checkpoint(folder: Path, step: int, size: int = 3000, seed: int = 0) -> Path:
    """A checkpoint of `size` bytes, named when it is whole; the tracker then names it."""
    made = folder / f"iter_{step:07d}"
    building = folder / f"{made.name}.1.tmp"
    building.mkdir(parents=True)
    for name in (".metadata", "common.pt", "extra.json", "metadata.json", "__0_0.distcp"):
        content = random.Random(f"{seed} {step} {name}").randbytes(size if name.endswith("distcp") else 100)
        (building / name).write_bytes(b"{}" if name == "extra.json" else content)
    digests = file_digests.of_files(building, sorted(path.name for path in building.iterdir()))
    (building / file_digests.NAME).write_text(file_digests.written(digests))
    (folder / "config.json").write_text(json.dumps({"a": 1}))
    building.rename(made)
    (folder / "latest_checkpointed_iteration.txt").write_text(f"{step}\n")
    return made


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
