"""`qwen3vl inspect DATA --model MODEL --losses FILE`: the loss of each sample under a model, the highest first.

A sample with a loss far above the others often has a wrong answer, a wrong picture, or truncated text.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qwen3vl_core.checkpoint.load import build_filled
from qwen3vl_core.checkpoint.source import open_source
from qwen3vl_core.data.batch import collate
from qwen3vl_core.data.errors import DataError
from qwen3vl_core.data.inspect import command
from qwen3vl_core.data.inspect.samples import Samples, open_samples
from qwen3vl_core.data.inspect.survey import shares
from qwen3vl_core.data.media_limits import limits_of
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.data.sample_encoder import SampleEncoder
from qwen3vl_core.data.storage import local, place_of
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.files import check_output_file, write_output
from qwen3vl_core.options import InspectOptions
from qwen3vl_core.progress import Progress
from qwen3vl_core.structure.micro_batch import IGNORED


@dataclass(frozen=True)
class SampleLoss:
    """Loss of one sample under the model."""

    split: str
    number: int
    """Index among the samples of its split, from 0."""
    key: str
    place: str
    """Its location, for messages."""
    loss: float | None
    """Mean over its trained tokens; None for a sample that training would skip."""
    trained: int = 0
    """Trained tokens."""
    problem: str = ""
    """Why training would skip it."""

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key: NaN first, then the highest losses; samples without a loss come last."""
        if self.loss is None:
            return 2, 0.0
        return (1, -self.loss) if math.isfinite(self.loss) else (0, 0.0)


def run(options: InspectOptions) -> None:
    """Write the losses, then print what `inspect` prints, with the samples of the highest losses shown.

    Raises RequestError without a model or for data that `inspect` refuses, WorkError when no sample can be used.
    """
    if options.losses is None or options.model is None:
        raise RequestError("--losses: needs --model; give the checkpoint under which the losses are")
    file = Path(options.losses).expanduser().absolute()
    check_output_file("--losses", options.losses)
    check_output_file("--json", options.json)
    check_output_file("--html", options.html)
    source = open_source(options.model, option="--model")
    source.check()
    processor = ChatProcessor.from_pretrained(source.side, limits_of(options))
    images = None if options.images is None else local(options.images, "--images")
    opened = open_samples(place_of(options.path), options.split, images, options.columns)
    rows = sorted(measured(build_filled(source), processor, opened, options), key=lambda row: row.rank)
    write_output(file, "".join(json.dumps(row.__dict__) + "\n" for row in rows))
    losses = [row.loss for row in rows if row.loss is not None]
    if not losses:
        raise WorkError(f"{options.path}: no sample can be used ({rows[0].problem if rows else 'it is empty'}); {file} names each")
    highest = {(row.split, row.number): f"loss {row.loss:.4f}" for row in rows[: options.show] if row.loss is not None}
    command.run(replace(options, model=str(source.side)), highest)
    middle = sorted(losses)[len(losses) // 2]
    print(f"\n{file}: the losses of {len(losses):,} samples, highest first: {losses[0]:.4f}; half of them are at most {middle:.4f}")


def measured(model: Any, processor: ChatProcessor, opened: dict[str, Samples], options: InspectOptions) -> list[SampleLoss]:
    """The loss of each sample of `opened` that `--limit` chooses."""
    encoder, rows = SampleEncoder(processor, options.seq_length), []
    weight = next(model.parameters())
    chosen = shares(opened, options.limit)
    with Progress("losses", total=sum(map(len, chosen.values())), unit="samples") as progress, torch.inference_mode():
        for name, numbers in chosen.items():
            samples = opened[name]
            for number in numbers:
                key, place = "", samples.place(number)
                try:
                    key, parts = samples.read(number)
                    batch = collate([encoder(key, parts)], processor.pad_token_id, processor.rules, processor.video_rules)
                except DataError as error:
                    rows.append(SampleLoss(name, number, key, place, None, problem=error.detail))
                else:
                    logits = model(**batch.model_inputs(weight.device, weight.dtype))
                    labels = batch.labels.to(logits.device)
                    loss = torch.nn.functional.cross_entropy(logits[0].float(), labels[0], ignore_index=IGNORED)
                    rows.append(SampleLoss(name, number, key, place, float(loss), int((labels != IGNORED).sum())))
                progress.update(1)
    return rows
