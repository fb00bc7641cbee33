"""Which options may change when a run resumes from another run's checkpoint (`finetune --resume`) or its own (`runs resume`).

The optimizer's state, the weights and the position in the data are read into any layout. Random states belong to a rank in a layout:
in another layout they are seeded again, which matters only to LoRA's dropout. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3vl_core import limits
from qwen3vl_core.errors import RequestError
from qwen3vl_core.files import read_small
from qwen3vl_core.options import FinetuneOptions, options_of
from qwen3vl_core.problems import Problem
from qwen3vl_core.run_record import CHECKPOINTS, ITERATION, TRACKER, checkpoint_step

EXTRA = "extra.json"
ADAPTERS_KEY = "adapters"
# the checkpoint has the adapters, and optimizer state only for the parts that were trained
KEPT = ("init_adapter", "lora_rank", "lora_alpha", "lora_targets", "lora_vision", "freeze")
ORDER = ("train_data", "seed", "micro_batch_size", "global_batch_size", "seq_length", "packing")
"""Options that the order of the samples depends on: with another value the run's position in the data is meaningless."""


def step_folder(path: str) -> Path:
    """The folder `iter_…` of a checkpoint, given a run, its `checkpoints` or that folder. Raises RequestError if there is none."""
    folder = Path(path).expanduser()
    if (folder / CHECKPOINTS / TRACKER).is_file():
        folder /= CHECKPOINTS
    if (folder / TRACKER).is_file():
        word = read_small(folder / TRACKER, limits.RUN_FILE).decode("utf-8", "replace").strip()
        folder /= f"{ITERATION}{int(word):07d}" if re.fullmatch(r"\d{1,12}", word) else word
    if not (folder / ".metadata").is_file() or not (folder / EXTRA).is_file() or checkpoint_step(folder.name) is None:
        raise RequestError(Problem("resume-no-checkpoint", "resume", path))
    return folder


def adapters_of(folder: Path) -> dict[str, Any] | None:
    """The adapters of a checkpoint, as recorded by its run; None if the weights themselves were trained."""
    try:
        extra = json.loads(read_small(folder / EXTRA, limits.EXTRA_JSON))
    except (OSError, ValueError, RecursionError):
        raise RequestError(Problem("resume-no-checkpoint", "resume", str(folder))) from None
    note = extra.get(ADAPTERS_KEY) if isinstance(extra, dict) else None
    return note if isinstance(note, dict) else None


def completed(options: FinetuneOptions) -> FinetuneOptions:
    """The options with `resume` as the folder of one step, and `load` set: to the base model for adapters, else to the checkpoint.

    Raises RequestError for a checkpoint that is not a run's, or if adapters would have to be added or removed.
    """
    if not options.resume:
        return options
    folder = step_folder(options.resume)
    note = adapters_of(folder)
    if (note is None) != (not options.lora_rank):
        if note is None:
            raise RequestError(Problem("resume-adds-adapters", "lora_rank", options.lora_rank, {"checkpoint": str(folder)}))
        flags = f"--lora-rank {note.get('rank')} --lora-alpha {note.get('alpha')}"
        raise RequestError(Problem("resume-removes-adapters", "lora_rank", options.lora_rank, {"checkpoint": str(folder), "flags": flags}))
    load = options.load or (str(note.get("base", "")) if note is not None else str(folder))
    return dataclasses.replace(options, resume=str(folder), load=load)


def change_problems(before: Mapping[str, Any], changes: Mapping[str, Any], step: int) -> Iterator[Problem]:
    """Problems of resuming a run, whose last checkpoint is of `step`, with other values for some options."""
    for o in options_of(FinetuneOptions):
        if o.name not in changes or changes[o.name] == before.get(o.name, o.default):
            continue
        if o.name in KEPT:
            yield Problem("resume-keeps", o.name, changes[o.name], {"flag": o.flag, "before": before.get(o.name, o.default)})
        elif o.name in ORDER:
            yield Problem("resume-order", o.name, changes[o.name], {"flag": o.flag, "before": before.get(o.name, o.default)})
        elif o.name in ("load", "resume"):
            yield Problem("resume-own-checkpoint", o.name, changes[o.name], {"flag": o.flag})
        elif o.name == "train_iters" and isinstance(changes[o.name], int) and changes[o.name] <= step:
            yield Problem("resume-no-steps-left", o.name, changes[o.name], {"step": step})
