"""Captions of a few fixed pictures while the model is trained, so that a person sees what the loss means."""

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
"""Captions written at once: the caches take memory beside the optimizer's."""


def holds_whole_model(options: FinetuneOptions) -> bool:
    """Whether each rank holds the whole model, and writes its captions by itself, with a cache of keys and values."""
    return options.tp == options.pp == options.cp == options.ep == options.etp == 1


def pictures(options: FinetuneOptions) -> list[Picture]:
    """The pictures of `--sample-images`. Raises RequestError that names the option for what is no picture."""
    try:
        return find_pictures(options.sample_images, MOST_PICTURES)
    except RequestError as error:
        raise RequestError(*(dataclasses.replace(problem, option="sample_images") for problem in error.problems)) from None


class _RunStopped(Exception):
    """The run is to stop: no time for captions."""


@dataclass(frozen=True)
class _TimedText:
    """What the model wrote about one picture."""

    text: str
    seconds: float


class Sampler:
    """Writes captions with the model that is being trained, greedily, into `samples.jsonl`. Every rank has one and calls it at the
    same steps; the pictures are dealt out to those that can work apart."""

    def __init__(self, run_dir: Path, options: FinetuneOptions, processor: ChatProcessor) -> None:
        self.file = run_dir / SAMPLES
        self.prompt, self.processor, self.longest = options.sample_prompt, processor, options.sample_tokens
        self.holds_whole_model = holds_whole_model(options)
        self.pictures = pictures(options)

    def write(self, training: Training, step: int, stop: Callable[[], bool] = lambda: False) -> list[str] | None:
        """Captions after `step`, in the order of the pictures, on every rank; the first rank writes each as a row as `compare`
        does, model `tuned`, with its step. The model, its mode and the random numbers are afterwards as they were. None, and
        nothing written, once `stop()` is true on a rank. Raises WorkError for a model that gives numbers that are not finite, and
        for a file that cannot be written."""
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
        """The prompts about these pictures, each made when it is asked for."""
        return (self.processor.prompt([self.pictures[number].open()], self.prompt) for number in numbers)

    def _write_on_each_rank(self, training: Training, stop: Callable[[], bool]) -> list[_TimedText] | None:
        """Every rank writes about its share of the pictures, and tells the others."""
        rank, world = dist.get_rank(), dist.get_world_size()

        def look(*_: Any) -> None:
            if stop():
                raise _RunStopped

        writer = CaptionWriter(
            training.models[0], self.processor.decode, self.processor.eos_token_ids, Sampling(self.longest), batch_size=BATCH_SIZE,
            on_text=look,
        )  # fmt: skip
        found: list[_TimedText] | str | None
        try:
            written = writer.write(map(Prompt, self._inputs(list(range(rank, len(self.pictures), world)))))
            found = [_TimedText(caption.text, caption.seconds) for caption in written]
        except _RunStopped:
            found = None
        except WorkError as error:
            # the others wait for this rank
            found = str(error)
        everywhere: list[Any] = [None] * world
        dist.all_gather_object(everywhere, found)
        for part in everywhere:
            if isinstance(part, str):
                raise WorkError(part)
        if None in everywhere:
            return None
        return [everywhere[number % world][number // world] for number in range(len(self.pictures))]

    def _write_across_ranks(self, training: Training, stop: Callable[[], bool]) -> list[_TimedText] | None:
        writer = ShardedWriter(training, len(self.pictures), self.processor.eos_token_ids, self.longest, stop)
        written = writer.write(list(self._inputs(writer.mine)))
        if written is None:
            return None
        return [_TimedText(whole_characters(self.processor.decode(one.ids)) if one.ids else "", one.seconds) for one in written]

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
            raise WorkError(f"{self.file}: cannot be written ({error.strerror}); mend that and resume the run") from error
