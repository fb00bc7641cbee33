"""Captions of a few fixed sample pictures during training, to judge the model by more than its loss."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qwen3vl_core.model  # noqa: F401

import torch
import torch.distributed as dist

from qwen3vl_core.caption.comparison import TUNED
from qwen3vl_core.caption.generate import CaptionWriter, Prompt, whole_characters
from qwen3vl_core.caption.pictures import Picture, find_pictures
from qwen3vl_core.caption.sampling import Sampling
from qwen3vl_core.data.processor import ChatProcessor
from qwen3vl_core.errors import RequestError, WorkError
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import SAMPLES, sample_row
from qwen3vl_core.training.setup import Training
from qwen3vl_core.training.sharded_generation import ShardedWriter

MOST_PICTURES = 16
BATCH_SIZE = 4
"""Pictures in a generation batch: KV caches need memory in addition to the optimizer."""


def holds_whole_model(options: FinetuneOptions) -> bool:
    """Whether each rank holds the whole model, so that it can generate on its own, with a KV cache."""
    return options.tp == options.pp == options.cp == options.ep == options.etp == 1


def pictures(options: FinetuneOptions) -> list[Picture]:
    """The pictures of `--sample-images`. Raises RequestError that names the option for a file that is not a picture."""
    try:
        return find_pictures(options.sample_images, MOST_PICTURES)
    except RequestError as error:
        raise RequestError(*(dataclasses.replace(problem, option="sample_images") for problem in error.problems)) from None


class _RunStopped(Exception):
    """The run was asked to stop: skip the captions."""


@dataclass(frozen=True)
class _TimedText:
    """What the model wrote about one picture."""

    text: str
    seconds: float


class Sampler:
    """Writes captions, decoded greedily by the model in training, to `samples.jsonl`. Every rank creates one and calls it at the
    same steps; the pictures are split between the ranks that can generate independently."""

    def __init__(self, run_dir: Path, options: FinetuneOptions, processor: ChatProcessor) -> None:
        self.file = run_dir / SAMPLES
        self.prompt, self.processor, self.max_new_tokens = options.sample_prompt, processor, options.sample_tokens
        self.holds_whole_model = holds_whole_model(options)
        self.pictures = pictures(options)

    def write(self, training: Training, step: int, stop: Callable[[], bool] = lambda: False) -> list[str] | None:
        """Captions after `step`, in the order of the pictures, on every rank; rank 0 appends a row for each, in the format of
        `compare`, with model `tuned` and the step. The model, its mode and the RNG states are unchanged afterwards. Returns None
        and writes nothing once `stop()` is true on any rank. Raises WorkError when the model's logits are not finite, or the file
        cannot be written."""
        modes = [model.training for model in training.wrapped]
        for model in training.wrapped:
            model.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                captions = (self._write_on_each_rank if self.holds_whole_model else self._write_across_ranks)(training, stop)
        finally:
            for model, mode in zip(training.wrapped, modes, strict=True):
                model.train(mode)
        if captions is None:
            return None
        if dist.get_rank() == 0:
            self._record(captions, step)
        return [caption.text for caption in captions]

    def _inputs(self, numbers: list[int]) -> Iterator[dict[str, torch.Tensor]]:
        """The prompts for these pictures, built lazily."""
        return (self.processor.prompt([self.pictures[number].open()], self.prompt) for number in numbers)

    def _write_on_each_rank(self, training: Training, stop: Callable[[], bool]) -> list[_TimedText] | None:
        """Every rank captions its share of the pictures, then all ranks gather all captions."""
        rank, world = dist.get_rank(), dist.get_world_size()

        def check_stop(*_: Any) -> None:
            if stop():
                raise _RunStopped

        writer = CaptionWriter(
            training.models[0], self.processor.decode, self.processor.eos_token_ids, Sampling(self.max_new_tokens), batch_size=BATCH_SIZE,
            on_text=check_stop,
        )  # fmt: skip
        captions: list[_TimedText] | str | None
        try:
            written = writer.write(map(Prompt, self._inputs(list(range(rank, len(self.pictures), world)))))
            captions = [_TimedText(caption.text, caption.seconds) for caption in written]
        except _RunStopped:
            captions = None
        except WorkError as error:
            # raised only after the gather, which the other ranks wait in
            captions = str(error)
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, captions)
        for rank_captions in gathered:
            if isinstance(rank_captions, str):
                raise WorkError(rank_captions)
        if None in gathered:
            return None
        return [gathered[number % world][number // world] for number in range(len(self.pictures))]

    def _write_across_ranks(self, training: Training, stop: Callable[[], bool]) -> list[_TimedText] | None:
        """All ranks generate together, where none holds the whole model."""
        writer = ShardedWriter(training, len(self.pictures), self.processor.eos_token_ids, self.max_new_tokens, stop)
        captions = writer.write(list(self._inputs(writer.mine)))
        if captions is None:
            return None
        return [_TimedText(whole_characters(self.processor.decode(c.ids)) if c.ids else "", c.seconds) for c in captions]

    def _record(self, captions: list[_TimedText], step: int) -> None:
        rows = [
            sample_row(picture.name, self.prompt, TUNED, caption.text, caption.seconds, step=step)
            for picture, caption in zip(self.pictures, captions, strict=True)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        try:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, lines)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise WorkError(f"{self.file}: cannot be written ({error.strerror}); fix that and resume the run") from error
