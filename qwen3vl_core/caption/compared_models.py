"""The models of a comparison: checked before any is loaded, and given distinct names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3vl_core.caption.comparison import BASE, RESERVED, TUNED
from qwen3vl_core.caption.pictures import shown
from qwen3vl_core.checkpoint import torch_dist
from qwen3vl_core.checkpoint.model_source import ModelSource
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.data.media_limits import MediaLimits, limits_of
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError
from qwen3vl_core.options import CompareOptions
from qwen3vl_core.peft_folder import BaseMissing
from qwen3vl_core.run_record import CHECKPOINTS, ITERATION, TRACKER
from qwen3vl_core.sizes import size_of

DEMO_SIZE = "tiny"
DEMO_NOTE = (
    "{models} the bundled demo model or made from it (size tiny): it knows drawn scenes only; "
    "what it writes about a photograph is nonsense."
)
LONGEST_NAME = 28


@dataclass(frozen=True)
class ComparedModel:
    """One of the models, checked but not loaded."""

    name: str
    """Name in tables and reports."""
    option: str
    path: str
    """The checkpoint or folder to load."""
    size: str | None
    processor: ChatProcessor
    base: str | None = None
    """Beside which its adapters are read, if not the model that they name."""

    def __str__(self) -> str:
        return f"{self.option} {shown(self.path)}"


def open_models(options: CompareOptions) -> list[ComparedModel]:
    """All models, checked but not loaded. Raises RequestError."""
    limits = limits_of(options)
    models = [_open(BASE, "--base", options.base, limits), *(_open("", "--tuned", path, limits, options.base) for path in options.tuned)]
    names = [BASE, *tuned_names([Path(compared.path) for compared in models[1:]])]
    return [replace(compared, name=name) for name, compared in zip(names, models, strict=True)]


def _open(name: str, option: str, path: str, limits: MediaLimits, base: str | None = None) -> ComparedModel:
    """base: the model of adapters whose own is missing."""
    folder = Path(path).expanduser()
    checkpoint = torch_dist.find(folder) if folder.is_dir() else None
    if checkpoint and not (checkpoint.root / "config.json").is_file():
        raise RequestError(
            f"{option} {shown(path)}: no config.json beside {TRACKER}; copy config.json and the tokenizer files of the original model there"
        )
    source, beside = _source(path, option, base)
    source.check()
    # a running finetune moves its tracker: compare the checkpoint that was the latest when the comparison started
    loaded = str(checkpoint.data) if checkpoint and (checkpoint.root / TRACKER).is_file() else path
    return ComparedModel(name, option, loaded, size_of(source.architecture), ChatProcessor.from_pretrained(source.side, limits), beside)


def _source(path: str, option: str, base: str | None) -> tuple[ModelSource, str | None]:
    """(the model, the base that its adapters are read beside, if not the one that they name): `base` where that one is missing."""
    try:
        return open_source(path, option=option), None
    except BaseMissing:
        if base is None:
            raise
        return open_source(path, option=option, base=base), base


def tuned_names(paths: list[Path]) -> list[str]:
    """A short, distinct name for each model: `tuned` for a single one, else the step of a checkpoint (with its run, if there are
    several runs) or the name of the folder."""
    if len(paths) == 1:
        return [TUNED]
    steps = [path.name.removeprefix(ITERATION) if path.name.startswith(ITERATION) else "" for path in paths]
    runs = [path.parent.parent.name if path.parent.name == CHECKPOINTS else path.parent.name for path in paths]
    several = len({run for run, step in zip(runs, steps, strict=True) if step.isdecimal()}) > 1
    names: list[str] = []
    for path, step, run in zip(paths, steps, runs, strict=True):
        name = path.name or str(path)
        if step.isdecimal():
            name = (f"{run} " if several else "") + f"step {int(step)}"
        name = " ".join(shown(name).split())
        names.append(name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :])
    taken: Counter[str] = Counter([BASE, *RESERVED])
    for index, name in enumerate(names):
        taken[name] += 1
        if taken[name] > 1:
            names[index] = f"{name} ({taken[name]})"
    return names


def notes(models: list[ComparedModel]) -> list[str]:
    """Warnings about the models for the reader."""
    tiny = [compared.name for compared in models if compared.size == DEMO_SIZE]
    if not tiny:
        return []
    if len(tiny) == len(models):
        subject = "Both models are" if len(models) == 2 else f"All {len(models)} models are"
    elif len(tiny) == 1:
        subject = f"The {tiny[0]} model is"
    else:
        subject = f"The models {', '.join(tiny)} are"
    return [DEMO_NOTE.format(models=subject)]
